//! Charters and entries, as owners and authors sign them and as servers might forge them.

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::identity::{Base64, PublicKey, signed_bytes};
use crate::{AccountId, ChannelId, MsgId, Timestamp};

fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn author(n: u8) -> Author {
    let account_key = PublicKey(key(n).verifying_key().to_bytes());
    Author { account: AccountId::from_bytes([n; 16]), account_key }
}

/// A channel of 1 in which 2 writes as well.
fn first() -> Charter {
    let Author { account: owner, account_key: owner_key } = author(1);
    Charter {
        channel: ChannelId::from_bytes([9; 16]),
        epoch: 1,
        previous: None,
        owner,
        owner_key,
        authors: vec![author(1), author(2)],
        key_id: [5; 32],
        title: b"sealed".to_vec(),
        after: Position::default(),
        made_at: Timestamp::from_millis(1_000),
    }
}

fn next(before: &Charter, after: Position) -> Charter {
    let (epoch, previous) = (before.epoch + 1, Some(before.hash()));
    Charter { epoch, previous, after, authors: vec![author(1)], ..before.clone() }
}

fn sign(charter: &Charter, by: u8) -> SignedCharter {
    let bytes = charter.to_bytes();
    let signature = key(by).sign(&signed_bytes(CHANNEL_CHARTER_DOMAIN, &bytes));
    SignedCharter { charter: Base64(bytes), signature: Base64(signature.to_bytes().to_vec()) }
}

fn entry(charter: &Charter, after: Position, by: u8, words: &str) -> Vec<u8> {
    let author = charter.author(AccountId::from_bytes([by; 16])).unwrap_or(7);
    let msg_id = MsgId::from_bytes([after.seq as u8 + 1; 16]);
    let entry = Entry { epoch: charter.epoch, after, author, msg_id, body: words.into() };
    signed(charter, &entry, by)
}

fn signed(charter: &Charter, entry: &Entry, by: u8) -> Vec<u8> {
    let bytes = entry.to_bytes();
    let message = Entry::signed_message(charter.channel, &bytes);
    let signature = key(by).sign(&signed_bytes(CHANNEL_ENTRY_DOMAIN, &message)).to_bytes().to_vec();
    SignedEntry { entry: bytes, signature }.to_bytes()
}

#[test]
fn a_log_is_read_as_it_was_written() {
    let charter = sign(&first(), 1).verify(None).unwrap();
    assert_eq!(charter, first());
    let mut at = Position::default();
    for (by, words) in [(1, "one"), (2, "two"), (1, "three")] {
        let bytes = entry(&charter, at, by, words);
        let (read, position) = SignedEntry::verify(&bytes, &charter, &at).unwrap();
        assert_eq!((read.author, &read.body[..]), (u32::from(by) - 1, words.as_bytes()));
        assert_eq!(position.seq, at.seq + 1);
        at = position;
    }
    let later = next(&charter, at);
    assert_eq!(sign(&later, 1).verify(Some(&charter)), Ok(later.clone()));
    let bytes = entry(&later, at, 1, "four");
    assert!(SignedEntry::verify(&bytes, &later, &at).is_ok());
}

#[test]
fn whoever_is_no_author_any_more_writes_nothing() {
    let (charter, at) = (first(), Position { seq: 3, hash: [3; 32] });
    let later = next(&charter, at);
    let refused = |bytes: &[u8], charter| SignedEntry::verify(bytes, charter, &at).unwrap_err();
    assert_eq!(refused(&entry(&charter, at, 2, "still here"), &later), ChannelError::Epoch { epoch: 1 });
    let unlisted = ChannelError::Malformed("an author whom the charter does not have");
    assert_eq!(refused(&entry(&later, at, 2, "still here"), &later), unlisted);
    let posing = Entry { epoch: 2, after: at, author: 0, msg_id: MsgId::from_bytes([1; 16]), body: vec![1] };
    assert_eq!(refused(&signed(&later, &posing, 2), &later), ChannelError::Signature);
    // Behind the entry at which the charter began, with the server's help.
    let before = Position { seq: 2, hash: [2; 32] };
    let late = SignedEntry::verify(&entry(&later, before, 1, "x"), &later, &before).unwrap_err();
    assert_eq!(late, ChannelError::Epoch { epoch: 2 });
}

/// Two readers who were shown different entries are told so by the next charter.
#[test]
fn a_charter_tells_one_log_from_another() {
    let charter = first();
    let at =
        |words| SignedEntry::verify(&entry(&charter, Position::default(), 1, words), &charter, &Position::default());
    let (mine, theirs) = (at("one").unwrap().1, at("another").unwrap().1);
    let charters = [charter.clone(), next(&charter, mine)];
    assert_eq!(charter_for(&charters, &Position::default()).unwrap().epoch, 1);
    assert_eq!(charter_for(&charters, &mine).unwrap().epoch, 2);
    assert!(matches!(charter_for(&charters, &theirs), Err(ChannelError::Follows(_))));
    assert!(matches!(charter_for(&[], &mine), Err(ChannelError::Follows(_))));
}

