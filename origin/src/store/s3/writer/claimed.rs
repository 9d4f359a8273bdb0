//! What a claim knows: what is stored of its upload, and what is on its way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use waxwing_protocol::UploadId;
use waxwing_protocol::blob::CV_BYTES;
use waxwing_protocol::range::ByteRange;

use super::buffer::{Buffer, SMALL_BYTES};
use crate::fault::Fault;
use crate::store::s3::Shared;
use crate::store::s3::blobs::Stored;
use crate::store::s3::bucket::{Expect, PartTag, Swap, Tag};
use crate::store::s3::flights::Flight;
use crate::store::s3::ledger::{Entry, Open};
use crate::store::s3::objects::{
    Draft, Ending, OUTBOARD_INLINE_MAX, Parts, Place, StoredOutboard, Tail, data_key, encode, new_name, outboard_key,
    random_name, tail_key, upload_key,
};
use crate::store::{Concat, NewBlob, OutboardPart, Plan, StoreError, StoreErrorKind, UploadRecord};

/// Parts of one upload that are on their way at once.
const PARALLEL_PARTS: usize = 4;

/// Part numbers that a claim takes at a time: more than it sends between two commits, so that taking them costs no
/// request of its own; few enough that hundreds of claims from other processes do not use them up.
const RESERVED_PARTS: u16 = 12;

/// The highest part number of S3.
const PART_NUMBER_MAX: u16 = 10_000;

/// Tails of an upload at most; they are made one when there would be more.
const TAILS_MAX: usize = 16;

/// A blob of so many bytes at most is sent without asking whether it is here already.
const UNASKED_BYTES_MAX: u64 = 1 << 20;

/// How often a large blob in one request, which commits nothing, shows that it is still coming.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10 * 60);

/// What a claim knows.
pub(super) struct Claimed {
    shared: Arc<Shared>,
    id: UploadId,
    epoch: u64,
    pub(super) plan: Plan,
    /// What is stored, and its version; `None` when nothing is.
    draft: Draft,
    tag: Option<Tag>,
    saved_at: Instant,
    /// Numbers of the parts sent since, in order, and what is known of them.
    sent: Vec<u16>,
    sending: JoinSet<Result<PartTag, StoreError>>,
    arrived: BTreeMap<u16, PartTag>,
    next_number: u16,
    /// Tails behind all parts, committed or not.
    tails: Vec<Tail>,
    /// Tails whose bytes are in parts that are not committed yet.
    obsolete: Vec<Tail>,
    /// The last bytes; the first of them may be in tails too.
    buffer: Buffer,
    /// How many bytes there are, stored or in the buffer.
    end: u64,
    /// Something failed whose outcome is unknown: only a new claim can go on.
    is_broken: bool,
}

impl Claimed {
    pub(super) fn new(shared: Arc<Shared>, id: UploadId, epoch: u64, stored: Option<(Draft, Tag)>) -> Self {
        let plan = Plan { bytes_max: shared.settings.blob_bytes_max, is_part: false };
        let (mut draft, tag) = stored.map_or_else(Default::default, |(draft, tag)| (draft, Some(tag)));
        // Numbers of another process's claim are left to it, and so are those of this one's while they may be in the air.
        let next_number = match &draft.parts {
            Some(parts) if draft.node == shared.node() && !shared.flights.are_any(id) => {
                parts.tags.last().map_or(1, |last| last.number + 1)
            }
            Some(parts) => parts.reserved,
            None => 1,
        };
        draft.epoch = epoch;
        Self {
            shared,
            id,
            epoch,
            plan,
            end: draft.bytes(),
            tails: draft.tails.clone(),
            draft,
            tag,
            saved_at: Instant::now(),
            sent: Vec::new(),
            sending: JoinSet::new(),
            arrived: BTreeMap::new(),
            next_number,
            obsolete: Vec::new(),
            buffer: Buffer::default(),
            is_broken: false,
        }
    }

    /// Bytes of a part.
    fn part_bytes(&self) -> u64 {
        match &self.draft.parts {
            Some(parts) => parts.part_bytes,
            None => self.shared.settings.part_bytes(self.plan.bytes_max),
        }
    }

    /// Whether everything has to stay readable, which parts are not before they are an object.
    fn is_part(&self) -> bool {
        match &self.draft.record {
            Some(record) => record.concat == Some(Concat::Partial),
            None => self.plan.is_part,
        }
    }

