//! Contacts and history on their way from an old device to a new one: a file of rows, sealed like any other blob.
//!
//! A new device that knew nobody would trust the server anew with everybody's keys, and show an empty past. What the old
//! one knows can be more than a message holds, so it goes as a blob, whose reference travels with the account key.
//! Ratchets and prekeys are no part of it: they belong to one device. Groups come with their states, as they were checked,
//! what they are called, and what was said in them; no keys of theirs, since nothing that was encrypted under those is
//! ever delivered to the new device.
//!
//! The file is one JSON row a line. A row that the reader has is left as it is, so taking it in twice is harmless.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{AccountId, BlobId, GroupId, MsgId};
use waxwing_seal::blob_ref::BlobRef;

use crate::account::SELF;
use crate::contacts::{CONTACTS, ContactRow, HANDLES};
use crate::groups::book::{GROUPS, GroupRow, PROFILES};
use crate::groups::outbox::{GROUP_SENT, GroupSentRow};
use crate::inbox::{RECEIVED, ReceivedRow, Said};
use crate::outbox::{SENT, SentRow};
use crate::profile::{Rows as _, Table, WriteTx};
use crate::receipts::{self, TICKS, Tick};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, OnProgress, blob_refs};

/// The reference of an archive that is still to be taken in.
const EXPECTED: Table<SecretBytes> = Table::new("archive");

/// What an archive's file is called while it lies in a profile's directory.
const FILE: &str = "archive.jsonl";

/// Where a new device puts what it fetches.
const INCOMING: &str = "archive";

/// Rows taken in by one commit.
const ROWS: usize = 256;

/// One row.
#[derive(Serialize, Deserialize)]
enum Row {
    Contact { account: AccountId, row: ContactRow },
    Received { from: AccountId, msg_id: MsgId, row: ReceivedRow },
    Sent { msg_id: MsgId, row: SentRow, tick: Option<Tick> },
    Blob { id: BlobId, reference: Base64 },
    Group { group: GroupId, row: GroupRow },
    GroupProfile { key: Base64, profile: SecretBytes },
    GroupSent { msg_id: MsgId, row: GroupSentRow },
}

/// Writes what this device knows into a file, seals and uploads it.
pub(crate) async fn upload(client: &Client, on: OnProgress<'_>) -> Result<BlobRef, ClientError> {
    let path = client.profile.home().join(FILE);
    write(client, &path)?;
    let uploaded = client.upload_file(&path, on).await;
    // Whatever became of it: a later try writes it anew.
    let _ = std::fs::remove_file(&path);
    Ok(uploaded?.0)
}

/// Takes note of an archive that is to be taken in.
pub(crate) fn expect(tx: &WriteTx<'_>, reference: &BlobRef) -> Result<(), ClientError> {
    tx.put(&EXPECTED, SELF, &SecretBytes(reference.encode().to_vec().into()))
}

/// Fetches and takes in an archive that is expected, if there is one.
pub(crate) async fn import(client: &Client, on: OnProgress<'_>) -> Result<(), ClientError> {
    let Some(reference) = client.profile.read(|tx| tx.get(&EXPECTED, SELF))? else { return Ok(()) };
    let damaged = || ClientError::Damaged { what: "the reference to an archive" };
    let reference = BlobRef::decode(&reference.0).map_err(|_| damaged())?;
    let dir = client.profile.home().join(INCOMING);
    crate::profile::make_private_dir(&dir).map_err(ClientError::file(&dir))?;
    match client.save(&reference, &dir, on).await {
        Ok(file) => read(client, &file.path)?,
        // Its time is over, or it is not what its reference says: it never will be.
        Err(error) if error.loses_blob() => tracing::warn!("the history cannot be had any more: {error}"),
        Err(error) => return Err(error),
    }
    client.profile.write(|tx| tx.remove(&EXPECTED, SELF))?;
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}

