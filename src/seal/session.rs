//! End-to-end sessions with one device of a peer: the Double Ratchet (Olm), by vodozemac.
//!
//! Each message has a key of its own that is gone once used, so a stolen phone does not open old messages, and each
//! answer brings new secrets, so a copied phone loses its hold. All of that fails when a ratchet runs twice from the
//! same state: two messages under one key give away both. Hence the rule: *a ratchet is never cloned or rolled back.*
//! [`Sessions`] has no `Clone`, storing consumes it ([`Sessions::into_bytes`]), and callers load, use and store it
//! within one transaction that also stores what came out (a ciphertext to send, a plaintext received). A ratchet whose
//! transaction fails is dropped together with its output.
//!
//! Two devices can begin sessions with each other at the same moment, and a device that lost its sessions begins a new
//! one: so several sessions with one peer device are kept, the last used first, [`SESSIONS_MAX`] at most.
//!
//! Limits, documented with their source: Olm session version 1 authenticates each message with an HMAC-SHA-256 cut to
//! 8 bytes (Olm specification, "Version 1"); its key agreement is 3DH, not post-quantum; a session keeps the keys of 40
//! skipped messages a chain and refuses gaps over 2,000 (vodozemac `receiver_chain.rs`).
//!
//! A ciphertext on the wire: one byte for the suite (1: Olm version 1), one for Olm's message type (0: pre-key message,
//! 1: normal), then Olm's bytes.

use serde::{Deserialize, Serialize};
use vodozemac::Curve25519PublicKey;
use vodozemac::olm::{OlmMessage, PreKeyMessage, Session, SessionConfig, SessionPickle};
use waxwing_protocol::frames::BODY_BYTES_MAX;
use waxwing_protocol::identity::{Device, PublicKey, SignedPrekey, Suite};
use zeroize::Zeroizing;

use crate::device::DeviceKeys;
use crate::secret_bytes::to_secret_bytes;

/// Sessions kept with one peer device at most. Two suffice for a peer that behaves; the rest is for messages still on
/// their way while it starts anew. The one used longest ago is dropped.
pub const SESSIONS_MAX: usize = 8;

/// The suite byte of Olm version 1.
const SUITE_OLM_V1: u8 = 1;

/// Why a message could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// There is no session with the device yet: claim a prekey and start one.
    #[error("no session with this device yet")]
    NoSession,
    /// A prekey whose signature, key or suite is not the device's.
    #[error("the prekey is not one of this device's")]
    BadPrekey,
    /// The sessions belong to other keys: the device was replaced.
    #[error("the device has other keys than these sessions")]
    OtherDevice,
    /// Not a ciphertext of a suite known here.
    #[error("malformed ciphertext")]
    Malformed,
    /// Longer than a message can be.
    #[error("a message of {bytes} bytes is over the limit of {BODY_BYTES_MAX}")]
    TooLarge {
        /// Bytes it would have.
        bytes: usize,
    },
    /// Begun with a prekey this device does not have: used already, or never its own.
    #[error("the message was begun with a prekey that is gone")]
    UnknownPrekey,
    /// Opened before, tampered with, or of a session this device no longer has.
    #[error("no session opens the message")]
    Undecryptable,
    /// Stored bytes that are no sessions.
    #[error("the stored sessions are damaged")]
    Damaged,
}

/// The sessions with one peer device, last used first.
pub struct Sessions {
    /// The peer device's identity key: every session is with it.
    peer: Curve25519PublicKey,
    sessions: Vec<Session>,
}

/// How [`Sessions`] is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    peer: PublicKey,
    sessions: Vec<SessionPickle>,
}

/// What a ciphertext opened to.
pub struct Opened {
    /// The padded inner plaintext, erased when dropped. Says who wrote it; check that with
    /// [`Message::open`](crate::message::Message::open) before believing anything.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// A one-time prekey was used up, so the device keys changed and must be stored as well.
    pub keys_changed: bool,
}

