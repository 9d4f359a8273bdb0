//! What is written in channels: sealed once for everybody who has the channel's key, signed by its author.
//!
//! A channel has more readers than anybody could encrypt for one by one, and nobody knows them all. So there is one key, which
//! is in the invite, and it is replaced when somebody is to read no more. Whoever has it can read and, by itself, could write:
//! hence every entry is signed by its author's account key, and the owner says who the authors are.
//!
//! Each entry has a key of its own: HKDF-SHA256 of the channel's key and 32 random bytes that stand in front of the
//! ciphertext. So authors who know nothing of one another never use a nonce twice under one key. The cipher is AES-256-GCM.
//! A key that got out opens everything that was sealed under it; there is no ratchet in a channel, since whoever comes later is
//! to read what is there.

use std::fmt;

use prost::Message as _;
use waxwing_protocol::channel::{
    CHANNEL_CHARTER_DOMAIN, CHANNEL_ENTRY_DOMAIN, CHANNEL_TITLE_BYTES_MAX, Charter, Entry, SignedCharter, SignedEntry,
};
use waxwing_protocol::frames::BODY_BYTES_MAX;
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{AccountId, ChannelId, MsgId};
use zeroize::Zeroizing;

use crate::envelope::EnvelopeKey;
use crate::identity::AccountKey;
use crate::message::{self, Claim, Content, MessageError, PADDING_MARK, generated, padded_bytes, unpad};

/// Random bytes before a ciphertext.
const SALT_BYTES: usize = 32;

/// Bytes of an entry that are not its padded plaintext, at most: salt, nonce and tag; epoch, seq, hash, author, id; signature;
/// and what stands between them.
const OVERHEAD_BYTES_MAX: usize = SALT_BYTES + 12 + 16 + 10 + 10 + 32 + 5 + 16 + 64 + 64;

/// Bytes of a padded plaintext at most.
const PLAINTEXT_BYTES_MAX: usize =
    (BODY_BYTES_MAX - OVERHEAD_BYTES_MAX) / message::PADDING_BYTES * message::PADDING_BYTES;

/// The context under which BLAKE3 makes a key's name of the key.
const KEY_ID_CONTEXT: &str = "waxwing 2026 channel key id v1";

/// Purposes of keys derived from a channel's.
const ENTRY_PURPOSE: &str = "waxwing/channel-entry/v1";
const TITLE_PURPOSE: &str = "waxwing/channel-title/v1";

/// Why something of a channel could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelSealError {
    /// Not sealed under this key, or changed.
    #[error("it was not sealed under this key, or it was changed")]
    Undecryptable,
    /// What is in it is not to be believed.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// The key of a channel's entries. Erased from memory when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelKey(..)")
    }
}

/// Where an entry stands, apart from its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Byline {
    /// The channel.
    pub channel: ChannelId,
    /// Who wrote it.
    pub author: AccountId,
    /// Its id.
    pub msg_id: MsgId,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq)]
pub struct Post {
    /// The author's hybrid logical clock: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
    pub client_hlc: u64,
    /// Words, or a file.
    pub content: Content,
}

