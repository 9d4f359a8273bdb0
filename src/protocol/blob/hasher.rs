//! Hashing a blob as it arrives, so that the hash can stop with the process and go on in another.
//!
//! A plain BLAKE3 hasher dies with its process, and an upload of many gigabytes that resumes after a restart would have
//! to be read again from its first byte. This one keeps the stack of subtree chaining values, a few hundred bytes; a
//! resume restores it and re-reads less than one chunk group.
//!
//! The last merge of a BLAKE3 tree is flagged as the root, and which merge is the last is known only at the end. So
//! subtrees merge lazily, when another group comes, never when they become complete; and for the first group, which may
//! turn out to be the whole blob, both its chaining value and its hash as a root are kept.
//!
//! Source: the BLAKE3 paper, §2.4 (tree), §5.1 (lazy merging); `blake3::hazmat`.

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::{CV_BYTES, GROUP_BYTES};
use crate::BlobId;

/// A BLAKE3 hash of a blob in progress; gives the chaining value of every chunk group as a by-product.
#[derive(Clone, Debug)]
pub struct BlobHasher {
    state: HasherState,
    /// The group being filled, and how many bytes it has; always fewer than [`GROUP_BYTES`].
    group: blake3::Hasher,
    group_bytes: u64,
}

/// Where a [`BlobHasher`] stands at the end of its last complete chunk group: all that must be stored to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HasherState {
    /// Complete groups absorbed.
    groups: u64,
    /// Chaining values of complete subtrees, largest first.
    stack: Vec<ChainingValue>,
    /// The hash of the first group as a root: the blob's id should there be no other.
    first_as_root: [u8; 32],
}

/// Why stored bytes are not a [`HasherState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the stored state of a blob hash")]
pub struct StateError;

impl BlobHasher {
    /// A hash of nothing yet.
    pub fn new() -> Self {
        Self::resume(HasherState::default())
    }

    /// Goes on from a stored state. The next byte to absorb is the one at [`HasherState::offset`].
    pub fn resume(state: HasherState) -> Self {
        let group = group_hasher(state.groups);
        Self { state, group, group_bytes: 0 }
    }

    /// How many bytes have been absorbed.
    pub const fn offset(&self) -> u64 {
        self.state.offset() + self.group_bytes
    }

    /// The state at the end of the last complete chunk group, at most [`GROUP_BYTES`] - 1 before [`Self::offset`].
    pub const fn state(&self) -> &HasherState {
        &self.state
    }

    /// Absorbs `bytes`; calls `on_group` with the chaining value of every chunk group they complete, in order: the
    /// entries of the outboard.
    pub fn update(&mut self, mut bytes: &[u8], mut on_group: impl FnMut(&ChainingValue)) {
        while !bytes.is_empty() {
            let room = usize::try_from(GROUP_BYTES - self.group_bytes).expect("a group's size fits usize");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.group.update(now);
            self.group_bytes += now.len() as u64;
            bytes = later;
            if self.group_bytes == GROUP_BYTES {
                on_group(&self.close_group());
            }
        }
    }

    /// Ends the hash: the blob's id. Calls `on_group` with the chaining value of the last group when it is a partial
    /// one of several.
    pub fn finish(mut self, mut on_group: impl FnMut(&ChainingValue)) -> BlobId {
        if self.state.groups == 0 {
            return BlobId::from_bytes(*self.group.finalize().as_bytes());
        }
        if self.group_bytes > 0 {
            on_group(&self.close_group());
        }
        self.state.root()
    }

    fn close_group(&mut self) -> ChainingValue {
        if self.state.groups == 0 {
            self.state.first_as_root = *self.group.finalize().as_bytes();
        }
        let cv = self.group.finalize_non_root();
        self.state.push(cv);
        self.group = group_hasher(self.state.groups);
        self.group_bytes = 0;
        cv
    }
}

impl Default for BlobHasher {
    fn default() -> Self {
        Self::new()
    }
}

fn group_hasher(index: u64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * GROUP_BYTES);
    hasher
}

impl HasherState {
    /// How many bytes the complete groups hold.
    pub const fn offset(&self) -> u64 {
        self.groups * GROUP_BYTES
    }

    /// Appends the chaining value of the next group. Merges what is complete first, since now it cannot be the root.
    pub(super) fn push(&mut self, cv: ChainingValue) {
        while self.stack.len() > self.groups.count_ones() as usize {
            self.merge_last();
        }
        self.stack.push(cv);
        self.groups += 1;
    }