impl Sessions {
    /// No session yet with this device.
    pub fn with(peer: &Device) -> Self {
        Self { peer: Curve25519PublicKey::from_bytes(peer.curve25519.0), sessions: Vec::new() }
    }

    /// Whether these are with `peer`, as it is listed now.
    pub fn are_with(&self, peer: &Device) -> bool {
        self.peer.as_bytes() == &peer.curve25519.0
    }

    /// Whether there is none to encrypt with.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Begins a session with `peer` from a prekey claimed for it; messages are encrypted with it from now on.
    ///
    /// # Errors
    /// [`SessionError::BadPrekey`] when the prekey is not signed by the device; [`SessionError::OtherDevice`] when
    /// these sessions are with other keys.
    pub fn start(&mut self, keys: &DeviceKeys, peer: &Device, prekey: &SignedPrekey) -> Result<(), SessionError> {
        if !self.are_with(peer) {
            return Err(SessionError::OtherDevice);
        }
        let Suite::OlmV1 = prekey.suite;
        prekey.verify(&peer.ed25519).map_err(|_| SessionError::BadPrekey)?;
        let session = keys
            .account
            .create_outbound_session(
                SessionConfig::version_1(),
                self.peer,
                Curve25519PublicKey::from_bytes(prekey.key.0),
            )
            .map_err(|_| SessionError::BadPrekey)?;
        self.keep(session);
        Ok(())
    }

    /// Encrypts a padded inner plaintext with the session used last, and moves that session's ratchet on.
    ///
    /// # Errors
    /// [`SessionError::NoSession`], or [`SessionError::TooLarge`] before any ratchet moved.
    pub fn encrypt(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, SessionError> {
        // Checked first: a ratchet that has moved for nothing leaves a gap that the peer has to skip.
        let bytes = plaintext.len() + OVERHEAD_BYTES_MAX;
        if bytes > BODY_BYTES_MAX {
            return Err(SessionError::TooLarge { bytes });
        }
        let session = self.sessions.first_mut().ok_or(SessionError::NoSession)?;
        let message = session.encrypt(plaintext).map_err(|_| SessionError::NoSession)?;
        let (kind, body) = message.to_parts();
        let kind = u8::try_from(kind).expect("Olm's message types are 0 and 1");
        Ok([&[SUITE_OLM_V1, kind], &body[..]].concat())
    }

    /// Opens a ciphertext from the peer device; a pre-key message may begin a session and use up a one-time prekey.
    /// The session that opens it becomes the first to encrypt with. Whatever fails leaves keys and sessions as they
    /// were.
    ///
    /// # Errors
    /// [`SessionError`] when no session opens it and none can be begun from it.
    pub fn decrypt(&mut self, keys: &mut DeviceKeys, body: &[u8]) -> Result<Opened, SessionError> {
        if body.len() > BODY_BYTES_MAX {
            return Err(SessionError::TooLarge { bytes: body.len() });
        }
        match parse(body)? {
            OlmMessage::PreKey(message) => self.decrypt_prekey(keys, message),
            message @ OlmMessage::Normal(_) => {
                for at in 0..self.sessions.len() {
                    if let Ok(plaintext) = self.sessions[at].decrypt(&message) {
                        self.sessions[..=at].rotate_right(1);
                        return Ok(Opened { plaintext: plaintext.into(), keys_changed: false });
                    }
                }
                Err(SessionError::Undecryptable)
            }
        }
    }

    fn decrypt_prekey(&mut self, keys: &mut DeviceKeys, message: PreKeyMessage) -> Result<Opened, SessionError> {
        if message.identity_key() != self.peer {
            return Err(SessionError::OtherDevice);
        }
        // A peer repeats the pre-key form until it hears from us. A message of a session known already must never
        // begin that session a second time: with a fallback key it could, and would open a replay.
        let known = self.sessions.iter().position(|session| session.session_keys() == message.session_keys());
        if let Some(at) = known {
            let plaintext =
                self.sessions[at].decrypt(&OlmMessage::PreKey(message)).map_err(|_| SessionError::Undecryptable)?;
            self.sessions[..=at].rotate_right(1);
            return Ok(Opened { plaintext: plaintext.into(), keys_changed: false });
        }
        let stored_before = keys.account.stored_one_time_key_count();
        let created =
            keys.account.create_inbound_session(SessionConfig::version_1(), self.peer, &message).map_err(|error| {
                match error {
                    vodozemac::olm::SessionCreationError::MissingOneTimeKey(_) => SessionError::UnknownPrekey,
                    _ => SessionError::Undecryptable,
                }
            })?;
        self.keep(created.session);
        let keys_changed = keys.account.stored_one_time_key_count() != stored_before;
        Ok(Opened { plaintext: created.plaintext.into(), keys_changed })
    }

    /// The sessions as bytes for the profile. Consumes them: the stored ratchet is the only one.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        let sessions = self.sessions.iter().map(Session::pickle).collect();
        to_secret_bytes(&Stored { peer: PublicKey(self.peer.to_bytes()), sessions })
    }