impl ChannelKey {
    /// A new key.
    pub fn generate() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).expect("the operating system provides randomness");
        Self(key)
    }

    /// The key in these bytes.
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*key))
    }

    /// Its bytes, for invites and the profile.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// What charters name it by.
    pub fn id(&self) -> [u8; 32] {
        blake3::derive_key(KEY_ID_CONTEXT, &*self.0)
    }

    /// A channel's title, sealed: of the same length whatever it says.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] when it is too long.
    pub fn seal_title(&self, title: &str) -> Result<Vec<u8>, MessageError> {
        if title.len() > CHANNEL_TITLE_BYTES_MAX {
            return Err(MessageError::Malformed("a title has at most 256 bytes"));
        }
        let mut padded = Zeroizing::new(title.as_bytes().to_vec());
        padded.push(PADDING_MARK);
        padded.resize(padded_bytes(CHANNEL_TITLE_BYTES_MAX), 0);
        Ok(EnvelopeKey::derive(&*self.0, TITLE_PURPOSE).seal(&padded))
    }

    /// The title that was sealed.
    ///
    /// # Errors
    /// [`ChannelSealError`] when it was sealed otherwise.
    pub fn open_title(&self, sealed: &[u8]) -> Result<String, ChannelSealError> {
        let padded =
            EnvelopeKey::derive(&*self.0, TITLE_PURPOSE).open(sealed).ok_or(ChannelSealError::Undecryptable)?;
        let end = padded.iter().rposition(|byte| *byte != 0).filter(|end| padded[*end] == PADDING_MARK);
        let title = &padded[..end.ok_or(MessageError::Padding)?];
        if title.len() > CHANNEL_TITLE_BYTES_MAX {
            return Err(MessageError::Malformed("a title has at most 256 bytes").into());
        }
        String::from_utf8(title.to_vec()).map_err(|_| MessageError::Malformed("a title that is no text").into())
    }

    /// What is said in an entry, padded and sealed.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`]; [`MessageError::Malformed`] when it is neither words nor a file.
    pub fn seal(&self, byline: &Byline, post: &Post) -> Result<Vec<u8>, MessageError> {
        if !matches!(post.content, Content::Text(_) | Content::File(_)) {
            return Err(MessageError::Malformed("a channel takes words and files"));
        }
        let mut inner = generated::ChannelInner {
            version: message::VERSION,
            channel: byline.channel.as_bytes().to_vec(),
            author: byline.author.as_bytes().to_vec(),
            msg_id: byline.msg_id.as_bytes().to_vec(),
            client_hlc: post.client_hlc,
            content: Some(post.content.to_wire()),
        };
        let bytes = padded_bytes(inner.encoded_len());
        let mut plaintext = Zeroizing::new(Vec::with_capacity(bytes));
        inner.encode(&mut *plaintext).expect("a Vec grows as needed");
        message::erase(inner.content.as_mut());
        if bytes > PLAINTEXT_BYTES_MAX {
            return Err(MessageError::TooLarge { bytes });
        }
        plaintext.push(PADDING_MARK);
        plaintext.resize(bytes, 0);
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).expect("the operating system provides randomness");
        Ok([&salt[..], &self.entry_key(&salt).seal(&plaintext)].concat())
    }

    /// What was said in an entry that its author has signed.
    ///
    /// # Errors
    /// [`ChannelSealError`] when it was sealed under another key, changed, or written elsewhere or by somebody else.
    pub fn open(&self, byline: &Byline, body: &[u8]) -> Result<Post, ChannelSealError> {
        let (salt, sealed) = body.split_first_chunk::<SALT_BYTES>().ok_or(ChannelSealError::Undecryptable)?;
        let plaintext = self.entry_key(salt).open(sealed).ok_or(ChannelSealError::Undecryptable)?;
        let inner = generated::ChannelInner::decode(unpad(&plaintext)?)
            .map_err(|_| MessageError::Malformed("not an inner plaintext"))?;
        let mismatch = |claim| Err(MessageError::Mismatch(claim).into());
        if inner.version != message::VERSION {
            return Err(MessageError::Version(inner.version).into());
        }
        if inner.channel != byline.channel.as_bytes() {
            return mismatch(Claim::Channel);
        }
        if inner.author != byline.author.as_bytes() {
            return mismatch(Claim::SenderAccount);
        }
        if inner.msg_id != byline.msg_id.as_bytes() {
            return mismatch(Claim::MessageId);
        }
        let content = match Content::from_wire(inner.content)? {
            content @ (Content::Text(_) | Content::File(_) | Content::Unsupported) => content,
            _ => return Err(MessageError::Malformed("something that is said between two alone").into()),
        };
        Ok(Post { client_hlc: inner.client_hlc, content })
    }

    fn entry_key(&self, salt: &[u8; SALT_BYTES]) -> EnvelopeKey {
        let secret = Zeroizing::new([&self.0[..], salt].concat());
        EnvelopeKey::derive(&secret, ENTRY_PURPOSE)
    }
}

impl AccountKey {
    /// A charter of a channel, signed.
    pub fn sign_charter(&self, charter: &Charter) -> SignedCharter {
        let bytes = charter.to_bytes();
        SignedCharter { signature: self.sign(CHANNEL_CHARTER_DOMAIN, &bytes), charter: Base64(bytes) }
    }