fn write(client: &Client, path: &Path) -> Result<(), ClientError> {
    let rows = client.profile.read(|tx| {
        let mut rows = Vec::new();
        for (account, row) in tx.list(&CONTACTS)? {
            rows.push(Row::Contact { account: AccountId::from_slice(&account)?, row });
        }
        for (id, reference) in tx.list(&blob_refs::BLOB_REFS)? {
            let id = id.try_into().map_err(|_| ClientError::Damaged { what: "a reference to a blob" })?;
            rows.push(Row::Blob { id: BlobId::from_bytes(id), reference });
        }
        for (key, row) in tx.list(&RECEIVED)? {
            let (from, msg_id) = key.split_at_checked(16).ok_or(ClientError::Damaged { what: "a received message" })?;
            if matches!(row.said, Said::Content(_)) {
                let (from, msg_id) = (AccountId::from_slice(from)?, MsgId::from_slice(msg_id)?);
                rows.push(Row::Received { from, msg_id, row });
            }
        }
        for (key, row) in tx.list(&SENT)? {
            let tick = tx.get(&TICKS, &key)?;
            rows.push(Row::Sent { msg_id: MsgId::from_slice(&key)?, row, tick });
        }
        for (group, mut row) in tx.list(&GROUPS)? {
            // What is still to be told to others, this device tells.
            row.announce = false;
            rows.push(Row::Group { group: GroupId::from_slice(&group)?, row });
        }
        for (key, profile) in tx.list(&PROFILES)? {
            rows.push(Row::GroupProfile { key: Base64(key), profile });
        }
        for (key, row) in tx.list(&GROUP_SENT)? {
            rows.push(Row::GroupSent { msg_id: MsgId::from_slice(&key)?, row });
        }
        Ok(rows)
    })?;
    let written = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = BufWriter::new(options.open(path)?);
        for row in &rows {
            serde_json::to_writer(&mut file, row)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    written().map_err(ClientError::file(path))
}

fn read(client: &Client, path: &Path) -> Result<(), ClientError> {
    let file = BufReader::new(File::open(path).map_err(ClientError::file(path))?);
    let mut lines = file.lines();
    loop {
        let mut rows = Vec::new();
        for line in lines.by_ref().take(ROWS) {
            let line = line.map_err(ClientError::file(path))?;
            // A row of a newer version is passed over: the rest is worth having.
            match serde_json::from_str::<Row>(&line) {
                Ok(row) => rows.push(row),
                Err(error) => tracing::warn!("a row of the history was not understood: {error}"),
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        client.profile.write(|tx| rows.iter().try_for_each(|row| take(tx, row)))?;
    }
}

/// Takes in a row, unless there is one.
fn take(tx: &WriteTx<'_>, row: &Row) -> Result<(), ClientError> {
    fn put<V: Serialize + serde::de::DeserializeOwned>(
        tx: &WriteTx<'_>,
        table: &Table<V>,
        key: &[u8],
        row: &V,
    ) -> Result<(), ClientError> {
        if tx.get(table, key)?.is_none() { tx.put(table, key, row) } else { Ok(()) }
    }
    match row {
        Row::Contact { account, row } => {
            put(tx, &CONTACTS, account.as_bytes(), row)?;
            put(tx, &HANDLES, row.handle.as_str().as_bytes(), account)
        }
        Row::Received { from, msg_id, row } => {
            put(tx, &RECEIVED, &[&from.as_bytes()[..], msg_id.as_bytes()].concat(), row)
        }
        Row::Sent { msg_id, row, tick } => {
            put(tx, &SENT, msg_id.as_bytes(), row)?;
            if let Some(tick) = tick {
                put(tx, &TICKS, msg_id.as_bytes(), tick)?;
            }
            if *tick != Some(Tick::Read) {
                receipts::sending(tx, row.to, *msg_id, row.client_hlc)?;
            }
            Ok(())
        }
        Row::Blob { id, reference } => put(tx, &blob_refs::BLOB_REFS, id.as_bytes(), reference),
        Row::Group { group, row } => put(tx, &GROUPS, group.as_bytes(), row),
        Row::GroupProfile { key, profile } => put(tx, &PROFILES, &key.0, profile),
        Row::GroupSent { msg_id, row } => put(tx, &GROUP_SENT, msg_id.as_bytes(), row),
    }
}
