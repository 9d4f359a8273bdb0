//! A file that is still arriving: opened bytes beside their final place, until the last one is checked.
//!
//! A download of an hour must not begin again because a train went through a tunnel, and half a video must never stand
//! under the video's name. So bytes go to `NAME.<blob>.part`; a later try goes on at the last whole segment; the name
//! appears when all of it is there, checked and synced.
//!
//! What an earlier process left in the part was opened then, but a power cut may have damaged it since. So it is sealed
//! again, in memory, into the hash of the blob (sealing is deterministic): in the end the BLAKE3 of everything must be
//! the blob's id, which covers what is on the disk from before as well as what came now.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::BlobHasher;
use waxwing_seal::blob::{Layout, OpenError, Opener, SealPlan, SegmentDigest};
use waxwing_seal::blob_ref::BlobRef;

use crate::ClientError;
use crate::files;

/// Characters of the blob's id in the part's name: two blobs of one name do not meet.
const ID_CHARS: usize = 8;

/// A file that is still arriving, held by this process alone.
pub(crate) struct PartFile {
    path: PathBuf,
    target: PathBuf,
    file: File,
    blob: BlobId,
    layout: Layout,
    opener: Opener,
    hasher: BlobHasher,
}

impl PartFile {
    /// Opens the part of `reference`'s file beside `target`, with what an earlier try left in it. Blocks.
    ///
    /// # Errors
    /// [`ClientError::Busy`] when another process holds it; [`ClientError::File`].
    pub(crate) fn open(reference: &BlobRef, target: &Path) -> Result<Self, ClientError> {
        let id = reference.id.to_string();
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", &id[..ID_CHARS]));
        let path = target.with_file_name(name);
        let failed = || ClientError::file(&path);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ClientError::Busy { path: target.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed()(error)),
        }
        let layout = reference.layout()?;
        let held = whole_segments(&layout, file.metadata().map_err(failed())?.len());
        let hasher = reseal(reference, layout, held, &mut file).map_err(failed())?;
        let kept = if held == 0 { 0 } else { layout.file_range(held - 1).end };
        file.set_len(kept).and_then(|()| file.seek(SeekFrom::Start(kept))).map_err(failed())?;
        let opener = Opener::at_segment(&reference.key, &reference.header, layout, held);
        Ok(Self { path, target: target.to_owned(), file, blob: reference.id, layout, opener, hasher })
    }

    /// The first byte of the blob that is still needed; its end when none is.
    pub(crate) fn next_byte(&self) -> u64 {
        let next = self.opener.segments_open();
        if next < self.layout.segments() { self.layout.sealed_range(next).start } else { self.layout.sealed_bytes() }
    }

    /// Opens and writes what comes over `sealed`, until its end. Blocks. What was opened before an error is kept.
    ///
    /// # Errors
    /// [`ClientError::Sealed`] when a segment does not open; [`ClientError::File`].
    pub(crate) fn absorb(
        &mut self,
        reference: &BlobRef,
        sealed: &mut mpsc::Receiver<Bytes>,
    ) -> Result<(), ClientError> {
        // A try that was cut amid a segment begins that segment again.
        self.opener = Opener::at_segment(&reference.key, &reference.header, self.layout, self.opener.segments_open());
        let mut pending = Vec::new();
        while let Some(bytes) = sealed.blocking_recv() {
            let mut written = Ok(());
            let opened = self.opener.push(&bytes, |plain| {
                if written.is_ok() {
                    written = self.file.write_all(plain);
                }
            });
            written.map_err(ClientError::file(&self.path))?;
            // Hashed first: the segments before a bad one are kept.
            self.hash(&mut pending, &bytes);
            opened.map_err(|source| ClientError::Sealed { blob: self.blob, source })?;
        }
        Ok(())
    }

    /// Hashes what belongs to whole segments; a rest waits for the bytes that complete it.
    fn hash(&mut self, pending: &mut Vec<u8>, bytes: &[u8]) {
        let whole = self.next_byte() - self.hasher.offset();
        let Ok(whole) = usize::try_from(whole) else { return };
        if whole < pending.len() {
            pending.extend_from_slice(bytes);
            return;
        }
        self.hasher.update(pending, |_| ());
        let (now, later) = bytes.split_at(whole - pending.len());
        self.hasher.update(now, |_| ());
        pending.clear();
        pending.extend_from_slice(later);
    }

    /// Gives the file up. Blocks.
    pub(crate) fn discard(self) {
        // What cannot be removed is in nobody's way: a later try goes on from it.
        let _ = std::fs::remove_file(&self.path);
    }

    /// Ends the file: checks that all of it came and is the blob, syncs it, and gives it its name, or one with a number
    /// when that is taken. Blocks.
    ///
    /// # Errors
    /// [`ClientError::Sealed`] when bytes are missing; [`ClientError::WrongBlob`] when they are not the blob's, and the
    /// part is removed then; [`ClientError::File`].
    pub(crate) fn finish(self, server: &str) -> Result<PathBuf, ClientError> {
        let (expected, actual) = (self.layout.sealed_bytes(), self.next_byte());
        if actual < expected {
            let source = OpenError::Truncated { expected, actual };
            return Err(ClientError::Sealed { blob: self.blob, source });
        }
        let actual = self.hasher.finish(|_| ());
        if actual != self.blob {
            let _ = std::fs::remove_file(&self.path);
            return Err(ClientError::WrongBlob { server: server.to_owned(), expected: self.blob, actual });
        }
        let saved = self.file.sync_all().and_then(|()| files::save_new(&self.path, &self.target));
        saved.map_err(ClientError::file(&self.target))
    }
}

