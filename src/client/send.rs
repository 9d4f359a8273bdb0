//! Sending files: planned, sealed, uploaded, and told to their recipient in an encrypted message.

use std::path::Path;
use std::time::{Duration, Instant};

use uuid::Uuid;
use waxwing_protocol::{BlobId, GroupId, Handle, MsgId, Timestamp};
use waxwing_seal::blob_ref::BlobRef;
use waxwing_seal::message::Content;

use crate::account::now;
use crate::planning::{self, discard};
use crate::transfer::{self, Purpose, Transfer, TransferId, TransferRow};
use crate::upload::{self, UploadReport};
use crate::{Client, ClientError, OnProgress, Progress, blob_refs, files, groups, outbox};

/// What became of a file that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// The message that carries the reference; `None` when the file was only uploaded.
    pub msg_id: Option<MsgId>,
    /// The blob.
    pub blob: BlobId,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of the sealed blob.
    pub sealed_bytes: u64,
    /// Where the upload last went on, when the server held a part of it already.
    pub resumed_at: Option<u64>,
    /// Time spent reading, checking, sealing and hashing; most of it while uploading.
    pub seal: Duration,
    /// Time spent uploading.
    pub upload: Duration,
    /// Time spent sending the message.
    pub message: Duration,
}

impl Client {
    /// Sends a file to `to`: seals it, uploads it, and sends the reference in an encrypted message. Goes on with an
    /// unfinished transfer of the same file to the same person, should there be one.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`] before anything is read or sent; [`ClientError::Interrupted`] when the server
    /// stays away: what it holds then is kept, and the same call goes on.
    pub async fn send_file(&self, path: &Path, to: &Handle, on: OnProgress<'_>) -> Result<SentFile, ClientError> {
        let path = std::fs::canonicalize(path).map_err(ClientError::file(path))?;
        let same = |purpose: &Purpose| matches!(purpose, Purpose::Send { to: it, .. } if it == to);
        let (id, row) = match self.profile.read(|tx| transfer::find(tx, &path, same))? {
            Some(found) => self.as_it_is_now(found, on).await?,
            None => {
                self.contact(to).await?;
                let msg_id = MsgId::from(Uuid::now_v7());
                self.begin(&path, Purpose::Send { to: to.clone(), msg_id }, on).await?
            }
        };
        self.go_on(id, row, on).await
    }

    /// Sends a file to everybody in a group, as [`Client::send_file`] sends it to one.
    ///
    /// # Errors
    /// Those of [`Client::send_file`]; [`ClientError::NotInGroup`].
    pub async fn send_file_to_group(
        &self,
        path: &Path,
        group: GroupId,
        on: OnProgress<'_>,
    ) -> Result<SentFile, ClientError> {
        let path = std::fs::canonicalize(path).map_err(ClientError::file(path))?;
        let same = |purpose: &Purpose| matches!(purpose, Purpose::SendToGroup { group: it, .. } if *it == group);
        let (id, row) = match self.profile.read(|tx| transfer::find(tx, &path, same))? {
            Some(found) => self.as_it_is_now(found, on).await?,
            None => {
                let msg_id = MsgId::from(Uuid::now_v7());
                self.begin(&path, Purpose::SendToGroup { group, msg_id }, on).await?
            }
        };
        self.go_on(id, row, on).await
    }

