//! What a turn changes, all of it or nothing, in the order in which it was asked for.

use byteview::ByteView;
use fjall::Slice;

use super::table::Table;

/// A record put, or one removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Of which table.
    pub(super) table: usize,
    pub(super) key: Slice,
    /// `None` removes it.
    pub(super) value: Option<Slice>,
}

/// Changes that are committed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch(pub(super) Vec<Change>);

impl Batch {
    pub(super) fn insert(&mut self, table: &Table, key: impl Into<Slice>, value: impl Into<Slice>) {
        self.0.push(Change { table: table.number(), key: key.into(), value: Some(value.into()) });
    }

    pub(super) fn remove(&mut self, table: &Table, key: impl Into<Slice>) {
        self.0.push(Change { table: table.number(), key: key.into(), value: None });
    }

    /// Adds it to `out` as it stands in a journal.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for Change { table, key, value } in &self.0 {
            // A removed record has a length that no value has.
            let len = value.as_ref().map_or(REMOVED, |value| length(value));
            out.push(u8::try_from(*table).expect("tables are few"));
            out.extend_from_slice(&length(key).to_be_bytes());
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(key);
            out.extend_from_slice(value.as_deref().unwrap_or_default());
        }
    }

    /// Reads it back; `None` when it is not a batch of `tables` tables. Keys and values are parts of `bytes`: hundreds of
    /// thousands of them go at once when a generation ends, and each that had memory of its own would have to be given
    /// back to the allocator, which then halts whoever asks it for some.
    pub(super) fn decode(bytes: &ByteView, tables: usize) -> Option<Self> {
        let (mut changes, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let table = usize::from(take(bytes, &mut at, 1)?[0]);
            let key_bytes = number(bytes, &mut at)?;
            let value_bytes = number(bytes, &mut at)?;
            let key = take(bytes, &mut at, key_bytes.try_into().ok()?)?.into();
            let value = match value_bytes {
                REMOVED => None,
                bytes_of_value => Some(take(bytes, &mut at, bytes_of_value.try_into().ok()?)?.into()),
            };
            if table >= tables {
                return None;
            }
            changes.push(Change { table, key, value });
        }
        Some(Self(changes))
    }
}

/// Stands for the length of a record that is removed.
const REMOVED: u32 = u32::MAX;

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB")
}

/// The next `count` bytes, which share the memory of all.
fn take(bytes: &ByteView, at: &mut usize, count: usize) -> Option<ByteView> {
    let end = at.checked_add(count).filter(|end| *end <= bytes.len())?;
    let taken = bytes.slice(*at..end);
    *at = end;
    Some(taken)
}

fn number(bytes: &ByteView, at: &mut usize) -> Option<u32> {
    let four = bytes.get(*at..)?.first_chunk()?;
    *at += 4;
    Some(u32::from_be_bytes(*four))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Change> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        (0..4usize, bytes(), prop::option::of(bytes())).prop_map(|(table, key, value)| Change {
            table,
            key: key.into(),
            value: value.map(Slice::from),
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back_and_what_was_cut_is_not(changes in prop::collection::vec(change(), 1..20)) {
            let batch = Batch(changes);
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            let all = ByteView::from(&bytes[..]);
            prop_assert_eq!(Batch::decode(&all, 4), Some(batch.clone()));
            prop_assert_ne!(Batch::decode(&all.slice(..bytes.len() - 1), 4), Some(batch));
        }

        #[test]
        fn noise_is_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            Batch::decode(&bytes.into(), 4);
        }
    }
}