/// What a server could do with entries that it holds.
#[test]
fn a_server_that_reorders_drops_replays_or_moves_entries_is_found_out() {
    let charter = first();
    let one = entry(&charter, Position::default(), 1, "one");
    let (_, at_one) = SignedEntry::verify(&one, &charter, &Position::default()).unwrap();
    let two = entry(&charter, at_one, 2, "two");
    let (_, at_two) = SignedEntry::verify(&two, &charter, &at_one).unwrap();
    let follows = |bytes: &[u8], at: &Position| SignedEntry::verify(bytes, &charter, at).unwrap_err();
    assert!(matches!(follows(&two, &Position::default()), ChannelError::Follows(_)), "dropped");
    assert!(matches!(follows(&one, &at_two), ChannelError::Follows(_)), "replayed");
    let other = entry(&charter, Position::default(), 1, "another one");
    let (_, at_other) = SignedEntry::verify(&other, &charter, &Position::default()).unwrap();
    assert!(matches!(follows(&two, &at_other), ChannelError::Follows(_)), "swapped under it");
    let elsewhere = Charter { channel: ChannelId::from_bytes([8; 16]), ..charter.clone() };
    let moved = SignedEntry::verify(&one, &elsewhere, &Position::default());
    assert_eq!(moved.unwrap_err(), ChannelError::Signature);
    for at in 0..one.len() {
        let mut changed = one.clone();
        changed[at] ^= 1;
        assert!(SignedEntry::verify(&changed, &charter, &Position::default()).is_err(), "byte {at}");
    }
}

#[test]
fn charters_are_the_owners_alone_and_follow_one_another() {
    let charter = first();
    assert_eq!(sign(&charter, 2).verify(None), Err(ChannelError::Signature));
    let later = next(&charter, Position::default());
    assert_eq!(sign(&later, 2).verify(Some(&charter)), Err(ChannelError::Signature));
    let follows =
        |later: Charter| assert!(matches!(sign(&later, 1).verify(Some(&charter)), Err(ChannelError::Follows(_))));
    assert!(sign(&later, 1).verify(Some(&charter)).is_ok());
    follows(Charter { epoch: 3, ..later.clone() });
    follows(Charter { previous: Some([0; 32]), ..later.clone() });
    follows(Charter { channel: ChannelId::from_bytes([8; 16]), ..later.clone() });
    follows(charter.clone());
    assert!(matches!(sign(&later, 1).verify(None), Err(ChannelError::Follows(_))));
    let begun = Charter { after: Position { seq: 5, hash: [5; 32] }, ..later.clone() };
    let back = Charter { after: Position { seq: 4, hash: [4; 32] }, ..next(&begun, begun.after) };
    assert!(matches!(sign(&back, 1).verify(Some(&begun)), Err(ChannelError::Follows(_))));
    // The owner cannot be somebody else than who is listed, nor can authors be listed twice or too many.
    for authors in [vec![author(2)], vec![author(2), author(1)], vec![author(1), author(1)]] {
        assert!(matches!(
            sign(&Charter { authors, ..charter.clone() }, 1).verify(None),
            Err(ChannelError::Malformed(_))
        ));
    }
    let authors = (0..=CHANNEL_AUTHORS_MAX as u8).map(|n| author(n + 1)).collect();
    assert_eq!(sign(&Charter { authors, ..charter.clone() }, 1).verify(None), Err(ChannelError::Full));
    let title = vec![0; CHANNEL_SEALED_TITLE_BYTES_MAX + 1];
    assert!(sign(&Charter { title, ..charter.clone() }, 1).verify(None).is_err());
    let signed = sign(&charter, 1);
    assert_eq!(SignedCharter::from_bytes(&signed.to_bytes()), Ok(signed));
}

#[test]
fn a_page_has_one_id_and_a_bounded_length() {
    let page = Page { first_seq: 4, entries: vec![vec![1; 300], vec![2; 5]] };
    assert_eq!(Page::from_bytes(&page.to_bytes()), Ok(page.clone()));
    let other = Page { first_seq: 5, ..page.clone() };
    assert_ne!(other.blob(), page.blob());
    assert!(fills_page(CHANNEL_PAGE_ENTRIES, 1) && fills_page(1, CHANNEL_PAGE_BYTES) && !fills_page(255, 1000));
    let mut entries = vec![vec![1; 1028]; CHANNEL_PAGE_ENTRIES - 1];
    assert!(!fills_page(entries.len(), entries.iter().map(Vec::len).sum()));
    entries.push(vec![1; crate::frames::BODY_BYTES_MAX]);
    assert!(Page { first_seq: u64::MAX, entries }.to_bytes().len() <= Page::BYTES_MAX);
    assert!(Page::from_bytes(&vec![0; Page::BYTES_MAX + 1]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Charter::from_bytes(&bytes);
        let _ = SignedCharter::from_bytes(&bytes);
        let _ = Entry::from_bytes(&bytes);
        let _ = Page::from_bytes(&bytes);
        prop_assert!(SignedEntry::verify(&bytes, &first(), &Position::default()).is_err());
    }
}
