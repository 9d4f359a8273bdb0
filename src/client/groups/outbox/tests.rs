//! What one profile sends to a group and another makes of it, with the test as a server that does as it likes.

use super::*;
use crate::inbox::{self, Receipt};
use crate::outbox::tests::{NOW, Person, msg, text};
use waxwing_protocol::frames::{Deliver, Envelope, Lane};
use waxwing_protocol::group::{GroupChange, GroupState, NewMember, Role, SignedGroupChange, What};

fn group() -> GroupId {
    GroupId::from_bytes([9; 16])
}

fn joining(person: &Person, role: Role) -> NewMember {
    NewMember { account: person.view.account, account_key: person.view.account_key, role }
}

impl Person {
    fn sign(&self, before: Option<&GroupState>, what: What) -> (SignedGroupChange, GroupState) {
        let (change, after) = GroupChange::make(group(), before, self.view.account, what, NOW).unwrap();
        let key = self.profile.read(|tx| me(tx)?.account_key()).unwrap();
        (key.sign_group_change(&change), after)
    }

    /// Encrypts for the group; gives the keys that go first, and the message.
    fn say(&self, id: MsgId, words: &str, prekeys: &[(&Self, SignedPrekey)]) -> (Vec<Send>, Send) {
        let prekeys = prekeys.iter().map(|(who, prekey)| (who.view.account, vec![(DeviceId::FIRST, prekey.clone())]));
        let prekeys = prekeys.collect();
        self.profile.write(|tx| enqueue(tx, group(), &prekeys, id, &text(words), NOW)).unwrap();
        let (_, keys, send) = self.profile.read(|tx| frame(tx, id)).unwrap().unwrap();
        (keys.into_iter().map(|key| self.frame(key).unwrap()).collect(), send)
    }

    fn hear(&self, envelope: Envelope) -> Receipt {
        let deliver = Deliver { lane: Lane::Normal.into(), envelopes: vec![envelope] };
        self.profile.write(|tx| inbox::receive(tx, &deliver, 3, &HashMap::new(), NOW)).unwrap()
    }

    fn heard(&self) -> Vec<Content> {
        let pending = self.profile.read(|tx| inbox::pending(tx)).unwrap();
        pending.into_iter().map(|pending| pending.content).collect()
    }
}

/// What a server would deliver of `send`.
fn envelope(from: &Person, send: &Send, seq: u64) -> Envelope {
    let (body, conv_id, epoch) = match send.target.clone().unwrap() {
        Target::Direct(direct) => (direct.devices[0].ciphertext.clone(), Vec::new().into(), 0),
        Target::Group(group) => (group.body, group.group, group.epoch),
        Target::Channel(_) => panic!("no mailbox gets what is written in a channel"),
    };
    Envelope {
        seq,
        msg_id: send.msg_id.clone(),
        from_account: from.view.account.as_bytes().to_vec().into(),
        from_device: 1,
        conv_seq: if epoch > 0 { seq } else { 0 },
        class: send.class,
        client_hlc: send.client_hlc,
        conv_id,
        epoch,
        body,
        ..Envelope::default()
    }
}

fn told(by: &Person, change: &SignedGroupChange, seq: u64) -> Envelope {
    Envelope {
        seq,
        conv_seq: seq,
        class: Class::GroupChange.into(),
        conv_id: group().as_bytes().to_vec().into(),
        from_account: by.view.account.as_bytes().to_vec().into(),
        msg_id: vec![7; 16].into(),
        from_device: 1,
        epoch: change.read().unwrap().epoch,
        body: change.to_bytes().into(),
        ..Envelope::default()
    }
}

fn ratchet(send: &Send) -> Option<waxwing_seal::group::RatchetId> {
    let Some(Target::Group(group)) = &send.target else { panic!("a message to a group") };
    waxwing_seal::group::ratchet_of(&group.body)
}

/// Alice, who founded a group with bob, and both know it.
fn founded() -> (Person, Person, GroupState) {
    let (alice, bob) = Person::pair();
    let members = vec![joining(&alice, Role::Admin), joining(&bob, Role::Member)];
    let (change, state) = alice.sign(None, What::Found { members, profile: None });
    for person in [&alice, &bob] {
        assert_eq!(person.hear(told(&alice, &change, 1)).groups.len(), 1);
    }
    (alice, bob, state)
}

