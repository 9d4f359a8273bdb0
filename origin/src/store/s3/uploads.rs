//! Uploads: claiming them, bringing them to their end, removing them.
//!
//! Becoming a blob touches several objects. So the upload's object first says what it is about to become (its *ending*),
//! and whoever finds an upload with an ending, after a crash or a lost reply, does the same steps again; each of them can
//! be made twice.

use std::sync::Arc;

use waxwing_protocol::UploadId;

use super::Shared;
use super::blobs::Stored;
use super::bucket::{Expect, PAGE, Swap, Tag};
use super::ledger::Entry;
use super::objects::{
    Draft, Ending, Place, Tail, UPLOADS, data_key, decode, encode, named_key, outboard_key, tail_key, upload_in,
    upload_key,
};
use super::retry::Attempts;
use crate::store::{StoreError, StoreErrorKind, UploadRecord};

impl Shared {
    /// The object of upload `id`, as it is.
    pub(super) async fn draft(&self, id: UploadId) -> Result<Option<(Draft, Tag)>, StoreError> {
        let key = upload_key(id);
        let Some(found) = self.bucket.get(&key).await? else { return Ok(None) };
        let mut draft: Draft = decode(&key, &found.bytes)?;
        draft.record = draft.record.map(UploadRecord::checked).transpose()?;
        Ok(Some((draft, found.tag)))
    }

    /// Claims upload `id` for this process, with an epoch above `epoch`: from then on no other can write its object.
    pub(super) async fn claim(&self, id: UploadId, epoch: u64) -> Result<Option<(Draft, Tag)>, StoreError> {
        let mut attempts = Attempts::new("claiming an upload");
        loop {
            let Some((draft, tag)) = self.draft(id).await? else { return Ok(None) };
            if draft.removed || (draft.record.is_none() && draft.ending.is_none()) {
                return Ok(None);
            }
            if draft.ending.is_some() {
                self.finish_or_see(id, draft, &tag).await?;
            } else if draft.node == self.node() {
                // Among the claims of one process its slots decide.
                return Ok(Some((draft, tag)));
            } else {
                let mut claimed = draft.clone();
                claimed.epoch = draft.epoch.max(epoch) + 1;
                claimed.node = self.node();
                if let Swap::Made(tag) = self.bucket.swap(&upload_key(id), Expect::Tag(&tag), encode(&claimed)?).await?
                {
                    // Whose numbers are its own is told by what was there before.
                    return Ok(Some((draft, tag)));
                }
            }
            attempts.pause().await?;
        }
    }

    /// Brings an upload that was just about to become a blob, of bytes that are there and most likely nobody else's, to its
    /// end.
    pub(super) async fn finish_first(&self, id: UploadId, draft: Draft, tag: &Tag) -> Result<(), StoreError> {
        let Some(Ending { blob, record, place, charge }) = draft.ending.clone() else { return Ok(()) };
        if draft.parts.is_none() && place.data.is_some() && self.store_first(&blob, &place, &charge).await? {
            return self.end(id, draft, record, tag, None).await;
        }
        Box::pin(self.finish(id, draft, tag)).await
    }

    /// Brings an upload that is about to become a blob to its end.
    pub(super) async fn finish(&self, id: UploadId, draft: Draft, tag: &Tag) -> Result<(), StoreError> {
        let Some(Ending { blob, record, place, charge }) = draft.ending.clone() else { return Ok(()) };
        let (pointer, _) = self.pointer(blob.id).await?;
        let is_gone = pointer.place.is_none() && pointer.has_buried(&place);
        let mut needed = pointer.place.is_none_or(|known| known.data == place.data);
        let stored = loop {
            if is_gone {
                break Stored::Gone;
            }
            if needed && let (Some(parts), Some(name)) = (&draft.parts, &place.data) {
                let named = blob.id.to_string().into_bytes().into();
                self.bucket.put(&named_key(name), named).await?;
                let ended = self.bucket.complete(&data_key(name), &parts.upload, &parts.tags, blob.blob_bytes).await;
                if let Err(error) = ended {
                    self.still_at(id, tag).await?;
                    return Err(error);
                }
            }
            match self.store_blob(id, &blob, needed.then_some(&place), Some(&charge), Some(tag)).await? {
                // The blob that had made these bytes unneeded went.
                Stored::Missing => needed = true,
                stored => break stored,
            }
        };
        self.end(id, draft, record, tag, (stored == Stored::NotNeeded).then_some(&place)).await
    }

