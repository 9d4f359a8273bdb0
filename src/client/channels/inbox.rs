//! Keys of channels that their owners send: taken for channels that are followed, kept as invites of others.

use serde::{Deserialize, Serialize};
use waxwing_protocol::channel::Author;
use waxwing_protocol::identity::PublicKey;
use waxwing_protocol::{AccountId, ChannelId, Handle};
use waxwing_seal::channel::ChannelKey;
use waxwing_seal::message::{ChannelInvite, Party};
use zeroize::Zeroizing;

use super::book;
use super::link::ChannelLink;
use crate::profile::{Rows as _, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, contacts};

/// Invites that nobody has answered, by channel.
const INVITES: Table<InviteRow> = Table::new("channel_invites");

/// Invites kept at most: whoever sends more is not heard.
const INVITES_MAX: usize = 256;

/// An invite.
#[derive(Serialize, Deserialize)]
struct InviteRow {
    owner: AccountId,
    owner_key: PublicKey,
    epoch: u64,
    key: SecretBytes,
}

/// Somebody who owns a channel has sent its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invited {
    pub(crate) channel: ChannelId,
    /// Who.
    pub(crate) owner: AccountId,
    /// It is followed already: the key is its new one.
    pub(crate) followed: bool,
}

/// Takes the key of a channel that the device `from` has sent. Of a channel that is followed only its owner gives keys.
pub(crate) fn take_invite(
    tx: &WriteTx<'_>,
    from: &Party,
    invite: &ChannelInvite,
) -> Result<Option<Invited>, ClientError> {
    let (channel, owner) = (invite.channel, from.account);
    if let Some(book) = book::load(tx, channel)? {
        if book.owner.account != owner {
            return Ok(None);
        }
        book::put_key(tx, channel, &ChannelKey::from_bytes(&invite.key))?;
        return Ok(Some(Invited { channel, owner, followed: true }));
    }
    let Some(contact) = contacts::known(tx, owner)? else { return Ok(None) };
    let invites = tx.list(&INVITES)?;
    let taken = invites.iter().find(|(key, _)| key[..] == channel.as_bytes()[..]);
    // Nobody replaces the invite of somebody else, and old ones are no reason to forget.
    let refused = taken.map_or(invites.len() >= INVITES_MAX, |(_, row)| row.owner != owner);
    if refused {
        return Ok(None);
    }
    let key = SecretBytes(Zeroizing::new(invite.key.to_vec()));
    let row = InviteRow { owner, owner_key: contact.account_key, epoch: invite.epoch, key };
    tx.put(&INVITES, channel.as_bytes(), &row)?;
    Ok(Some(Invited { channel, owner, followed: false }))
}

impl Client {
    /// Channels that their owners have invited this account to, and that it does not follow.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn channel_invites(&self) -> Result<Vec<(ChannelId, Option<Handle>)>, ClientError> {
        self.profile.read(|tx| {
            let mut invites = Vec::new();
            for (key, row) in tx.list(&INVITES)? {
                let handle = contacts::known(tx, row.owner)?.map(|contact| contact.handle);
                invites.push((ChannelId::from_slice(&key)?, handle));
            }
            Ok(invites)
        })
    }

    /// Follows a channel that its owner has invited this account to; does nothing when it is followed already.
    ///
    /// # Errors
    /// [`ClientError::UnknownChannel`] when nobody has; those of [`Client::follow_channel`].
    pub async fn accept_channel(&self, channel: ChannelId) -> Result<(), ClientError> {
        let (known, invite) =
            self.profile.read(|tx| Ok((book::load(tx, channel)?, tx.get(&INVITES, channel.as_bytes())?)))?;
        let Some(InviteRow { owner, owner_key, epoch, key }) = invite else {
            let missing = || ClientError::UnknownChannel { named: channel.to_string() };
            return known.map(drop).ok_or_else(missing);
        };
        let bytes: &[u8; 32] = key.0[..].try_into().map_err(|_| ClientError::Damaged { what: "an invite" })?;
        let owner = Author { account: owner, account_key: owner_key };
        let key = ChannelKey::from_bytes(bytes);
        self.follow_channel(&ChannelLink { base: String::new(), channel, owner, epoch, key }).await?;
        self.profile.write(|tx| tx.remove(&INVITES, channel.as_bytes())).map(drop)
    }
}
