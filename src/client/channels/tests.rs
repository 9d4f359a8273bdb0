//! A server, an edge or a former author that lies, as a follower meets it: nothing is shown that was not written so.

use waxwing_protocol::channel::{Author, ChannelError, Charter, Entry, Position, SignedCharter};
use waxwing_protocol::{AccountId, ChannelId, MsgId};
use waxwing_seal::channel::{Byline, ChannelKey, Post};
use waxwing_seal::identity::AccountKey;
use waxwing_seal::message::{ChannelInvite, Content, Party};

use super::book::{self, Book};
use super::inbox::take_invite;
use super::log::{Checked, checked, shown, take_charter};
use crate::ClientError;
use crate::account::{device_keys, me, party};
use crate::outbox::tests::{NOW, Person};

/// A channel of Alice's, in which Carol writes as well, as Bob follows it.
struct Scene {
    bob: Person,
    alice: (AccountId, AccountKey),
    carol: (AccountId, AccountKey),
    key: ChannelKey,
    charters: Vec<Charter>,
    /// The log as it is, and the place behind each entry.
    log: Vec<Vec<u8>>,
    at: Vec<Position>,
}

fn channel() -> ChannelId {
    ChannelId::from_bytes([7; 16])
}

fn author(of: &(AccountId, AccountKey)) -> Author {
    Author { account: of.0, account_key: of.1.public() }
}

impl Scene {
    fn new() -> Self {
        let bob = Person::new("bob");
        let alice = (AccountId::from_bytes([1; 16]), AccountKey::generate());
        let carol = (AccountId::from_bytes([2; 16]), AccountKey::generate());
        let key = ChannelKey::generate();
        let first = Charter {
            channel: channel(),
            epoch: 1,
            previous: None,
            owner: alice.0,
            owner_key: alice.1.public(),
            authors: vec![author(&alice), author(&carol)],
            key_id: key.id(),
            title: key.seal_title("News").unwrap(),
            after: Position::default(),
            made_at: NOW,
        };
        let mut scene =
            Self { bob, alice, carol, key, charters: vec![first], log: Vec::new(), at: vec![Position::default()] };
        scene
            .bob
            .profile
            .write(|tx| {
                book::put_charter(tx, channel(), &scene.alice.1.sign_charter(&scene.charters[0]))?;
                book::put_key(tx, channel(), &scene.key)?;
                let (begun, charters) = (Position::default(), scene.charters.clone());
                let (owner, followers, owed) = (author(&scene.alice), Vec::new(), Vec::new());
                book::store(
                    tx,
                    &Book { channel: channel(), owner, charters, begun, head: begun, seen: begun, followers, owed },
                )
            })
            .unwrap();
        for words in ["one", "two", "three"] {
            scene.write(words);
        }
        scene
    }

    /// An entry behind `after`, by Alice or Carol, under the charter that stands.
    fn entry(&self, by: &(AccountId, AccountKey), after: Position, words: &str) -> Vec<u8> {
        let charter = self.charters.last().unwrap();
        let msg_id = MsgId::from_bytes([after.seq as u8 + 1; 16]);
        let post = Post { client_hlc: NOW.as_millis() << 16, content: Content::Text(words.to_owned()) };
        let body = self.key.seal(&Byline { channel: channel(), author: by.0, msg_id }, &post).unwrap();
        let author = charter.author(by.0).unwrap_or(0);
        by.1.sign_entry(channel(), &Entry { epoch: charter.epoch, after, author, msg_id, body })
    }

    fn write(&mut self, words: &str) {
        let after = *self.at.last().unwrap();
        let by = if self.log.len().is_multiple_of(2) { &self.alice } else { &self.carol };
        let bytes = self.entry(by, after, words);
        self.at.push(Position { seq: after.seq + 1, hash: *blake3::hash(&bytes).as_bytes() });
        self.log.push(bytes);
    }

    /// The charter after the one that stands: without Carol, with a new key.
    fn next(&mut self, after: Position) -> SignedCharter {
        let before = self.charters.last().unwrap().clone();
        self.key = ChannelKey::generate();
        let (key_id, title) = (self.key.id(), self.key.seal_title("News").unwrap());
        let (epoch, previous, authors) = (before.epoch + 1, Some(before.hash()), vec![author(&self.alice)]);
        let charter = Charter { epoch, previous, authors, key_id, title, after, ..before };
        let signed = self.alice.1.sign_charter(&charter);
        self.charters.push(charter);
        signed
    }

    /// Bob is shown these entries behind a place.
    fn shown(&self, after: Position, entries: &[Vec<u8>]) -> Result<Vec<Checked>, ClientError> {
        self.bob.profile.write(|tx| checked(tx, &book::known(tx, channel())?, after, entries))
    }

    /// He has read everything.
    fn read_all(&self) {
        let run = self.shown(self.at[0], &self.log).unwrap();
        self.bob
            .profile
            .write(|tx| book::note(tx, channel(), |book| book.reached(run.last().unwrap().at, true)))
            .unwrap();
    }

    fn takes(&self, signed: &SignedCharter) -> Result<(), ClientError> {
        self.bob.profile.write(|tx| take_charter(tx, &mut book::known(tx, channel())?, signed))
    }
}

fn source<T>(refused: Result<T, ClientError>) -> ChannelError {
    match refused {
        Err(ClientError::ChannelForged { source, .. }) => source,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was believed"),
    }
}

