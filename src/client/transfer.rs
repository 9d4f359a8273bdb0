//! Transfers: the files of a profile that are on their way out, each until its last step is done.
//!
//! A sender can die between any two steps: planned, created at the server, half uploaded, uploaded, message queued.
//! The row of a transfer says which steps are done; whoever finds it goes on with the next. It holds the plan (key,
//! header, sizes) and names the file with the digests, so that sealing goes on with the same bytes or not at all, and
//! the id of the message, so that it is sent once.

use std::ffi::OsString;
use std::fmt;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{BlobId, GroupId, Handle, MsgId, Timestamp};
use waxwing_seal::blob::SealPlan;

use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{ClientError, Profile};

/// Transfers that are not done, by big-endian id.
const TRANSFERS: Table<TransferRow> = Table::new("transfers");

/// The last id given, under [`LAST`]: an id once shown to a person never means another transfer.
const TRANSFER_IDS: Table<u64> = Table::new("transfer_ids");
const LAST: &[u8] = b"last";

/// The directory, within a profile's, of the files with digests.
const PLANS_DIR: &str = "plans";

/// Names a transfer within its profile: 1, 2, 3 and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransferId(u64);

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TransferId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// A transfer that is not done, as people know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Its id.
    pub id: TransferId,
    /// The file.
    pub path: PathBuf,
    /// To whom; `None` when it is only uploaded, to be shared.
    pub to: Option<Handle>,
    /// The group it is sent to, if it is.
    pub group: Option<GroupId>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of the sealed blob.
    pub sealed_bytes: u64,
    /// Whether the upload is done and only the message is left.
    pub uploaded: bool,
    /// When it began.
    pub started_at: Timestamp,
}

/// What a transfer is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Purpose {
    /// To be sent in a message, whose id was chosen with the transfer.
    Send { to: Handle, msg_id: MsgId },
    /// The same to everybody in a group.
    SendToGroup { group: GroupId, msg_id: MsgId },
    /// To be uploaded, for a share link.
    Upload,
}

/// A transfer as it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct TransferRow {
    path: StoredPath,
    pub(crate) purpose: Purpose,
    plan: SecretBytes,
    /// The name of the file with the digests, within [`PLANS_DIR`].
    digests: String,
    /// The file's time of change when it was planned.
    pub(crate) modified: Option<Timestamp>,
    /// Where the server takes the upload, once it was created.
    pub(crate) upload_url: Option<String>,
    /// The blob, once it is uploaded; its reference stands among the profile's then.
    pub(crate) blob: Option<BlobId>,
    pub(crate) started_at: Timestamp,
}

impl TransferRow {
    pub(crate) fn new(path: &Path, purpose: Purpose, planned: &Planned, started_at: Timestamp) -> Self {
        Self {
            path: StoredPath(path.to_owned()),
            purpose,
            plan: planned.plan.encode().into(),
            digests: planned.digests.clone(),
            modified: planned.modified,
            upload_url: None,
            blob: None,
            started_at,
        }
    }

    /// The same transfer from its beginning, under a new plan.
    pub(crate) fn replanned(&self, planned: &Planned) -> Self {
        Self::new(self.path(), self.purpose.clone(), planned, self.started_at)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path.0
    }

    /// The plan.
    ///
    /// # Errors
    /// [`ClientError::Damaged`] when it cannot be read.
    pub(crate) fn plan(&self) -> Result<SealPlan, ClientError> {
        SealPlan::decode(&self.plan.0).map_err(|_| ClientError::Damaged { what: "the plan of a transfer" })
    }

    /// The file with the digests.
    pub(crate) fn digests_path(&self, profile: &Profile) -> PathBuf {
        plans_dir(profile).join(&self.digests)
    }

    /// The transfer as people know it.
    pub(crate) fn describe(&self, id: TransferId) -> Result<Transfer, ClientError> {
        let layout = self.plan()?.layout;
        let to = match &self.purpose {
            Purpose::Send { to, .. } => Some(to.clone()),
            Purpose::SendToGroup { .. } | Purpose::Upload => None,
        };
        let group = match &self.purpose {
            Purpose::SendToGroup { group, .. } => Some(*group),
            Purpose::Send { .. } | Purpose::Upload => None,
        };
        Ok(Transfer {
            id,
            path: self.path().to_owned(),
            to,
            group,
            file_bytes: layout.true_bytes(),
            sealed_bytes: layout.sealed_bytes(),
            uploaded: self.blob.is_some(),
            started_at: self.started_at,
        })
    }
}

/// A plan with its digests on disk, ready to be stored in a row.
pub(crate) struct Planned {
    pub(crate) plan: SealPlan,
    pub(crate) digests: String,
    pub(crate) modified: Option<Timestamp>,
}