#[test]
fn a_message_waits_for_its_key_and_is_shown_once() {
    let (alice, bob, _) = founded();
    let (keys, one) = alice.say(msg(1), "one", &[(&bob, bob.prekey())]);
    let (no_more, two) = alice.say(msg(2), "two", &[]);
    assert_eq!((keys.len(), no_more.len()), (1, 0), "a key is given once");
    assert_eq!(bob.hear(envelope(&alice, &two, 2)).new, 0);
    assert_eq!(bob.hear(envelope(&alice, &one, 3)).new, 0);
    let bob = bob.restarted();
    assert_eq!(bob.hear(envelope(&alice, &keys[0], 4)).new, 2);
    assert_eq!(bob.heard().len(), 2);
    let again = bob.hear(envelope(&alice, &one, 5));
    assert_eq!((again.new, again.unreadable.len()), (0, 0));
    // The same ciphertext under another id is a replay, and is not believed.
    let replayed = Envelope { msg_id: msg(9).as_bytes().to_vec().into(), ..envelope(&alice, &one, 6) };
    assert_eq!(bob.hear(replayed).unreadable.len(), 1);
}

#[test]
fn whoever_was_removed_has_no_key_for_what_comes_and_is_not_believed() {
    let (alice, bob, state) = founded();
    let (keys, first) = alice.say(msg(1), "with bob", &[(&bob, bob.prekey())]);
    bob.hear(envelope(&alice, &keys[0], 2));
    bob.hear(envelope(&alice, &first, 3));
    let (_, bobs) = bob.say(msg(2), "from bob", &[(&alice, alice.prekey())]);
    let (change, _) = alice.sign(Some(&state), What::Remove(vec![bob.view.account]));
    alice.hear(told(&alice, &change, 4));
    let (keys, later) = alice.say(msg(3), "without bob", &[]);
    assert_eq!(keys.len(), 0);
    assert_ne!(ratchet(&first), ratchet(&later), "another ratchet");
    // A server that passes it on to him all the same: he has no key for it, and nobody gives him one.
    assert!(bob.hear(told(&alice, &change, 5)).groups[0].left);
    let passed_on = bob.hear(envelope(&alice, &later, 6));
    assert_eq!((passed_on.new, bob.heard().len()), (0, 1));
    // What he sent while he was in it counts; what names a later epoch does not.
    let late = Envelope { epoch: 2, ..envelope(&bob, &bobs, 7) };
    assert_eq!(alice.hear(late).unreadable.len(), 1);
    let sent = bob.profile.write(|tx| enqueue(tx, group(), &HashMap::new(), msg(8), &text("still here"), NOW));
    assert!(matches!(sent, Err(ClientError::NotInGroup { .. })));
}

/// A server that lets somebody in by itself, or plays an old change again.
#[test]
fn changes_that_no_member_has_signed_are_told_of_and_not_taken() {
    let (alice, bob, state) = founded();
    let eve = Person::new("eve");
    let let_in = What::Add(vec![joining(&eve, Role::Member)]);
    let sign = |by: &Person, actor: &Person| {
        let (change, _) = GroupChange::make(group(), Some(&state), actor.view.account, let_in.clone(), NOW).unwrap();
        by.profile.read(|tx| me(tx)?.account_key()).unwrap().sign_group_change(&change)
    };
    // In alice's name, signed by somebody else; and as she said it, with another's signature.
    let forged = sign(&eve, &alice);
    let mut relabelled = sign(&alice, &alice);
    relabelled.signature = forged.signature.clone();
    for wrong in [forged, relabelled] {
        let heard = bob.hear(told(&alice, &wrong, 2));
        assert_eq!((heard.groups.len(), heard.refused.len()), (0, 1));
    }
    let (good, after) = alice.sign(Some(&state), What::Add(vec![joining(&eve, Role::Member)]));
    assert_eq!(bob.hear(told(&alice, &good, 3)).groups.len(), 1);
    let (gone, last) = alice.sign(Some(&after), What::Remove(vec![eve.view.account]));
    assert_eq!(bob.hear(told(&alice, &gone, 4)).groups.len(), 1);
    // She was let in once: the same words again do not let her in twice.
    let again = bob.hear(told(&alice, &good, 5));
    assert_eq!((again.groups.len(), again.refused.len()), (0, 0), "known");
    let renumbered = Envelope { epoch: 4, ..told(&alice, &good, 6) };
    assert_eq!(bob.hear(renumbered).groups.len(), 0);
    let known = bob.profile.read(|tx| book::load(tx, group())).unwrap().unwrap();
    assert_eq!(known.state, last);
    assert!(known.state.member(eve.view.account).is_none());
}