    /// The sessions that [`Sessions::into_bytes`] stored. Never call it twice on the same bytes and use both.
    ///
    /// # Errors
    /// [`SessionError::Damaged`] when the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SessionError> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|_| SessionError::Damaged)?;
        let sessions = stored.sessions.into_iter().map(Session::from_pickle).collect();
        Ok(Self { peer: Curve25519PublicKey::from_bytes(stored.peer.0), sessions })
    }

    /// Puts a session first; the one used longest ago makes room.
    fn keep(&mut self, session: Session) {
        self.sessions.truncate(SESSIONS_MAX - 1);
        self.sessions.insert(0, session);
    }
}

/// Bytes that a ciphertext can be longer than its plaintext: our 2; of a pre-key message 1 version, 3 keys of 32 with 2
/// of framing each, 4 of framing; of the message in it 1 version, 34 of ratchet key, 11 of counter, 4 of framing, up to
/// 16 of block padding, 8 of MAC.
pub const OVERHEAD_BYTES_MAX: usize = 2 + (1 + 3 * 34 + 4) + (1 + 34 + 11 + 4 + 16 + 8);

/// The identity key of the device that began the session of a pre-key message, as the message claims it; `None` for
/// every other message. Lets a recipient ask for a newer device list before it refuses one.
pub fn begun_by(body: &[u8]) -> Option<PublicKey> {
    match parse(body) {
        Ok(OlmMessage::PreKey(message)) => Some(PublicKey(message.identity_key().to_bytes())),
        _ => None,
    }
}