    /// Where the parts end.
    fn parts_end(&self) -> u64 {
        let committed = self.draft.parts.as_ref().map_or(0, Parts::bytes);
        committed + self.sent.len() as u64 * self.part_bytes()
    }

    /// Where what is stored ends, parts under way included.
    fn stored_end(&self) -> u64 {
        self.parts_end() + self.tails.iter().map(|tail| tail.bytes).sum::<u64>()
    }

    /// Where the buffer begins.
    fn buffer_start(&self) -> u64 {
        self.end - self.buffer.len()
    }

    fn sound(&self) -> Result<(), StoreError> {
        if self.is_broken {
            let why = "an earlier write of this request failed";
            return Err(StoreError::new(StoreErrorKind::Unavailable, "writing to an upload").because(why));
        }
        Ok(())
    }

    /// Takes in `data`, which begins at byte `at`. Bytes that were taken in before are what they are.
    pub(super) async fn write(&mut self, at: u64, data: Vec<Bytes>) -> Result<(), StoreError> {
        self.sound()?;
        let Some(mut known) = self.end.checked_sub(at) else {
            return Err(StoreError::new(StoreErrorKind::Other, "writing to an upload beyond its end"));
        };
        for mut piece in data {
            let skipped = known.min(piece.len() as u64);
            known -= skipped;
            let mut piece = piece.split_off(usize::try_from(skipped).expect("no more than the piece has"));
            while !piece.is_empty() {
                if self.room() == 0 {
                    // Not before more comes: a blob of one part is written as one object.
                    let sent = if self.is_part() { self.set_aside().await } else { self.send_part().await };
                    self.note(sent)?;
                }
                let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
                let taken = piece.split_to(piece.len().min(room));
                self.push(&taken).await?;
            }
        }
        Ok(())
    }

    /// Where what is gathered begins: behind the parts, or, when there are none, behind the tails.
    fn gathered_from(&self) -> u64 {
        if self.is_part() { self.buffer_start() } else { self.parts_end() }
    }

    /// Bytes that are missing from a whole part.
    fn room(&self) -> u64 {
        self.part_bytes() - (self.end - self.gathered_from())
    }

