//! This device's token, replaced from time to time.
//!
//! A token that was read off a disk or a log would serve its thief for ever. So the device makes another one every
//! [`LIFETIME`], has the server add it, and the first use of it ends the old one. It is stored before its hash leaves, so
//! that a cut anywhere leaves a token that works: the old one until the new one was used, which is stored by then.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use waxwing_protocol::Timestamp;
use waxwing_protocol::frames::{Refresh, frame::Body};
use waxwing_protocol::token::{DeviceToken, TOKEN_SECRET_BYTES};
use zeroize::Zeroizing;

use crate::account::{ACCOUNT, AccountRow, SELF, me};
use crate::http::{CREDENTIALS, Credentials, Token};
use crate::profile::{Rows as _, Table, WriteTx};
use crate::route::{Line, Reply};
use crate::{Client, ClientError};

/// How long a token serves.
pub(crate) const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Since when the token serves, and the one that is to follow it.
const TOKEN: Table<TokenRow> = Table::new("token");

#[derive(Serialize, Deserialize)]
struct TokenRow {
    since: Timestamp,
    next: Option<Token>,
}

impl Client {
    /// Replaces this device's token if it has served for long enough. Whoever calls it has the
    /// [turn](crate::route::Route::turn).
    pub(crate) async fn renew_token(&self, line: &mut Line<'_>, now: Timestamp) -> Result<(), ClientError> {
        let Some(next) = self.profile.write(|tx| due(tx, now))? else { return Ok(()) };
        let token: DeviceToken = next.as_str().parse()?;
        let refresh = Refresh { token_hash: token.hash().to_vec().into() };
        match line.ask(Body::Refresh(refresh)).await? {
            Reply::Done => {
                self.profile.write(|tx| renewed(tx, &next, now))?;
                self.service.set_token(&next);
            }
            // A server that knows no other tokens: this one serves on.
            Reply::Refused(error) => tracing::warn!("the token was not replaced: {}", error.message),
            Reply::Taken(_) => tracing::warn!("Refresh was answered by another frame"),
        }
        Ok(())
    }
}

/// The token to have added, if one is due; stored.
fn due(tx: &WriteTx<'_>, now: Timestamp) -> Result<Option<Token>, ClientError> {
    let row = match tx.get(&TOKEN, SELF)? {
        Some(row) => row,
        // Registered or linked just now, or by a version that did not write it down.
        None => {
            tx.put(&TOKEN, SELF, &TokenRow { since: now, next: None })?;
            return Ok(None);
        }
    };
    match row.next {
        Some(next) => Ok(Some(next)),
        None if now.since(row.since) < LIFETIME => Ok(None),
        None => {
            let AccountRow { account, device, .. } = me(tx)?;
            let mut secret = Zeroizing::new([0; TOKEN_SECRET_BYTES]);
            getrandom::fill(&mut *secret).expect("the operating system provides randomness");
            let next = Token::new(DeviceToken::new(account, device, *secret).to_text());
            tx.put(&TOKEN, SELF, &TokenRow { since: row.since, next: Some(next.clone()) })?;
            Ok(Some(next))
        }
    }
}

/// The server takes the new token: this device shows it from now on.
fn renewed(tx: &WriteTx<'_>, token: &Token, now: Timestamp) -> Result<(), ClientError> {
    let row = AccountRow { token: token.clone(), ..me(tx)? };
    let credentials = Credentials { server: row.server.clone(), token: token.clone() };
    tx.put(&CREDENTIALS, Credentials::KEY, &credentials)?;
    tx.put(&ACCOUNT, SELF, &row)?;
    tx.put(&TOKEN, SELF, &TokenRow { since: now, next: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::tests::registered;

    /// Killed anywhere, the device has a token that works: the old one, or the one whose hash the server may have.
    #[test]
    fn a_token_is_made_once_and_kept_until_the_server_has_taken_it() {
        let home = tempfile::tempdir().unwrap();
        let (profile, _) = registered(home.path(), "alice");
        let start = Timestamp::from_secs(1_000_000);
        let due = |now| profile.write(|tx| due(tx, now)).unwrap().map(|token| token.as_str().to_owned());
        assert_eq!(due(start), None);
        assert_eq!(due(start.plus(LIFETIME - Duration::from_secs(1))), None);
        let late = start.plus(LIFETIME);
        let next = due(late).unwrap();
        assert_eq!(due(late), Some(next.clone()), "the answer was lost");
        let before = profile.read(|tx| me(tx)).unwrap();
        assert_ne!(before.token.as_str(), next);
        assert!(next.starts_with(&format!("{}.{}.", before.account, before.device)));
        profile.write(|tx| renewed(tx, &Token::new(next.clone()), late)).unwrap();
        assert_eq!(profile.read(|tx| me(tx)).unwrap().token.as_str(), next);
        assert_eq!(due(late), None);
    }
}