    /// Lets the object of an upload that is a blob by now say so, and removes what is not needed any more, the bytes at
    /// `unneeded` among it.
    async fn end(
        &self,
        id: UploadId,
        draft: Draft,
        record: Option<UploadRecord>,
        tag: &Tag,
        unneeded: Option<&Place>,
    ) -> Result<(), StoreError> {
        let key = upload_key(id);
        match record {
            None => self.bucket.remove(&key).await?,
            Some(record) => {
                let done =
                    Draft { epoch: draft.epoch, node: draft.node.clone(), record: Some(record), ..Draft::default() };
                let swap = self.bucket.swap(&key, Expect::Tag(tag), encode(&done)?).await?;
                if swap == Swap::Lost && self.draft(id).await?.is_some_and(|(now, _)| now.ending.is_some()) {
                    return Err(StoreError::new(StoreErrorKind::Stale, "completing an upload"));
                }
            }
        }
        let mut rest = Draft { tails: draft.tails, ..Draft::default() };
        if let Some(place) = unneeded {
            rest.parts = draft.parts;
            self.remove_place(place).await?;
        }
        self.remove_bytes(&rest).await
    }

    /// The same, or sees that another origin did it.
    pub(super) async fn finish_or_see(&self, id: UploadId, draft: Draft, tag: &Tag) -> Result<(), StoreError> {
        match Box::pin(self.finish(id, draft, tag)).await {
            Err(error) if error.kind() == StoreErrorKind::Stale => Ok(()),
            done => done,
        }
    }

    /// An error when the object of upload `id` is not the version `tag` any more: another origin went on with it.
    pub(super) async fn still_at(&self, id: UploadId, tag: &Tag) -> Result<(), StoreError> {
        match self.draft(id).await? {
            Some((_, now)) if now == *tag => Ok(()),
            _ => Err(StoreError::new(StoreErrorKind::Stale, "completing an upload")),
        }
    }

    pub(super) async fn remove(&self, id: UploadId) -> Result<(), StoreError> {
        let mut attempts = Attempts::new("removing an upload");
        loop {
            let Some((mut draft, tag)) = self.draft_to_remove(id).await? else { return Ok(()) };
            if draft.ending.is_some() {
                self.finish_or_see(id, draft, &tag).await?;
                attempts.pause().await?;
                continue;
            }
            if !draft.removed {
                // First nobody can go on with it, then its bytes go.
                draft.removed = true;
                if self.bucket.swap(&upload_key(id), Expect::Tag(&tag), encode(&draft)?).await? == Swap::Lost {
                    attempts.pause().await?;
                    continue;
                }
            }
            self.remove_bytes(&draft).await?;
            if let Some(record) = &draft.record {
                let entry = Entry::Hold { upload: id, bytes: 0 };
                self.bucket.charge(record.owner, entry, u64::MAX).await?;
            }
            return self.bucket.remove(&upload_key(id)).await;
        }
    }

    /// The upload to be removed. One whose object cannot be read is removed as it is; its bytes are left to a collection.
    async fn draft_to_remove(&self, id: UploadId) -> Result<Option<(Draft, Tag)>, StoreError> {
        match self.draft(id).await {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                tracing::error!(upload.id = %id, error = %error, "an upload whose record is damaged is removed");
                self.bucket.remove(&upload_key(id)).await?;
                Ok(None)
            }
            found => found,
        }
    }

    /// Removes the bytes that `draft` names.
    pub(super) async fn remove_bytes(&self, draft: &Draft) -> Result<(), StoreError> {
        for tail in &draft.tails {
            self.bucket.remove(&tail_key(&tail.name)).await?;
        }
        for object in &draft.outboard.objects {
            self.bucket.remove(&outboard_key(&object.name)).await?;
        }
        if let Some(parts) = &draft.parts {
            self.bucket.abort(&data_key(&parts.name), &parts.upload).await?;
        }
        Ok(())
    }

    /// Removes tails whose bytes are in parts. What is not removed is found by a collection.
    pub(super) fn remove_tails_later(self: &Arc<Self>, tails: Vec<Tail>) {
        if tails.is_empty() {
            return;
        }
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            for tail in tails {
                if let Err(error) = shared.bucket.remove(&tail_key(&tail.name)).await {
                    tracing::debug!(error = %error, "a tail is left to the next collection");
                }
            }
        });
    }

    /// Records of uploads after `after`, at most `limit`.
    pub(super) async fn uploads(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> Result<Vec<(UploadId, UploadRecord)>, StoreError> {
        let mut found = Vec::new();
        let mut from = after.map(upload_key);
        while found.len() < limit {
            let page = self.bucket.list(UPLOADS, from.as_deref(), PAGE.min(limit)).await?;
            let Some(last) = page.last() else { break };
            from = Some(last.key.clone());
            for id in page.iter().filter_map(|listed| upload_in(&listed.key)) {
                if found.len() == limit {
                    break;
                }
                found.extend(self.record_if_readable(id).await?);
            }
        }
        Ok(found)
    }
}