/// How many segments of the file the first `bytes` of it hold whole.
fn whole_segments(layout: &Layout, bytes: u64) -> u32 {
    if bytes >= layout.true_bytes() {
        return layout.file_segments();
    }
    // The segment in which the file ends early is the first that is not whole.
    layout.segment_of(bytes)
}

/// The hash of the blob's first `segments`, from the plaintext in `file`.
fn reseal(reference: &BlobRef, layout: Layout, segments: u32, file: &mut File) -> io::Result<BlobHasher> {
    let mut hasher = BlobHasher::new();
    let sealer = SealPlan { key: reference.key.clone(), header: reference.header, layout }.sealer();
    let mut segment = Vec::new();
    for index in 0..segments {
        let plain = sealer.prepare(index, &mut segment);
        file.read_exact(plain)?;
        let digest = SegmentDigest::of(plain);
        // These bytes stay in memory: should they differ from what was sealed once, nobody sees them.
        sealer.seal(index, &digest, &mut segment).map_err(io::Error::other)?;
        hasher.update(&segment, |_| ());
    }
    Ok(hasher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_seal::blob::{BlobHeader, BlobKey};

    /// A file of `bytes`, sealed.
    fn sealed(file: &[u8]) -> (BlobRef, Vec<u8>) {
        let plan = SealPlan {
            key: BlobKey::generate(),
            header: BlobHeader::generate(),
            layout: Layout::of(file.len() as u64).unwrap(),
        };
        let sealer = plan.sealer();
        let (mut blob, mut segment) = (Vec::new(), Vec::new());
        for index in 0..plan.layout.segments() {
            let range = plan.layout.file_range(index);
            let plain = &file[range.start as usize..range.end as usize];
            sealer.prepare(index, &mut segment).copy_from_slice(plain);
            sealer.seal(index, &SegmentDigest::of(plain), &mut segment).unwrap();
            blob.extend_from_slice(&segment);
        }
        let id = BlobId::from_bytes(*blake3::hash(&blob).as_bytes());
        (BlobRef::new(id, plan.key, plan.header, file.len() as u64), blob)
    }

    fn file(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn absorb(part: &mut PartFile, reference: &BlobRef, bytes: &[u8], piece: usize) -> Result<(), ClientError> {
        let pieces: Vec<_> = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let (tx, mut rx) = mpsc::channel(pieces.len().max(1));
        pieces.into_iter().for_each(|piece| tx.try_send(piece).unwrap());
        drop(tx);
        part.absorb(reference, &mut rx)
    }

    /// Wherever a download was cut, also in another process, it goes on at a segment's border and ends whole.
    #[test]
    fn a_part_goes_on_where_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let content = file(300_000);
        let (reference, blob) = sealed(&content);
        for cut in [0, 1, 65_535, 65_536, 65_537, 200_000, blob.len() - 1, blob.len()] {
            for reopened in [false, true] {
                let target = dir.path().join(format!("{cut}-{reopened}.bin"));
                let mut part = PartFile::open(&reference, &target).unwrap();
                absorb(&mut part, &reference, &blob[..cut], 10_007).unwrap();
                if reopened {
                    drop(part);
                    part = PartFile::open(&reference, &target).unwrap();
                }
                let next = part.next_byte() as usize;
                assert!(next <= cut && cut - next < 65_536 * 2, "{cut}");
                absorb(&mut part, &reference, &blob[next..], 40_000).unwrap();
                let saved = part.finish("test").unwrap();
                assert_eq!(saved, target);
                assert!(std::fs::read(saved).unwrap() == content);
            }
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().all(|entry| !entry.unwrap().path().ends_with("part")));
    }

    /// A power cut may leave anything in a part.
    #[test]
    fn a_part_damaged_on_disk_never_becomes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (reference, blob) = sealed(&file(300_000));
        let target = dir.path().join("photo.jpg");
        let mut part = PartFile::open(&reference, &target).unwrap();
        absorb(&mut part, &reference, &blob[..200_000], 10_007).unwrap();
        let path = part.path.clone();
        drop(part);
        let mut damaged = std::fs::read(&path).unwrap();
        damaged[70_000] = !damaged[70_000];
        std::fs::write(&path, damaged).unwrap();

        let mut part = PartFile::open(&reference, &target).unwrap();
        let next = part.next_byte() as usize;
        assert!(next > 0);
        absorb(&mut part, &reference, &blob[next..], 40_000).unwrap();
        assert!(matches!(part.finish("test"), Err(ClientError::WrongBlob { .. })));
        assert!(!target.exists() && !path.exists(), "the next try begins anew");
    }

    #[test]
    fn missing_and_changed_bytes_never_become_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (reference, mut blob) = sealed(&file(300_000));
        let target = dir.path().join("photo.jpg");
        let mut part = PartFile::open(&reference, &target).unwrap();
        absorb(&mut part, &reference, &blob[..blob.len() - 1], 10_007).unwrap();
        let missing = part.finish("test");
        assert!(matches!(missing, Err(ClientError::Sealed { source: OpenError::Truncated { .. }, .. })));

        blob[150_000] ^= 1;
        let other = dir.path().join("other.jpg");
        let mut part = PartFile::open(&reference, &other).unwrap();
        let changed = absorb(&mut part, &reference, &blob, 10_007);
        assert!(matches!(changed, Err(ClientError::Sealed { source: OpenError::Tampered { segment: 2 }, .. })));
        assert_eq!(part.next_byte(), 2 * 65_536);
        assert!(!target.exists() && !other.exists());
    }

    #[test]
    fn one_process_at_a_time_writes_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let (reference, _) = sealed(b"hello");
        let target = dir.path().join("a.txt");
        let held = PartFile::open(&reference, &target).unwrap();
        assert!(matches!(PartFile::open(&reference, &target), Err(ClientError::Busy { .. })));
        drop(held);
        assert!(PartFile::open(&reference, &target).is_ok());
    }
}
