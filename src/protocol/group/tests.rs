use super::*;
use crate::Timestamp;
use crate::identity::{Base64, signed_bytes};
use ed25519_dalek::{Signer as _, SigningKey};

struct Person {
    account: AccountId,
    key: SigningKey,
}

impl Person {
    fn new(n: u8) -> Self {
        Self { account: AccountId::from_bytes([n; 16]), key: SigningKey::from_bytes(&[n; 32]) }
    }

    fn public(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    fn joining(&self, role: Role) -> NewMember {
        NewMember { account: self.account, account_key: self.public(), role }
    }

    fn sign(&self, change: &GroupChange) -> SignedGroupChange {
        let bytes = change.to_bytes();
        let signature = self.key.sign(&signed_bytes(GROUP_CHANGE_DOMAIN, &bytes)).to_bytes().to_vec();
        SignedGroupChange { change: Base64(bytes), signature: Base64(signature) }
    }

    fn try_make(&self, before: Option<&GroupState>, what: What) -> Result<(SignedGroupChange, GroupState), GroupError> {
        let (change, _) = GroupChange::make(group(), before, self.account, what, Timestamp::from_millis(9))?;
        let signed = self.sign(&change);
        let (read, after) = signed.verify(before)?;
        assert_eq!(read, change);
        Ok((signed, after))
    }

    fn make(&self, before: Option<&GroupState>, what: What) -> GroupState {
        self.try_make(before, what).unwrap().1
    }
}

fn group() -> GroupId {
    GroupId::from_bytes([7; 16])
}

fn founded() -> (Person, Person, Person, GroupState) {
    let (alice, bob, carol) = (Person::new(1), Person::new(2), Person::new(3));
    let members = vec![alice.joining(Role::Admin), bob.joining(Role::Member)];
    let state = alice.make(None, What::Found { members, profile: Some([5; 32]) });
    (alice, bob, carol, state)
}

#[test]
fn a_group_grows_changes_and_shrinks_by_signed_changes_alone() {
    let (alice, bob, carol, state) = founded();
    let state = alice.make(Some(&state), What::Add(vec![carol.joining(Role::Member)]));
    assert_eq!((state.epoch, state.members.len(), state.member(carol.account).unwrap().since), (2, 3, 2));
    let state = alice.make(Some(&state), What::Role(bob.account, Role::Admin));
    let state = bob.make(Some(&state), What::Remove(vec![alice.account]));
    let state = bob.make(Some(&state), What::Receipts(true));
    assert!(state.receipts);
    let state = bob.make(Some(&state), What::Profile(None));
    assert_eq!((state.profile, state.member(alice.account)), (None, None));
    let state = bob.make(Some(&state), What::Leave);
    assert!(state.is_admin(carol.account), "somebody has to be");
    let state = carol.make(Some(&state), What::Leave);
    assert!(state.members.is_empty());
    assert_eq!(GroupState::from_bytes(&state.to_bytes()), Ok(state));
}

#[test]
fn whoever_may_not_is_refused() {
    let (alice, bob, carol, state) = founded();
    let forbidden = |person: &Person, what| match person.try_make(Some(&state), what) {
        Err(GroupError::Forbidden(_)) => {}
        other => panic!("{other:?}"),
    };
    forbidden(&bob, What::Add(vec![carol.joining(Role::Member)]));
    forbidden(&bob, What::Remove(vec![alice.account]));
    forbidden(&bob, What::Role(bob.account, Role::Admin));
    forbidden(&carol, What::Link(Some(carol.public())));
    forbidden(&alice, What::Role(alice.account, Role::Member));
    let malformed = |what| match alice.try_make(Some(&state), what) {
        Err(GroupError::Malformed(_)) => {}
        other => panic!("{other:?}"),
    };
    malformed(What::Remove(vec![alice.account]));
    malformed(What::Remove(vec![carol.account]));
    malformed(What::Add(vec![bob.joining(Role::Member)]));
    malformed(What::Add(vec![carol.joining(Role::Admin)]));
    malformed(What::Add(Vec::new()));
    malformed(What::Found { members: vec![alice.joining(Role::Admin)], profile: None });
    let crowd = (0..GROUP_MEMBERS_MAX).map(|n| {
        let mut id = [9; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        NewMember { account: AccountId::from_bytes(id), ..carol.joining(Role::Member) }
    });
    assert_eq!(alice.try_make(Some(&state), What::Add(crowd.collect())).unwrap_err(), GroupError::Full);
}

/// What a server that lies could try: another signer, another state, an old change, a change of its own making.
#[test]
fn a_change_is_valid_once_in_one_place_by_one_signer() {
    let (alice, bob, carol, state) = founded();
    let (added, after) = alice.try_make(Some(&state), What::Add(vec![carol.joining(Role::Member)])).unwrap();
    assert_eq!(added.verify(Some(&after)), Err(GroupError::Conflict { epoch: 2 }), "replayed");
    let other = alice.make(Some(&state), What::Profile(None));
    assert_eq!(added.verify(Some(&other)), Err(GroupError::Conflict { epoch: 2 }));
    assert_eq!(added.verify(None), Err(GroupError::Conflict { epoch: 0 }));
    let forged = bob.sign(&added.read().unwrap());
    assert_eq!(forged.verify(Some(&state)), Err(GroupError::Signature));
    for at in 0..added.change.0.len() {
        let mut changed = added.clone();
        changed.change.0[at] ^= 1;
        assert!(changed.verify(Some(&state)).is_err(), "byte {at}");
    }
    assert!(added.verify_result(&after).is_ok());
    assert!(added.verify_result(&state).is_err());
    assert_eq!(forged.verify_result(&after), Err(GroupError::Signature));
}

#[test]
fn a_link_lets_in_whoever_has_it_and_nobody_else() {
    let (alice, _, carol, state) = founded();
    let link = SigningKey::from_bytes(&[77; 32]);
    let proof = |link: &SigningKey, person: &Person| {
        let shown = LinkProof { group: group(), account: person.account, account_key: person.public() };
        Base64(link.sign(&signed_bytes(GROUP_LINK_DOMAIN, &shown.message())).to_bytes().to_vec())
    };
    let join = |proof| What::Join { account_key: carol.public(), proof };
    assert!(carol.try_make(Some(&state), join(proof(&link, &carol))).is_err(), "there is no link yet");
    let open = alice.make(Some(&state), What::Link(Some(PublicKey(link.verifying_key().to_bytes()))));
    let stranger = SigningKey::from_bytes(&[78; 32]);
    for wrong in [proof(&stranger, &carol), proof(&link, &alice), Base64(Vec::new())] {
        assert!(matches!(carol.try_make(Some(&open), join(wrong)), Err(GroupError::Forbidden(_))));
    }
    let state = carol.make(Some(&open), join(proof(&link, &carol)));
    assert_eq!(state.member(carol.account).unwrap().role, Role::Member);
    let closed = alice.make(Some(&state), What::Link(None));
    let late = Person::new(4);
    let join = What::Join { account_key: late.public(), proof: proof(&link, &late) };
    assert!(late.try_make(Some(&closed), join).is_err());
}

#[test]
fn the_devices_hash_tells_sets_apart_and_not_who_has_none() {
    let (a, b) = (AccountId::from_bytes([1; 16]), AccountId::from_bytes([2; 16]));
    let (one, two) = ([(DeviceId::FIRST, 5)], [(DeviceId::FIRST, 6)]);
    let hash = devices_hash([(a, &one[..]), (b, &two[..])]);
    assert_ne!(hash, devices_hash([(a, &two[..]), (b, &one[..])]));
    assert_ne!(hash, devices_hash([(a, &one[..])]));
    assert_eq!(devices_hash([(a, &one[..]), (b, &[][..])]), devices_hash([(a, &one[..])]));
}
