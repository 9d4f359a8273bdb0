//! Accounts: who may register, who is who, and whether a token is genuine.
//!
//! The server is not trusted with identities: it stores what an account key signed and checks it, so that a mistake of
//! a client is found here and not by the people it writes to. It never holds an account key.

use std::sync::Arc;
use std::time::Duration;

use subtle::ConstantTimeEq as _;
use waxwing_protocol::api::{
    AccountView, BLOCKS_MAX, DeleteRequest, Preferences, RegisterRequest, RegisterResponse, Registration, RenameRequest,
};
use waxwing_protocol::identity::{DELETE_DOMAIN, IdentityError, REGISTER_DOMAIN, RENAME_DOMAIN};
use waxwing_protocol::{AccountId, DeviceId, DeviceToken, Handle, Timestamp};

use crate::config::Config;
use crate::invites::Invites;
use crate::limits::{Limit, LimitView};
use crate::store::{AccountRecord, Blocked, DeviceAddress, Directory, NewAccount, Registered, Renamed, StoreError};

/// Registers, finds and authenticates.
pub(crate) struct Accounts {
    directory: Arc<dyn Directory>,
    registration: Registration,
    invites: Invites,
    look_ups: Limit<DeviceAddress>,
}

/// A device that has shown its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) device: DeviceAddress,
    /// The reg_id its account lists it with.
    pub(crate) reg_id: u32,
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("registration is by invite only")]
    InviteOnly,
    #[error("the invite code is not valid any more, or never was")]
    InviteInvalid,
    #[error("registration is closed")]
    Closed,
    #[error("the registration does not prove itself: {0}")]
    Identity(#[from] IdentityError),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the handle {0} is taken")]
    HandleTaken(Handle),
    #[error("the account {0} is registered with other particulars")]
    AccountTaken(AccountId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an account was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("the request does not prove itself: {0}")]
    Identity(#[from] IdentityError),
    #[error("the handle {0} is taken")]
    HandleTaken(Handle),
    #[error("no such account")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why nobody was blocked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockError {
    #[error("an account cannot block itself")]
    Itself,
    #[error("an account blocks at most {BLOCKS_MAX} others")]
    TooMany,
    #[error("no such account")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why somebody was not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookUpError {
    #[error("too many look-ups")]
    TooMany { retry_after: Duration },
    #[error("no such account")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whom a look-up names.
#[derive(Clone, Debug)]
pub(crate) enum AccountName {
    Id(AccountId),
    Handle(Handle),
}

impl Accounts {
    pub(crate) fn new(directory: Arc<dyn Directory>, invites: Invites, config: &Config) -> Self {
        let look_ups = Limit::new("look-ups", config.look_ups_per_minute, Duration::from_secs(60));
        Self { directory, registration: config.registration, invites, look_ups }
    }

    /// Registers an account. `epoch` is random: it becomes the epoch of the first device's mailbox. Returns whether the
    /// account is new; the identical request again is not an error.
    pub(crate) async fn register(
        &self,
        request: RegisterRequest,
        epoch: u64,
        now: Timestamp,
    ) -> Result<(RegisterResponse, bool), RegisterError> {
        let invite = match self.registration {
            Registration::Open => None,
            Registration::Invite => {
                let code = request.invite.as_deref().ok_or(RegisterError::InviteOnly)?;
                Some(self.invites.read(code).ok_or(RegisterError::InviteInvalid)?)
            }
            Registration::Closed => return Err(RegisterError::Closed),
        };
        let new = NewAccount { invite, ..checked(request, epoch)? };
        // Who asks again because the answer was lost may be late for the code; the account is there then.
        let ended = invite.is_some_and(|invite| invite.expires_at <= now);
        if ended && self.directory.account(new.record.account).await?.is_none() {
            return Err(RegisterError::InviteInvalid);
        }
        let response =
            RegisterResponse { account: new.record.account, handle: new.record.handle.clone(), device: new.device };
        match self.directory.register(new).await? {
            Registered::Created => Ok((response, true)),
            Registered::Repeated => Ok((response, false)),
            Registered::HandleTaken => Err(RegisterError::HandleTaken(response.handle)),
            Registered::InviteUsed => Err(RegisterError::InviteInvalid),
            Registered::AccountTaken => Err(RegisterError::AccountTaken(response.account)),
        }
    }

    /// Gives an account the handle that its key asks for.
    pub(crate) async fn rename(&self, account: AccountId, request: RenameRequest) -> Result<(), ChangeError> {
        let RenameRequest { handle, proof } = request;
        let record = self.directory.account(account).await?.ok_or(ChangeError::NotFound)?;
        record.account_key.verify(RENAME_DOMAIN, &RenameRequest::proof_message(account, &handle), &proof.0)?;
        match self.directory.rename(account, handle.clone()).await? {
            Renamed::Done => Ok(()),
            Renamed::HandleTaken => Err(ChangeError::HandleTaken(handle)),
            Renamed::NotFound => Err(ChangeError::NotFound),
        }
    }

    /// Deletes an account, as its key asks for; a stolen token cannot.
    pub(crate) async fn delete(&self, account: AccountId, request: &DeleteRequest) -> Result<(), ChangeError> {
        let record = self.directory.account(account).await?.ok_or(ChangeError::NotFound)?;
        record.account_key.verify(DELETE_DOMAIN, account.as_bytes(), &request.proof.0)?;
        self.directory.delete(account).await?;
        Ok(())
    }

    /// What `account` lets others know.
    pub(crate) async fn preferences(&self, account: AccountId) -> Result<Preferences, StoreError> {
        self.directory.preferences(account).await
    }

    /// Changes what `account` lets others know; durable on return.
    pub(crate) async fn set_preferences(&self, account: AccountId, preferences: Preferences) -> Result<(), StoreError> {
        self.directory.set_preferences(account, preferences).await
    }

    /// Sets whether `account` wants to hear nothing of `peer`; durable on return.
    pub(crate) async fn set_blocked(
        &self,
        account: AccountId,
        peer: AccountId,
        blocked: bool,
    ) -> Result<(), BlockError> {
        if account == peer {
            return Err(BlockError::Itself);
        }
        match self.directory.set_blocked(account, peer, blocked).await? {
            Blocked::Done => Ok(()),
            Blocked::TooMany => Err(BlockError::TooMany),
            Blocked::NotFound => Err(BlockError::NotFound),
        }
    }

    /// Whom `account` has blocked.
    pub(crate) async fn blocks(&self, account: AccountId) -> Result<Vec<AccountId>, StoreError> {
        self.directory.blocks(account).await
    }

    /// Where accounts are kept.
    pub(crate) fn directory(&self) -> &dyn Directory {
        &*self.directory
    }

    /// The limit of look-ups.
    pub(crate) fn look_up_limit(&self) -> LimitView {
        self.look_ups.view()
    }

    /// Whose token this is; `None` when it is nobody's.
    pub(crate) async fn authenticate(&self, token: &DeviceToken) -> Result<Option<Caller>, StoreError> {
        let device = DeviceAddress { account: token.account, device: token.device };
        let Some(record) = self.directory.device(device).await? else {
            return Ok(None);
        };
        let hash = token.hash();
        let mut genuine = bool::from(record.token_hash.ct_eq(&hash));
        if record.next_token_hash.is_some_and(|next| bool::from(next.ct_eq(&hash))) {
            // Its device has the new token: the old one has served.
            self.directory.promote_token(device, hash).await?;
            genuine = true;
        }
        Ok(genuine.then_some(Caller { device, reg_id: record.reg_id }))
    }

    /// What `asker` needs to write to somebody.
    pub(crate) async fn look_up(
        &self,
        asker: DeviceAddress,
        name: AccountName,
        now: Timestamp,
    ) -> Result<AccountView, LookUpError> {
        self.look_ups.spend(asker, now).map_err(|retry_after| LookUpError::TooMany { retry_after })?;
        let record = match name {
            AccountName::Id(account) => self.directory.account(account).await?,
            AccountName::Handle(handle) => self.directory.account_by_handle(handle).await?,
        };
        let AccountRecord { account, handle, account_key, device_list } = record.ok_or(LookUpError::NotFound)?;
        Ok(AccountView { account, handle, account_key, device_list })
    }
}

/// Checks everything a registration says about itself.
fn checked(request: RegisterRequest, epoch: u64) -> Result<NewAccount, RegisterError> {
    let RegisterRequest { account, handle, account_key, device_list, token_hash, proof, invite: _ } = request;
    let token_hash: [u8; 32] =
        token_hash.0.try_into().map_err(|_| RegisterError::Malformed("token_hash has 32 bytes"))?;
    let message = RegisterRequest::proof_message(account, &token_hash, &handle);
    account_key.verify(REGISTER_DOMAIN, &message, &proof.0)?;
    let list = device_list.verify(account, &account_key)?;
    let [device] = list.devices[..] else {
        return Err(RegisterError::Malformed("the first device list holds one device"));
    };
    if list.revision != 1 || device.id != DeviceId::FIRST {
        return Err(RegisterError::Malformed("the first device list is revision 1 with device 1"));
    }
    let record = AccountRecord { account, handle, account_key, device_list };
    Ok(NewAccount { record, device: device.id, reg_id: device.reg_id, token_hash, epoch, invite: None })
}