    /// Remembers that a failure left it open what is stored.
    fn note<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.is_broken |= result.is_err();
        result
    }

    async fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let needed = usize::try_from(self.buffer.len()).unwrap_or(usize::MAX).saturating_add(bytes.len());
        // Whoever has sent much most likely sends on.
        let wants_part = needed > SMALL_BYTES || !self.sent.is_empty();
        // The buffer of a whole part begins where the part does.
        let has_start = self.buffer_start() == self.gathered_from();
        let whole = self.gathered_bytes_max();
        let room = if wants_part { usize::try_from(whole).unwrap_or(usize::MAX) } else { needed.next_power_of_two() };
        if (wants_part && !has_start) || !self.buffer.try_push(&self.shared.budget, bytes, room) {
            self.set_aside().await?;
            if wants_part && !self.is_part() {
                let at_least = self.end - self.parts_end() + bytes.len() as u64;
                self.buffer.reserve(&self.shared.budget, whole.max(at_least)).await?;
                self.read_tails().await?;
            } else {
                self.buffer.reserve(&self.shared.budget, room.max(bytes.len()) as u64).await?;
            }
            self.buffer.push_reserved(bytes);
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Bytes that the part which is gathered will have at most.
    fn gathered_bytes_max(&self) -> u64 {
        let length = self.draft.record.as_ref().and_then(|record| record.length).unwrap_or(self.plan.bytes_max);
        // A client may send more than it said; it is refused, but not here.
        self.part_bytes().min(length.saturating_sub(self.gathered_from())).max(SMALL_BYTES as u64)
    }

    /// Stores what the buffer has and empties it: its memory is for others.
    async fn set_aside(&mut self) -> Result<(), StoreError> {
        self.store_tail().await?;
        self.buffer.clear();
        Ok(())
    }

    /// Stores the bytes that are only in the buffer as a tail.
    async fn store_tail(&mut self) -> Result<(), StoreError> {
        let stored = self.stored_end();
        if stored < self.end {
            let bytes = self.buffer.lend(stored - self.buffer_start());
            let tail = Tail { name: new_name(self.id)?, bytes: bytes.len() as u64 };
            if !self.shared.settings.faults.is_on(Fault::SkipSync) {
                self.shared.bucket.put(&tail_key(&tail.name), bytes).await?;
            }
            self.tails.push(tail);
        }
        Ok(())
    }

    /// Sees to it that the buffer has everything behind the parts, reading back what only tails have.
    async fn gather(&mut self) -> Result<(), StoreError> {
        if self.buffer_start() == self.parts_end() {
            return Ok(());
        }
        // Whoever waits for memory holds none.
        self.set_aside().await?;
        let bytes = self.end - self.parts_end();
        self.buffer.reserve(&self.shared.budget, bytes).await?;
        self.read_tails().await
    }

    /// Reads what is in tails into the buffer, which has room for it and is empty.
    async fn read_tails(&mut self) -> Result<(), StoreError> {
        for tail in &self.tails {
            let range = ByteRange { start: 0, end: tail.bytes };
            let (key, buffer) = (tail_key(&tail.name), &mut self.buffer);
            let read = self.shared.bucket.read_each(&key, range, |piece| buffer.push_reserved(piece)).await;
            if read.is_err() {
                // It would begin at another byte than it says.
                self.buffer.clear();
            }
            read?;
        }
        Ok(())
    }

    /// Sends everything behind the parts as a part, while more can come in.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        self.gather().await?;
        let number = self.next_number;
        let parts = self.parts_for(number).await?;
        let (key, upload) = (data_key(&parts.name), parts.upload.clone());
        while self.sending.len() >= PARALLEL_PARTS {
            self.arrive().await?;
        }
        let (shared, bytes) = (Arc::clone(&self.shared), self.buffer.take());
        let flight = Flight::begin(&self.shared, self.id);
        self.sending.spawn(async move {
            let sent = shared.bucket.put_part(&key, &upload, number, bytes).await;
            if sent.is_ok() {
                flight.land();
            }
            sent
        });
        self.sent.push(number);
        self.next_number += 1;
        self.obsolete.append(&mut self.tails);
        Ok(())
    }

    /// The multipart upload, begun when there is none, with number `number` for this claim alone.
    async fn parts_for(&mut self, number: u16) -> Result<Parts, StoreError> {
        let stale = self.saved_at.elapsed() >= SIGN_OF_LIFE;
        let reserved = number.saturating_add(RESERVED_PARTS).min(PART_NUMBER_MAX + 1);
        if number > PART_NUMBER_MAX {
            return Err(StoreError::new(StoreErrorKind::Other, "an upload that changed hands too often to go on"));
        }
        let mut draft = self.draft.clone();
        match &mut draft.parts {
            Some(parts) if number < parts.reserved && !stale => return Ok(parts.clone()),
            Some(parts) => parts.reserved = parts.reserved.max(reserved),
            None => {
                let name = new_name(self.id)?;
                let upload = self.shared.bucket.begin_multipart(&data_key(&name)).await?;
                let part_bytes = self.part_bytes();
                draft.parts = Some(Parts { name, upload, part_bytes, tags: Vec::new(), reserved });
            }
        }
        let begun = draft.parts.clone();
        self.save(draft).await?;
        begun.ok_or_else(|| StoreError::new(StoreErrorKind::Other, "beginning a multipart upload"))
    }

    /// Waits for one of the parts under way.
    async fn arrive(&mut self) -> Result<(), StoreError> {
        match self.sending.join_next().await {
            None => Ok(()),
            Some(Ok(Ok(part))) => {
                self.arrived.insert(part.number, part);
                Ok(())
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(StoreError::new(StoreErrorKind::Other, "sending a part").because(error)),
        }
    }

    /// Waits for all parts under way, and gives the tags of those sent since the last commit.
    async fn all_arrived(&mut self) -> Result<Vec<PartTag>, StoreError> {
        while !self.sending.is_empty() {
            self.arrive().await?;
        }
        let tags = self.sent.iter().map(|number| self.arrived.get(number).cloned());
        tags.collect::<Option<_>>().ok_or_else(|| StoreError::new(StoreErrorKind::Other, "a part that did not arrive"))
    }

    /// Reads back bytes that were committed.
    pub(super) async fn read(&mut self, at: u64, bytes: u64) -> Result<Vec<u8>, StoreError> {
        let corrupt = || StoreError::new(StoreErrorKind::Corrupt, "reading an upload's data");
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let committed = self.draft.record.as_ref().map_or(0, |record| record.offset);
        let end = at.checked_add(bytes).filter(|end| *end <= committed).ok_or_else(corrupt)?;
        if let Some(held) = at.checked_sub(self.buffer_start()).and_then(|from| self.buffer.slice(from, bytes)) {
            return Ok(held.to_vec());
        }
        let mut start = self.draft.parts.as_ref().map_or(0, Parts::bytes);
        if at < start {
            return Err(corrupt().because("bytes in parts are read when they are a blob"));
        }
        let mut found = Vec::new();
        for tail in &self.draft.tails {
            let range = ByteRange { start: at.max(start), end: end.min(start + tail.bytes) };
            if range.start < range.end {
                let within = ByteRange { start: range.start - start, end: range.end - start };
                found.extend_from_slice(&self.shared.bucket.read_all(&tail_key(&tail.name), within).await?);
            }
            start += tail.bytes;
        }
        if found.len() as u64 == bytes { Ok(found) } else { Err(corrupt()) }
    }

    pub(super) async fn commit(&mut self, record: UploadRecord, outboard: OutboardPart) -> Result<(), StoreError> {
        self.sound()?;
        let committed = self.commit_now(record, outboard).await;
        if committed.as_ref().is_err_and(|error| error.kind() == StoreErrorKind::Quota) {
            return committed;
        }
        self.note(committed)
    }

    async fn commit_now(&mut self, mut record: UploadRecord, outboard: OutboardPart) -> Result<(), StoreError> {
        if !self.is_part() && self.room() == 0 {
            self.send_part().await?;
        }
        let tags = self.all_arrived().await?;
        if record.offset != self.end {
            return Err(StoreError::new(StoreErrorKind::Other, "committing other bytes than were written"));
        }
        if !self.is_part() && self.tails.len() >= TAILS_MAX {
            self.gather().await?;
            self.obsolete.append(&mut self.tails);
        }
        self.store_tail().await?;
        record.epoch = self.epoch;
        let (owner, quota_bytes, held) = (record.owner, record.quota_bytes, record.held_bytes());
        let held_before = self.draft.record.as_ref().map_or(0, UploadRecord::held_bytes);
        let mut draft = self.draft.clone();
        append_outboard(&self.shared, self.id, &mut draft.outboard, outboard).await?;
        draft.record = Some(record);
        self.enter_tags(&mut draft, tags);
        draft.tails.clone_from(&self.tails);
        let hold = Entry::Hold { upload: self.id, bytes: held };
        if held > held_before {
            self.shared.bucket.charge(owner, hold.clone(), quota_bytes).await?;
        }
        self.save(draft).await?;
        self.sent.clear();
        self.arrived.clear();
        if held < held_before
            && let Err(error) = self.shared.bucket.charge(owner, hold, u64::MAX).await
        {
            tracing::warn!(error = %error, "an owner stays charged with bytes until the next recount");
        }
        self.shared.remove_tails_later(std::mem::take(&mut self.obsolete));
        if self.shared.budget.is_scarce() {
            self.buffer.clear();
        }
        Ok(())
    }

    /// Enters parts that arrived, and the numbers that the next ones may have.
    fn enter_tags(&self, draft: &mut Draft, tags: Vec<PartTag>) {
        if let Some(parts) = &mut draft.parts {
            parts.tags.extend(tags);
            let reserved = self.next_number.saturating_add(RESERVED_PARTS).min(PART_NUMBER_MAX + 1);
            parts.reserved = parts.reserved.max(reserved);
        }
    }

    /// Writes the upload's object, unless somebody else has.
    async fn save(&mut self, mut draft: Draft) -> Result<(), StoreError> {
        draft.epoch = self.epoch;
        draft.node = self.shared.node();
        let expect = self.tag.as_ref().map_or(Expect::Absent, Expect::Tag);
        match self.shared.bucket.swap(&upload_key(self.id), expect, encode(&draft)?).await? {
            Swap::Lost => Err(StoreError::new(StoreErrorKind::Stale, "committing an upload")),
            Swap::Made(tag) => {
                self.tag = Some(tag);
                self.draft = draft;
                self.saved_at = Instant::now();
                Ok(())
            }
        }
    }

    pub(super) async fn complete(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        tail: Vec<Bytes>,
        outboard: OutboardPart,
    ) -> Result<(), StoreError> {
        self.sound()?;
        let record = record.map(|record| UploadRecord { epoch: self.epoch, ..record });
        if blob.announced {
            self.shared.announce(self.id, &blob).await?;
        }
        let completed = Box::pin(self.complete_now(blob, record, tail, outboard)).await;
        self.note(completed)
    }

    async fn complete_now(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        tail: Vec<Bytes>,
        outboard: OutboardPart,
    ) -> Result<(), StoreError> {
        let tail_bytes: u64 = tail.iter().map(|piece| piece.len() as u64).sum();
        if self.end + tail_bytes != blob.blob_bytes {
            return Err(StoreError::new(StoreErrorKind::Other, "completing an upload with other bytes than it has"));
        }
        // To ask costs a request and its time; to send so few bytes in vain costs hardly more, and is rare.
        let is_unasked = (1..=UNASKED_BYTES_MAX).contains(&blob.blob_bytes);
        if !is_unasked && self.complete_known(&blob, record.clone()).await? {
            return Ok(());
        }
        let mut draft = self.draft.clone();
        append_outboard(&self.shared, self.id, &mut draft.outboard, outboard).await?;
        if is_unasked && self.tag.is_none() {
            // On the heap, since records make it large.
            return Box::pin(self.complete_new(blob, record, tail, draft.outboard)).await;
        }
        let is_one_part = blob.blob_bytes <= self.part_bytes();
        let data = if draft.parts.is_some() || !self.sent.is_empty() || !is_one_part {
            self.write(self.end, tail).await?;
            self.gather().await?;
            if self.buffer.len() > 0 {
                self.send_part().await?;
            }
            let tags = self.all_arrived().await?;
            draft.parts.clone_from(&self.draft.parts);
            self.enter_tags(&mut draft, tags);
            draft.parts.as_ref().map(|parts| parts.name.clone())
        } else if blob.blob_bytes > 0 {
            Some(self.put_whole(&blob, tail).await?)
        } else {
            None
        };
        let place = Place { data, outboard: std::mem::take(&mut draft.outboard) };
        if self.tag.is_none() {
            // Nobody else knows of this upload.
            let stored = self.shared.store_blob(self.id, &blob, Some(&place), None, None).await;
            if matches!(stored, Ok(Stored::NotNeeded)) {
                self.shared.remove_place(&place).await?;
            }
            stored?;
            return match record {
                Some(record) => self.save(Draft { record: Some(record), ..Draft::default() }).await,
                None => Ok(()),
            };
        }
        let charge = random_name()?;
        let entry = Entry::Settle(Open::new(&charge, blob.id, blob.blob_bytes, Some(self.id)));
        match self.shared.bucket.charge(blob.owner, entry, blob.quota_bytes).await {
            Err(error) if error.kind() == StoreErrorKind::Quota && is_unasked => {
                self.shared.remove_place(&place).await?;
                return if self.complete_known(&blob, record).await? { Ok(()) } else { Err(error) };
            }
            charged => charged?,
        }
        draft.tails.clone_from(&self.tails);
        draft.ending = Some(Ending { blob, record, place, charge });
        self.save(draft).await?;
        if let Some(tag) = &self.tag {
            let (shared, ended) = (&self.shared, self.draft.clone());
            if is_unasked {
                Box::pin(shared.finish_first(self.id, ended, tag)).await?;
            } else {
                Box::pin(shared.finish(self.id, ended, tag)).await?;
            }
        }
        self.shared.remove_tails_later(std::mem::take(&mut self.obsolete));
        Ok(())
    }

    /// Makes a small upload that nobody else knows of a blob: its bytes are written while its owner is charged.
    async fn complete_new(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        tail: Vec<Bytes>,
        outboard: StoredOutboard,
    ) -> Result<(), StoreError> {
        let (shared, charge) = (Arc::clone(&self.shared), random_name()?);
        let (owner, bytes) = (blob.owner, blob.blob_bytes);
        let entry = Entry::Settle(Open::new(&charge, blob.id, bytes, Some(self.id)));
        let charging = shared.bucket.charge(owner, entry, blob.quota_bytes);
        let (data, charged) = tokio::join!(self.put_whole(&blob, tail), charging);
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                shared.refund(charged.is_ok(), owner, bytes, &charge).await;
                return Err(error);
            }
        };
        let place = Place { data: Some(data), outboard };
        if let Err(error) = charged {
            shared.remove_place(&place).await?;
            // Whoever has the blob needs no room for it.
            let is_refused = error.kind() == StoreErrorKind::Quota;
            return if is_refused && self.complete_known(&blob, record).await? { Ok(()) } else { Err(error) };
        }
        if !shared.store_first(&blob, &place, &charge).await?
            && shared.store_blob(self.id, &blob, Some(&place), Some(&charge), None).await? == Stored::NotNeeded
        {
            shared.remove_place(&place).await?;
        }
        match record {
            Some(record) => self.save(Draft { record: Some(record), ..Draft::default() }).await,
            None => Ok(()),
        }
    }

    /// Makes the owner one of those who have the blob, when that has its bytes already: they are not sent again. Whoever
    /// asks has shown that they have them. False when there is no such blob.
    async fn complete_known(&mut self, blob: &NewBlob, record: Option<UploadRecord>) -> Result<bool, StoreError> {
        if self.shared.pointer(blob.id).await?.0.place.is_none() {
            return Ok(false);
        }
        self.still_ours().await?;
        if self.shared.store_blob(self.id, blob, None, None, None).await? != Stored::NotNeeded {
            return Ok(false);
        }
        self.end_without_bytes(record).await?;
        Ok(true)
    }

    /// Whether nobody has claimed the upload since.
    async fn still_ours(&self) -> Result<(), StoreError> {
        let stored = self.shared.draft(self.id).await?;
        if stored.map(|(_, tag)| tag) == self.tag {
            Ok(())
        } else {
            Err(StoreError::new(StoreErrorKind::Stale, "completing an upload"))
        }
    }

    /// Ends an upload whose blob has bytes already.
    async fn end_without_bytes(&mut self, record: Option<UploadRecord>) -> Result<(), StoreError> {
        self.sending.abort_all();
        let mut unneeded = self.draft.clone();
        unneeded.tails.extend(self.tails.drain(..).chain(self.obsolete.drain(..)));
        match (record, &self.tag) {
            (Some(record), _) => self.save(Draft { record: Some(record), ..Draft::default() }).await?,
            (None, Some(_)) => self.shared.bucket.remove(&upload_key(self.id)).await?,
            (None, None) => {}
        }
        self.shared.remove_bytes(&unneeded).await
    }

    /// Writes an upload that has no parts as one object, and gives its name.
    async fn put_whole(&mut self, blob: &NewBlob, tail: Vec<Bytes>) -> Result<String, StoreError> {
        let bytes = match &tail[..] {
            // Whoever gave it holds it, and counts it.
            [only] if self.end == 0 => only.clone(),
            _ => {
                self.write(self.end, tail).await?;
                self.gather().await?;
                self.buffer.take()
            }
        };
        let name = format!("{}.{}", new_name(self.id)?, blob.id);
        self.shared.bucket.put(&data_key(&name), bytes).await?;
        Ok(name)
    }
}

/// Adds `part` to an outboard; what is too much for the upload's object goes to one of its own.
async fn append_outboard(
    shared: &Shared,
    id: UploadId,
    outboard: &mut StoredOutboard,
    part: OutboardPart,
) -> Result<(), StoreError> {
    if part.cvs.is_empty() {
        return Ok(());
    }
    let known = outboard.objects.iter().map(|object| object.bytes).sum::<u64>() + outboard.inline.len() as u64;
    if part.first_group * CV_BYTES as u64 != known {
        return Err(StoreError::new(StoreErrorKind::Other, "adding to an outboard that ends elsewhere"));
    }
    outboard.inline.extend(part.cvs);
    if outboard.inline.len() > OUTBOARD_INLINE_MAX {
        let bytes = Bytes::from(std::mem::take(&mut outboard.inline));
        let object = Tail { name: new_name(id)?, bytes: bytes.len() as u64 };
        shared.bucket.put(&outboard_key(&object.name), bytes).await?;
        outboard.objects.push(object);
    }
    Ok(())
}