/// A server that puts one message's body under another's id, another's name or another group's.
#[test]
fn a_message_in_anothers_place_is_not_believed() {
    let (alice, bob, state) = founded();
    let carol = Person::new("carol");
    bob.meet(&carol.view);
    let (change, _) = alice.sign(Some(&state), What::Add(vec![joining(&carol, Role::Member)]));
    for person in [&alice, &bob] {
        assert_eq!(person.hear(told(&alice, &change, 2)).groups.len(), 1);
    }
    let (keys, one) = alice.say(msg(1), "one", &[(&bob, bob.prekey())]);
    let (_, two) = alice.say(msg(2), "two", &[]);
    bob.hear(envelope(&alice, &keys[0], 3));
    let true_two = envelope(&alice, &two, 4);
    let swapped = Envelope { body: true_two.body.clone(), ..envelope(&alice, &one, 4) };
    let heard = bob.hear(swapped);
    assert_eq!((heard.new, heard.unreadable.len()), (0, 1), "{heard:?}");
    // Under carol's name it waits for a key that carol never made.
    let as_carol = Envelope {
        from_account: carol.view.account.as_bytes().to_vec().into(),
        msg_id: msg(5).as_bytes().to_vec().into(),
        ..envelope(&alice, &one, 5)
    };
    assert_eq!(bob.hear(as_carol).new, 0);
    let elsewhere = Envelope { conv_id: vec![8; 16].into(), msg_id: vec![6; 16].into(), ..envelope(&alice, &one, 6) };
    let heard = bob.hear(elsewhere);
    assert_eq!((heard.new, heard.unreadable.len()), (0, 1), "{heard:?}");
    assert_eq!(bob.heard(), []);
    // The true one opens still: nobody can spend it by swapping another.
    assert_eq!(bob.hear(envelope(&alice, &one, 7)).new, 1);
    assert_eq!(bob.heard(), [text("one")]);
}

/// What is said in a state of the group that the server keeps from somebody: a member who has gone may be saying it.
#[test]
fn a_message_of_an_epoch_that_was_kept_back_is_not_believed_until_its_change_is_there() {
    let (alice, bob, state) = founded();
    let (keys, _) = alice.say(msg(1), "one", &[(&bob, bob.prekey())]);
    bob.hear(envelope(&alice, &keys[0], 2));
    let (kept_back, _) = alice.sign(Some(&state), What::Receipts(true));
    alice.hear(told(&alice, &kept_back, 3));
    let (_, two) = alice.say(msg(2), "two", &[]);
    let heard = bob.hear(envelope(&alice, &two, 4));
    assert_eq!((heard.new, heard.unreadable.len()), (0, 1), "{heard:?}");
    let as_before = Envelope { epoch: 1, msg_id: msg(2).as_bytes().to_vec().into(), ..envelope(&alice, &two, 5) };
    assert_eq!(bob.hear(as_before).new, 0, "it says itself of which epoch it is");
    assert_eq!(bob.heard(), []);

    let (_, three) = alice.say(msg(3), "three", &[]);
    assert_eq!(bob.hear(envelope(&alice, &three, 6)).new, 0);
    assert_eq!(bob.hear(told(&alice, &kept_back, 7)).groups.len(), 1);
    assert_eq!(bob.hear(envelope(&alice, &three, 8)).new, 1, "it came again, after what it follows");
    assert_eq!(bob.heard(), [text("three")]);
}

/// Two branches of one group, each shown to one member: neither believes what the other says in it.
#[test]
fn members_who_were_shown_different_groups_do_not_hear_each_other() {
    let (alice, bob, state) = founded();
    let (keys, _) = alice.say(msg(1), "one", &[(&bob, bob.prekey())]);
    bob.hear(envelope(&alice, &keys[0], 2));
    let (one, _) = alice.sign(Some(&state), What::Receipts(true));
    let (other, _) = alice.sign(Some(&state), What::Profile(Some([5; 32])));
    assert_eq!(alice.hear(told(&alice, &one, 3)).groups.len(), 1);
    assert_eq!(bob.hear(told(&alice, &other, 3)).groups.len(), 1);
    let (_, two) = alice.say(msg(2), "two", &[]);
    let heard = bob.hear(envelope(&alice, &two, 4));
    assert_eq!((heard.new, heard.unreadable.len()), (0, 1), "{heard:?}");
    assert!(heard.unreadable[0].reason.contains("GroupState"), "{heard:?}");
}