/// Reads suite and type.
fn parse(body: &[u8]) -> Result<OlmMessage, SessionError> {
    let [SUITE_OLM_V1, kind, message @ ..] = body else {
        return Err(SessionError::Malformed);
    };
    OlmMessage::from_parts(usize::from(*kind), message).map_err(|_| SessionError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use waxwing_protocol::DeviceId;

    /// A device and its sessions with one other.
    struct End {
        keys: DeviceKeys,
        sessions: Sessions,
    }

    impl End {
        /// Puts keys and sessions into a profile and takes them out again, as every step of a client does.
        fn stored(self) -> Self {
            Self {
                keys: DeviceKeys::from_bytes(&self.keys.into_bytes()).unwrap(),
                sessions: Sessions::from_bytes(&self.sessions.into_bytes()).unwrap(),
            }
        }

        fn open(&mut self, body: &[u8]) -> Result<Vec<u8>, SessionError> {
            self.sessions.decrypt(&mut self.keys, body).map(|opened| opened.plaintext.to_vec())
        }

        /// Starts a session from a one-time prekey of `peer`.
        fn start(&mut self, peer: &mut Self) {
            let prekey = peer.keys.one_time_prekeys(1).remove(0);
            self.sessions.start(&self.keys, &peer.keys.device(), &prekey).unwrap();
        }
    }

    /// Two devices that know each other's keys and have no session yet.
    fn strangers() -> (End, End) {
        let (a, b) = (DeviceKeys::generate(DeviceId::FIRST), DeviceKeys::generate(DeviceId::FIRST));
        let (with_a, with_b) = (Sessions::with(&a.device()), Sessions::with(&b.device()));
        (End { keys: a, sessions: with_b }, End { keys: b, sessions: with_a })
    }

    /// Two devices that have written and answered once.
    fn acquainted() -> (End, End) {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        let hello = alice.sessions.encrypt(b"hello").unwrap();
        bob.open(&hello).unwrap();
        let answer = bob.sessions.encrypt(b"hi").unwrap();
        alice.open(&answer).unwrap();
        (alice, bob)
    }

    const PREKEY: u8 = 0;
    const NORMAL: u8 = 1;

    #[test]
    fn a_conversation_survives_storing_after_every_step() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        for turn in 0..5_u8 {
            let there = alice.sessions.encrypt(&[turn; 160]).unwrap();
            (alice, bob) = (alice.stored(), bob.stored());
            assert_eq!(bob.open(&there).unwrap(), [turn; 160]);
            let back = bob.sessions.encrypt(&[turn; 320]).unwrap();
            (alice, bob) = (alice.stored(), bob.stored());
            assert_eq!(alice.open(&back).unwrap(), [turn; 320]);
        }
    }

    /// Until the first answer every message carries what begins the session, since any of them may come first.
    #[test]
    fn the_prekey_form_is_repeated_until_the_first_answer() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        let bodies: Vec<_> = (0..3_u8).map(|n| alice.sessions.encrypt(&[n]).unwrap()).collect();
        assert!(bodies.iter().all(|body| body[1] == PREKEY));
        assert!(bodies.iter().all(|body| begun_by(body) == Some(alice.keys.device().curve25519)));
        for n in [2, 0, 1_u8] {
            assert_eq!(bob.open(&bodies[usize::from(n)]).unwrap(), [n]);
        }
        let answer = bob.sessions.encrypt(b"hi").unwrap();
        assert_eq!((answer[1], begun_by(&answer)), (NORMAL, None));
        alice.open(&answer).unwrap();
        assert_eq!(alice.sessions.encrypt(b"now").unwrap()[1], NORMAL);
    }

    #[test]
    fn messages_open_in_any_order() {
        let (mut alice, mut bob) = acquainted();
        let bodies: Vec<_> = (0..40_u8).map(|n| alice.sessions.encrypt(&[n]).unwrap()).collect();
        for n in (0..40_u8).rev() {
            assert_eq!(bob.open(&bodies[usize::from(n)]).unwrap(), [n]);
        }
    }

    #[test]
    fn a_message_opens_once() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        let first = alice.sessions.encrypt(b"first").unwrap();
        bob.open(&first).unwrap();
        assert_eq!(bob.open(&first), Err(SessionError::Undecryptable));
        let answer = bob.sessions.encrypt(b"answer").unwrap();
        alice.open(&answer).unwrap();
        assert_eq!(alice.open(&answer), Err(SessionError::Undecryptable));
    }

    #[test]
    fn a_one_time_prekey_begins_one_session() {
        let (mut alice, mut bob) = strangers();
        let prekey = bob.keys.one_time_prekeys(1).remove(0);
        alice.sessions.start(&alice.keys, &bob.keys.device(), &prekey).unwrap();
        let mut carol =
            End { keys: DeviceKeys::generate(DeviceId::FIRST), sessions: Sessions::with(&bob.keys.device()) };
        carol.sessions.start(&carol.keys, &bob.keys.device(), &prekey).unwrap();
        let from_alice = alice.sessions.encrypt(b"mine").unwrap();
        let from_carol = carol.sessions.encrypt(b"mine too").unwrap();

        let opened = bob.sessions.decrypt(&mut bob.keys, &from_alice).unwrap();
        assert!(opened.keys_changed, "the used key must be forgotten durably");
        let mut with_carol = Sessions::with(&carol.keys.device());
        let refused = with_carol.decrypt(&mut bob.keys, &from_carol);
        assert_eq!(refused.err(), Some(SessionError::UnknownPrekey));
    }

    #[test]
    fn a_fallback_prekey_serves_several_strangers_and_one_rotation() {
        let (alice, mut bob) = strangers();
        let fallback = bob.keys.fallback_prekey();
        bob.keys.fallback_published();
        bob.keys.fallback_prekey();
        bob.keys.fallback_published();
        for _ in 0..2 {
            let mut stranger = End { keys: DeviceKeys::generate(DeviceId::FIRST), ..strangers().0 };
            stranger.sessions = Sessions::with(&bob.keys.device());
            stranger.sessions.start(&stranger.keys, &bob.keys.device(), &fallback).unwrap();
            let body = stranger.sessions.encrypt(b"hello").unwrap();
            let mut with_stranger = Sessions::with(&stranger.keys.device());
            let opened = with_stranger.decrypt(&mut bob.keys, &body).unwrap();
            assert!(!opened.keys_changed);
        }
        bob.keys.fallback_prekey();
        let mut late = Sessions::with(&bob.keys.device());
        late.start(&alice.keys, &bob.keys.device(), &fallback).unwrap();
        let body = late.encrypt(b"too late").unwrap();
        assert_eq!(bob.open(&body), Err(SessionError::UnknownPrekey));
    }

    /// A fallback key is not used up, so only the session itself tells that its first message came before.
    #[test]
    fn a_replayed_first_message_begins_no_second_session() {
        let (mut alice, mut bob) = strangers();
        let fallback = bob.keys.fallback_prekey();
        alice.sessions.start(&alice.keys, &bob.keys.device(), &fallback).unwrap();
        let body = alice.sessions.encrypt(b"hello").unwrap();
        bob.open(&body).unwrap();
        let mut bob = bob.stored();
        assert_eq!(bob.open(&body), Err(SessionError::Undecryptable));
        assert_eq!(bob.sessions.sessions.len(), 1);
    }

    #[test]
    fn both_may_begin_at_the_same_moment() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        bob.start(&mut alice);
        let there = alice.sessions.encrypt(b"there").unwrap();
        let back = bob.sessions.encrypt(b"back").unwrap();
        assert_eq!(bob.open(&there).unwrap(), b"there");
        assert_eq!(alice.open(&back).unwrap(), b"back");
        for _ in 0..4 {
            let there = alice.sessions.encrypt(b"there").unwrap();
            assert_eq!(bob.open(&there).unwrap(), b"there");
            let back = bob.sessions.encrypt(b"back").unwrap();
            assert_eq!(alice.open(&back).unwrap(), b"back");
        }
    }

    #[test]
    fn a_peer_that_starts_anew_again_and_again_costs_a_bounded_number_of_sessions() {
        let (mut alice, mut bob) = acquainted();
        for n in 0..2 * SESSIONS_MAX {
            alice.start(&mut bob);
            let body = alice.sessions.encrypt(&[1]).unwrap();
            bob.open(&body).unwrap();
            assert!(bob.sessions.sessions.len() <= SESSIONS_MAX, "{n}");
            assert!(alice.sessions.sessions.len() <= SESSIONS_MAX, "{n}");
        }
    }

    #[test]
    fn a_prekey_of_another_device_begins_nothing() {
        let (mut alice, mut bob) = strangers();
        let device = bob.keys.device();
        let mut mallory = DeviceKeys::generate(DeviceId::FIRST);
        let foreign = mallory.one_time_prekeys(1).remove(0);
        assert_eq!(alice.sessions.start(&alice.keys, &device, &foreign), Err(SessionError::BadPrekey));
        let mut changed = bob.keys.one_time_prekeys(1).remove(0);
        changed.key.0[0] ^= 1;
        assert_eq!(alice.sessions.start(&alice.keys, &device, &changed), Err(SessionError::BadPrekey));
        let theirs = mallory.device();
        assert_eq!(alice.sessions.start(&alice.keys, &theirs, &foreign), Err(SessionError::OtherDevice));
        assert!(alice.sessions.is_empty());
        assert_eq!(alice.sessions.encrypt(b"x"), Err(SessionError::NoSession));
    }

    #[test]
    fn a_message_from_another_device_is_refused() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        let body = alice.sessions.encrypt(b"hello").unwrap();
        let mut with_carol = Sessions::with(&DeviceKeys::generate(DeviceId::FIRST).device());
        let refused = with_carol.decrypt(&mut bob.keys, &body);
        assert_eq!(refused.err(), Some(SessionError::OtherDevice));
        assert_eq!(bob.open(&body).unwrap(), b"hello");
    }

    /// Every byte counts, and a failure moves nothing: the true message still opens afterwards.
    #[test]
    fn a_tampered_message_is_refused_and_the_true_one_still_opens() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        let prekey = alice.sessions.encrypt(b"hello").unwrap();
        for at in 0..prekey.len() {
            let mut changed = prekey.clone();
            changed[at] ^= 0x10;
            assert!(bob.open(&changed).is_err(), "byte {at} of a pre-key message");
        }
        assert_eq!(bob.open(&prekey).unwrap(), b"hello");
        let answer = bob.sessions.encrypt(b"hi").unwrap();
        for at in 0..answer.len() {
            let mut changed = answer.clone();
            changed[at] ^= 0x10;
            assert!(alice.open(&changed).is_err(), "byte {at} of a message");
        }
        for cut in 0..answer.len() {
            assert!(alice.open(&answer[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(alice.open(&answer).unwrap(), b"hi");
    }

    #[test]
    fn the_longest_plaintext_fits_a_message_and_a_longer_one_moves_no_ratchet() {
        let (mut alice, mut bob) = strangers();
        alice.start(&mut bob);
        let longest = vec![7; BODY_BYTES_MAX - OVERHEAD_BYTES_MAX];
        let body = alice.sessions.encrypt(&longest).unwrap();
        assert!(body.len() <= BODY_BYTES_MAX, "{}", body.len());
        assert_eq!(bob.open(&body).unwrap(), longest);
        let before = alice.sessions.sessions[0].pickle();
        let refused = alice.sessions.encrypt(&[&longest[..], &[7]].concat());
        assert!(matches!(refused, Err(SessionError::TooLarge { .. })));
        let after = alice.sessions.sessions[0].pickle();
        assert_eq!(serde_json::to_string(&before).unwrap(), serde_json::to_string(&after).unwrap());
        let oversized = [&[SUITE_OLM_V1, NORMAL][..], &vec![0; BODY_BYTES_MAX]].concat();
        assert!(matches!(bob.open(&oversized), Err(SessionError::TooLarge { .. })));
    }

    #[test]
    fn a_suite_of_the_future_is_refused() {
        let (mut alice, mut bob) = acquainted();
        let mut body = alice.sessions.encrypt(b"x").unwrap();
        body[0] = 2;
        assert_eq!(bob.open(&body), Err(SessionError::Malformed));
        body[0] = 1;
        body[1] = 2;
        assert_eq!(bob.open(&body), Err(SessionError::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..3_u8) {
            let (_, mut bob) = strangers();
            let _ = bob.open(&bytes);
            let _ = bob.open(&[&[SUITE_OLM_V1, kind][..], &bytes].concat());
        }
    }
}