/// Where a profile keeps the files with digests.
pub(crate) fn plans_dir(profile: &Profile) -> PathBuf {
    profile.home().join(PLANS_DIR)
}

/// Stores a new transfer and gives its id.
pub(crate) fn insert(tx: &WriteTx<'_>, row: &TransferRow) -> Result<TransferId, ClientError> {
    let id = TransferId(tx.get(&TRANSFER_IDS, LAST)?.unwrap_or_default() + 1);
    tx.put(&TRANSFER_IDS, LAST, &id.0)?;
    put(tx, id, row)?;
    Ok(id)
}

/// Stores a step of a transfer.
pub(crate) fn put(tx: &WriteTx<'_>, id: TransferId, row: &TransferRow) -> Result<(), ClientError> {
    tx.put(&TRANSFERS, &id.0.to_be_bytes(), row)
}

/// Forgets a transfer that is done.
pub(crate) fn remove(tx: &WriteTx<'_>, id: TransferId) -> Result<(), ClientError> {
    tx.remove(&TRANSFERS, &id.0.to_be_bytes()).map(drop)
}

/// The transfer `id`.
///
/// # Errors
/// [`ClientError::NoTransfer`] when it is done, or never was.
pub(crate) fn get(tx: &impl Rows, id: TransferId) -> Result<TransferRow, ClientError> {
    tx.get(&TRANSFERS, &id.0.to_be_bytes())?.ok_or(ClientError::NoTransfer { id })
}

/// A transfer under way of the same file for the same end.
pub(crate) fn find(
    tx: &impl Rows,
    path: &Path,
    same: impl Fn(&Purpose) -> bool,
) -> Result<Option<(TransferId, TransferRow)>, ClientError> {
    Ok(rows(tx)?.into_iter().find(|(_, row)| row.path() == path && same(&row.purpose)))
}

/// Every transfer under way, the oldest first.
pub(crate) fn list(tx: &impl Rows) -> Result<Vec<Transfer>, ClientError> {
    rows(tx)?.iter().map(|(id, row)| row.describe(*id)).collect()
}

fn rows(tx: &impl Rows) -> Result<Vec<(TransferId, TransferRow)>, ClientError> {
    let damaged = ClientError::Damaged { what: "the id of a transfer" };
    let rows = tx
        .list(&TRANSFERS)?
        .into_iter()
        .map(|(key, row)| Some((TransferId(u64::from_be_bytes(key.try_into().ok()?)), row)));
    rows.collect::<Option<_>>().ok_or(damaged)
}

/// A path in a row. Paths need not be text on every system, so their bytes are kept.
struct StoredPath(PathBuf);

impl Serialize for StoredPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Base64(self.0.as_os_str().as_encoded_bytes().to_vec()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StoredPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Base64::deserialize(deserializer)?.0;
        #[cfg(unix)]
        let path = <OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes);
        #[cfg(not(unix))]
        let path = OsString::from(String::from_utf8(bytes).map_err(serde::de::Error::custom)?);
        Ok(Self(path.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_found_by_file_and_recipient_and_its_number_is_never_given_again() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let planned = Planned { plan: SealPlan::generate(1000).unwrap(), digests: "x".into(), modified: None };
        let bob: Handle = "bob".parse().unwrap();
        let send = Purpose::Send { to: bob.clone(), msg_id: MsgId::from_bytes([7; 16]) };
        #[cfg(unix)]
        let path = PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(b"/tmp/\xFF.jpg".to_vec()));
        #[cfg(not(unix))]
        let path = PathBuf::from("C:/photo.jpg");
        let row = TransferRow::new(&path, send, &planned, Timestamp::from_millis(1));
        let first = profile.write(|tx| insert(tx, &row)).unwrap();

        let found = profile
            .read(|tx| find(tx, &path, |purpose| matches!(purpose, Purpose::Send { to, .. } if *to == bob)))
            .unwrap()
            .unwrap();
        assert_eq!((found.0, found.1.path()), (first, path.as_path()));
        assert_eq!(found.1.plan().unwrap().key, planned.plan.key);
        assert!(profile.read(|tx| find(tx, &path, |purpose| *purpose == Purpose::Upload)).unwrap().is_none());

        profile.write(|tx| remove(tx, first)).unwrap();
        assert!(matches!(profile.read(|tx| get(tx, first)), Err(ClientError::NoTransfer { .. })));
        assert_ne!(profile.write(|tx| insert(tx, &row)).unwrap(), first);
        assert_eq!(profile.read(|tx| list(tx)).unwrap().len(), 1);
    }
}