fn words(run: &[Checked]) -> Vec<String> {
    let said = run.iter().map(|checked| match &checked.post.content {
        Ok(Content::Text(words)) => words.clone(),
        other => panic!("{other:?}"),
    });
    said.collect()
}

#[test]
fn what_authors_wrote_is_shown_in_their_order() {
    let scene = Scene::new();
    assert_eq!(words(&scene.shown(scene.at[0], &scene.log).unwrap()), ["one", "two", "three"]);
    assert_eq!(words(&scene.shown(scene.at[2], &scene.log[2..]).unwrap()), ["three"]);
}

#[test]
fn entries_left_out_reordered_repeated_or_forged_are_not_shown() {
    let scene = Scene::new();
    let [one, two, three] = [0, 1, 2].map(|at| scene.log[at].clone());
    let follows = |entries: &[Vec<u8>]| {
        let found = source(scene.shown(scene.at[0], entries));
        assert!(matches!(found, ChannelError::Follows(_)), "{found:?}");
    };
    follows(&[one.clone(), three.clone()]);
    follows(&[two.clone(), one.clone(), three]);
    follows(&[one.clone(), one.clone()]);
    follows(&[two]);
    // A page of another channel, or words of nobody: the key alone, which every reader has, writes nothing.
    let mallory = (scene.alice.0, AccountKey::generate());
    let forged = scene.entry(&mallory, scene.at[0], "believe me");
    assert_eq!(source(scene.shown(scene.at[0], &[forged])), ChannelError::Signature);
    for at in (0..one.len()).step_by(7) {
        let mut changed = one.clone();
        changed[at] ^= 1;
        assert!(scene.shown(scene.at[0], &[changed]).is_err(), "byte {at}");
    }
    // Bob stands where he stood.
    assert_eq!(scene.bob.profile.read(|tx| book::known(tx, channel())).unwrap().seen, Position::default());
}

/// What was shown is remembered by its hash: another history, though signed, is another one.
#[test]
fn a_server_cannot_show_another_past_than_it_did() {
    let scene = Scene::new();
    scene.read_all();
    let other = scene.entry(&scene.alice, scene.at[2], "another three");
    let found = source(scene.shown(scene.at[2], &[other]));
    assert!(matches!(found, ChannelError::Follows(_)), "{found:?}");
    assert!(scene.shown(scene.at[0], &scene.log).is_ok(), "reading the true one again is no error");
}

#[test]
fn whoever_was_removed_is_not_believed_whatever_the_server_says() {
    let mut scene = Scene::new();
    scene.read_all();
    let late = scene.entry(&scene.carol, scene.at[3], "still here");
    let signed = scene.next(scene.at[3]);
    scene.takes(&signed).unwrap();
    assert_eq!(source(scene.shown(scene.at[3], &[late])), ChannelError::Epoch { epoch: 1 });
    let posing = scene.entry(&scene.carol, scene.at[3], "as Alice");
    assert_eq!(source(scene.shown(scene.at[3], &[posing])), ChannelError::Signature);
}

#[test]
fn charters_that_are_not_the_owners_or_belong_to_another_log_are_refused() {
    let mut scene = Scene::new();
    let (forker, true_at) = (scene.entry(&scene.carol, scene.at[2], "a fork"), scene.at[3]);
    scene.read_all();
    let forked = Position { seq: 3, hash: *blake3::hash(&forker).as_bytes() };
    let signed = scene.next(forked);
    assert!(
        matches!(source(scene.takes(&signed)), ChannelError::Follows(_)),
        "it begins behind an entry Bob never saw"
    );
    scene.charters.pop();
    let mut signed = scene.next(true_at);
    let by_carol = scene.carol.1.sign_charter(&scene.charters[1]);
    assert_eq!(source(scene.takes(&by_carol)), ChannelError::Signature);
    assert_eq!(scene.takes(&signed).map_err(|error| error.to_string()), Ok(()));
    assert!(matches!(source(scene.takes(&signed)), ChannelError::Follows(_)), "played again");
    signed.signature.0[0] ^= 1;
    assert!(scene.takes(&signed).is_err());
}

/// A follower who is not given the new key waits there, and goes on once it is.
#[test]
fn without_the_new_key_nothing_is_shown_and_nothing_is_passed_over() {
    let mut scene = Scene::new();
    scene.read_all();
    let signed = scene.next(scene.at[3]);
    scene.takes(&signed).unwrap();
    let secret = scene.entry(&scene.alice, scene.at[3], "not for all");
    let run = scene.shown(scene.at[3], std::slice::from_ref(&secret)).unwrap();
    assert!(run[0].locked && run[0].post.content.is_err());
    let (open, last) = shown(&run);
    assert_eq!((open.len(), last), (0, None));

    // Only the owner gives keys of a channel that is followed.
    let device = scene.bob.profile.read(|tx| Ok(party(&me(tx)?, &device_keys(tx)?))).unwrap().device;
    let (epoch, key) = (2, scene.key.to_bytes());
    let invite = ChannelInvite { channel: channel(), epoch, key };
    let gives = |account| scene.bob.profile.write(|tx| take_invite(tx, &Party { account, device }, &invite)).unwrap();
    assert_eq!(gives(scene.carol.0), None);
    assert!(scene.shown(scene.at[3], std::slice::from_ref(&secret)).unwrap()[0].locked);
    assert!(gives(scene.alice.0).unwrap().followed);
    assert_eq!(words(&scene.shown(scene.at[3], &[secret]).unwrap()), ["not for all"]);
}