    /// The root over all groups pushed, of which there must be at least one.
    pub(super) fn root(mut self) -> BlobId {
        if self.groups == 1 {
            return BlobId::from_bytes(self.first_as_root);
        }
        while self.stack.len() > 2 {
            self.merge_last();
        }
        let root = merge_subtrees_root(&self.stack[0], &self.stack[1], Mode::Hash);
        BlobId::from_bytes(*root.as_bytes())
    }

    fn merge_last(&mut self) {
        let right = self.stack.pop().expect("a merge needs two subtrees");
        let left = self.stack.pop().expect("a merge needs two subtrees");
        self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
    }

    /// The state as bytes to store: groups (little-endian u64), the first group's root hash, the stack.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + 32 + self.stack.len() * CV_BYTES);
        bytes.extend_from_slice(&self.groups.to_le_bytes());
        bytes.extend_from_slice(&self.first_as_root);
        bytes.extend(self.stack.iter().flatten());
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`StateError`] when the bytes cannot have come from it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let (groups, rest) = bytes.split_first_chunk::<8>().ok_or(StateError)?;
        let (first_as_root, rest) = rest.split_first_chunk::<32>().ok_or(StateError)?;
        let groups = u64::from_le_bytes(*groups);
        let (stack, []) = rest.as_chunks::<CV_BYTES>() else { return Err(StateError) };
        // Lazy merging holds one subtree a bit of the count of groups before the last, and that last one.
        let expected = if groups == 0 { 0 } else { (groups - 1).count_ones() as usize + 1 };
        if stack.len() != expected || groups > u64::MAX / GROUP_BYTES {
            return Err(StateError);
        }
        Ok(Self { groups, stack: stack.to_vec(), first_as_root: *first_as_root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GROUP: usize = GROUP_BYTES as usize;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn reference(bytes: &[u8]) -> BlobId {
        BlobId::from_bytes(*blake3::hash(bytes).as_bytes())
    }

    #[test]
    fn the_id_is_the_plain_blake3_hash_at_every_boundary() {
        for groups in 0..=9 {
            for around in [-1_i64, 0, 1] {
                let Ok(len) = usize::try_from(groups * GROUP as i64 + around) else { continue };
                let bytes = bytes(len);
                let mut hasher = BlobHasher::new();
                let mut cvs = 0;
                hasher.update(&bytes, |_| cvs += 1);
                assert_eq!(hasher.offset(), len as u64);
                assert_eq!(hasher.finish(|_| cvs += 1), reference(&bytes), "{len} bytes");
                assert!(cvs as u64 == super::super::group_count(len as u64) || len < GROUP);
            }
        }
    }

    #[test]
    fn damaged_states_are_refused() {
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes(3 * GROUP), |_| ());
        let stored = hasher.state().to_bytes();
        assert!(HasherState::from_bytes(&stored).is_ok());
        assert_eq!(HasherState::from_bytes(&stored[..stored.len() - 1]), Err(StateError));
        assert_eq!(HasherState::from_bytes(&stored[..stored.len() - CV_BYTES]), Err(StateError));
        assert_eq!(HasherState::from_bytes(&[]), Err(StateError));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However the bytes are cut and wherever the process dies, the id is the same and less than a group is re-read.
        #[test]
        fn a_hash_resumes_anywhere(len in 0..6 * GROUP, cuts in prop::collection::vec(0..6 * GROUP, 0..6)) {
            let bytes = bytes(len);
            let mut hasher = BlobHasher::new();
            let mut cvs = Vec::new();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(len)).collect();
            cuts.sort_unstable();
            for cut in cuts {
                let at = usize::try_from(hasher.offset()).unwrap();
                hasher.update(&bytes[at..cut.max(at)], |cv| cvs.push(*cv));
                let stored = hasher.state().to_bytes();
                let before = hasher.offset();
                hasher = BlobHasher::resume(HasherState::from_bytes(&stored).unwrap());
                prop_assert!(before - hasher.offset() < GROUP_BYTES);
            }
            let at = usize::try_from(hasher.offset()).unwrap();
            hasher.update(&bytes[at..], |cv| cvs.push(*cv));
            prop_assert_eq!(hasher.finish(|cv| cvs.push(*cv)), reference(&bytes));
        }
    }
}