    /// Every transfer that is not done, the oldest first.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn unfinished(&self) -> Result<Vec<Transfer>, ClientError> {
        self.profile.read(|tx| transfer::list(tx))
    }

    /// Goes on with a transfer where it stopped.
    ///
    /// # Errors
    /// [`ClientError::NoTransfer`] when it is done; those of [`Self::send_file`].
    pub async fn resume(&self, id: TransferId, on: OnProgress<'_>) -> Result<SentFile, ClientError> {
        let row = self.profile.read(|tx| transfer::get(tx, id))?;
        self.go_on(id, row, on).await
    }

    /// Gives up a transfer: forgets it here with its message, and frees what the server holds of its upload. It is for
    /// one that can never be sent, such as when its file is gone. A message whose answer was lost may have arrived.
    ///
    /// The server need not be there: an upload that nobody ends expires.
    ///
    /// # Errors
    /// [`ClientError::NoTransfer`] when there is none of this id; [`ClientError::Profile`].
    pub async fn drop_transfer(&self, id: TransferId) -> Result<Transfer, ClientError> {
        let (row, dropped) = self.profile.write(|tx| {
            let row = transfer::get(tx, id)?;
            let dropped = row.describe(id)?;
            match row.purpose {
                Purpose::Send { msg_id, .. } => outbox::forget(tx, msg_id)?,
                Purpose::SendToGroup { msg_id, .. } => groups::outbox::forget(tx, msg_id)?,
                Purpose::Upload => {}
            }
            transfer::remove(tx, id)?;
            Ok((row, dropped))
        })?;
        discard(&row.digests_path(&self.profile));
        // A finished upload is a blob, and no longer the transfer's.
        if let (Some(url), None) = (&row.upload_url, row.blob) {
            upload::terminate(self, url).await;
        }
        Ok(dropped)
    }

    /// Seals and uploads a file, and tells nobody. Goes on with an unfinished upload of the same file.
    ///
    /// # Errors
    /// Those of [`Self::send_file`].
    pub async fn upload_file(&self, path: &Path, on: OnProgress<'_>) -> Result<(BlobRef, UploadReport), ClientError> {
        let path = std::fs::canonicalize(path).map_err(ClientError::file(path))?;
        let (id, row) =
            match self.profile.read(|tx| transfer::find(tx, &path, |purpose| *purpose == Purpose::Upload))? {
                Some(found) => self.as_it_is_now(found, on).await?,
                None => self.begin(&path, Purpose::Upload, on).await?,
            };
        let (reference, report) = self.uploaded(id, row, on).await?;
        self.done(id)?;
        Ok((reference, report))
    }

    /// Plans a new transfer and stores it: nothing has left yet.
    async fn begin(
        &self,
        path: &Path,
        purpose: Purpose,
        on: OnProgress<'_>,
    ) -> Result<(TransferId, TransferRow), ClientError> {
        let planned = planning::plan(&self.profile, path, on).await?;
        let row = TransferRow::new(path, purpose, &planned, now());
        let id = self.profile.write(|tx| transfer::insert(tx, &row))?;
        Ok((id, row))
    }

    /// A found transfer, made new when its blob is uploaded but the file was edited since: whoever sends a file means
    /// what it holds now. (While it uploads, the digests see to that.)
    async fn as_it_is_now(
        &self,
        (id, mut row): (TransferId, TransferRow),
        on: OnProgress<'_>,
    ) -> Result<(TransferId, TransferRow), ClientError> {
        if row.blob.is_some() {
            let metadata = std::fs::metadata(row.path()).map_err(ClientError::file(row.path()))?;
            let modified = metadata.modified().ok().map(Timestamp::from);
            if metadata.len() != row.plan()?.layout.true_bytes() || modified != row.modified {
                // Another content is another message: under the old id the old one may be queued or sent.
                if let Purpose::Send { msg_id, .. } | Purpose::SendToGroup { msg_id, .. } = &mut row.purpose {
                    *msg_id = MsgId::from(Uuid::now_v7());
                }
                upload::replan(self, id, &mut row, on).await?;
            }
        }
        Ok((id, row))
    }

    /// Takes the steps that are left.
    async fn go_on(&self, id: TransferId, row: TransferRow, on: OnProgress<'_>) -> Result<SentFile, ClientError> {
        let (purpose, path) = (row.purpose.clone(), row.path().to_owned());
        let (reference, report) = self.uploaded(id, row, on).await?;
        let blob = reference.id;
        let started = Instant::now();
        let msg_id = match purpose {
            Purpose::Send { to, msg_id } => {
                on(Progress::Sending);
                let sent = self.send_content(&to, msg_id, Content::File(Box::new(reference))).await;
                Some(sent.map_err(|error| self.interrupted(id, &path, error))?)
            }
            Purpose::SendToGroup { group, msg_id } => {
                on(Progress::Sending);
                let sent = self.send_to_group(group, msg_id, Content::File(Box::new(reference))).await;
                Some(sent.map_err(|error| self.interrupted(id, &path, error))?)
            }
            Purpose::Upload => None,
        };
        self.done(id)?;
        let UploadReport { file_bytes, sealed_bytes, resumed_at, seal, upload } = report;
        Ok(SentFile { msg_id, blob, file_bytes, sealed_bytes, resumed_at, seal, upload, message: started.elapsed() })
    }

    /// The reference to the transfer's blob, which is uploaded unless it was before.
    async fn uploaded(
        &self,
        id: TransferId,
        mut row: TransferRow,
        on: OnProgress<'_>,
    ) -> Result<(BlobRef, UploadReport), ClientError> {
        if let Some(blob) = row.blob {
            let reference = self.profile.read(|tx| blob_refs::get(tx, &blob))?;
            let layout = row.plan()?.layout;
            let (file_bytes, sealed_bytes) = (layout.true_bytes(), layout.sealed_bytes());
            return Ok((reference, UploadReport { file_bytes, sealed_bytes, ..UploadReport::default() }));
        }
        let (blob, report) = upload::upload(self, id, &mut row, on).await?;
        let plan = row.plan()?;
        let reference = BlobRef {
            media_type: files::media_type(row.path()).to_owned(),
            file_name: file_name(row.path()),
            ..BlobRef::new(blob, plan.key.clone(), plan.header, plan.layout.true_bytes())
        };
        row.blob = Some(blob);
        self.profile.write(|tx| {
            blob_refs::put(tx, &reference)?;
            transfer::put(tx, id, &row)
        })?;
        Ok((reference, report))
    }

    /// Forgets a transfer whose last step is done.
    fn done(&self, id: TransferId) -> Result<(), ClientError> {
        let digests = self.profile.write(|tx| {
            let row = transfer::get(tx, id)?;
            transfer::remove(tx, id)?;
            Ok(row.digests_path(&self.profile))
        })?;
        discard(&digests);
        Ok(())
    }
}

/// The name a recipient sees, made safe on this side already.
fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| files::safe_name(&name.to_string_lossy()))
}