    /// An entry of a channel, signed: what lies in its log.
    pub fn sign_entry(&self, channel: ChannelId, entry: &Entry) -> Vec<u8> {
        let entry = entry.to_bytes();
        let signature = self.sign(CHANNEL_ENTRY_DOMAIN, &Entry::signed_message(channel, &entry)).0;
        SignedEntry { entry, signature }.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use waxwing_protocol::Timestamp;
    use waxwing_protocol::channel::{Author, Position};

    fn byline() -> Byline {
        let (channel, author) = (ChannelId::from_bytes([1; 16]), AccountId::from_bytes([2; 16]));
        Byline { channel, author, msg_id: MsgId::from_bytes([3; 16]) }
    }

    fn post(words: &str) -> Post {
        Post { client_hlc: 7, content: Content::Text(words.to_owned()) }
    }

    #[test]
    fn whoever_has_the_key_reads_and_nobody_else_does() {
        let key = ChannelKey::generate();
        let sealed = key.seal(&byline(), &post("to all")).unwrap();
        assert_eq!(key.open(&byline(), &sealed), Ok(post("to all")));
        let same = ChannelKey::from_bytes(&key.to_bytes());
        assert_eq!((same.open(&byline(), &sealed).is_ok(), same.id()), (true, key.id()));
        let turned = ChannelKey::generate();
        assert_eq!(turned.open(&byline(), &sealed), Err(ChannelSealError::Undecryptable));
        assert_ne!(turned.id(), key.id());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(&byline(), &changed), Err(ChannelSealError::Undecryptable), "byte {at}");
        }
        assert_eq!(format!("{key:?}"), "ChannelKey(..)");
    }

    /// A reader has the key as well: what an author wrote is not to be passed off as somebody else's, or as of elsewhere.
    #[test]
    fn what_is_sealed_belongs_to_its_author_and_its_channel() {
        let key = ChannelKey::generate();
        let sealed = key.seal(&byline(), &post("mine")).unwrap();
        let refused = |byline: Byline| key.open(&byline, &sealed).unwrap_err();
        let claim = |claim| ChannelSealError::Message(MessageError::Mismatch(claim));
        let channel = ChannelId::from_bytes([9; 16]);
        assert_eq!(refused(Byline { channel, ..byline() }), claim(Claim::Channel));
        let author = AccountId::from_bytes([9; 16]);
        assert_eq!(refused(Byline { author, ..byline() }), claim(Claim::SenderAccount));
        let msg_id = MsgId::from_bytes([9; 16]);
        assert_eq!(refused(Byline { msg_id, ..byline() }), claim(Claim::MessageId));
    }

    #[test]
    fn lengths_show_in_steps_and_titles_not_at_all() {
        let key = ChannelKey::generate();
        let sizes: Vec<_> = (0..400).map(|n| key.seal(&byline(), &post(&"x".repeat(n))).unwrap().len()).collect();
        assert!(sizes.is_sorted());
        assert!(sizes.iter().collect::<std::collections::BTreeSet<_>>().len() <= 4);
        for title in ["", "News", &"x".repeat(CHANNEL_TITLE_BYTES_MAX)] {
            let sealed = key.seal_title(title).unwrap();
            assert_eq!(key.open_title(&sealed).unwrap(), title);
            assert_eq!(sealed.len(), key.seal_title("").unwrap().len());
            assert!(sealed.len() <= waxwing_protocol::channel::CHANNEL_SEALED_TITLE_BYTES_MAX);
            assert!(ChannelKey::generate().open_title(&sealed).is_err());
        }
        assert!(key.seal_title(&"x".repeat(CHANNEL_TITLE_BYTES_MAX + 1)).is_err());
    }

    /// The longest post, signed, is an entry that a log takes.
    #[test]
    fn what_can_be_sealed_fits_an_entry() {
        let (key, account) = (ChannelKey::generate(), AccountKey::generate());
        let byline = byline();
        let longest =
            (0..400).find_map(|n| key.seal(&byline, &post(&"x".repeat(PLAINTEXT_BYTES_MAX - n))).ok()).unwrap();
        assert!(matches!(
            key.seal(&byline, &post(&"x".repeat(PLAINTEXT_BYTES_MAX))),
            Err(MessageError::TooLarge { .. })
        ));
        let charter = Charter {
            channel: byline.channel,
            epoch: 1,
            previous: None,
            owner: byline.author,
            owner_key: account.public(),
            authors: vec![Author { account: byline.author, account_key: account.public() }],
            key_id: key.id(),
            title: key.seal_title("News").unwrap(),
            after: Position::default(),
            made_at: Timestamp::from_millis(1),
        };
        assert_eq!(account.sign_charter(&charter).verify(None), Ok(charter.clone()));
        let after = Position { seq: u64::MAX - 1, hash: [1; 32] };
        let entry = Entry { epoch: 1, after, author: 0, msg_id: byline.msg_id, body: longest };
        let bytes = account.sign_entry(byline.channel, &entry);
        assert!(bytes.len() <= BODY_BYTES_MAX, "{}", bytes.len());
        let (read, _) = SignedEntry::verify(&bytes, &charter, &after).unwrap();
        assert!(key.open(&byline, &read.body).is_ok());
    }

    #[test]
    fn what_is_said_between_two_is_not_said_here() {
        let content = Content::Read { up_to: MsgId::from_bytes([1; 16]), client_hlc: 1 };
        assert!(ChannelKey::generate().seal(&byline(), &Post { client_hlc: 1, content }).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let key = ChannelKey::from_bytes(&[1; 32]);
            prop_assert!(key.open(&byline(), &bytes).is_err());
            prop_assert!(key.open_title(&bytes).is_err());
        }
    }
}
