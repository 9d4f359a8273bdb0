//! Links that let people follow a channel.
//!
//! `https://HOST/c/CHANNEL#SECRET`. What stands behind the `#` never reaches a server: who owns the channel, with the key that
//! signs its charters, and the key that opens what is written. So whoever comes by a link believes no server about either.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use waxwing_protocol::channel::Author;
use waxwing_protocol::identity::PublicKey;
use waxwing_protocol::{AccountId, ChannelId};
use waxwing_seal::channel::ChannelKey;
use zeroize::Zeroizing;

/// The version of what stands behind the `#`.
const VERSION: u8 = 1;

/// Bytes behind the `#`: version, owner, the owner's key, epoch, key.
const SECRET_BYTES: usize = 1 + 16 + 32 + 8 + 32;

/// Characters of a link at most.
const LINK_CHARS_MAX: usize = 2048;

/// A link to a channel. Whoever has it can read what is written there until its key is replaced: [`fmt::Display`] shows all of
/// it, [`fmt::Debug`] no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelLink {
    /// The service, such as `https://chat.example`; no slash at the end.
    pub base: String,
    /// The channel.
    pub channel: ChannelId,
    /// Who owns it.
    pub owner: Author,
    /// The epoch of a charter whose key it is.
    pub epoch: u64,
    /// The key.
    pub key: ChannelKey,
}

/// The text is no link to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the link of a channel, which looks like https://HOST/c/CHANNEL#KEY; copy the whole of it")]
pub struct ChannelLinkError;

impl fmt::Debug for ChannelLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelLink({}/c/{}#..)", self.base, self.channel)
    }
}

impl fmt::Display for ChannelLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut secret = Zeroizing::new(Vec::with_capacity(SECRET_BYTES));
        secret.push(VERSION);
        secret.extend_from_slice(self.owner.account.as_bytes());
        secret.extend_from_slice(&self.owner.account_key.0);
        secret.extend_from_slice(&self.epoch.to_be_bytes());
        secret.extend_from_slice(&*self.key.to_bytes());
        let secret = Zeroizing::new(BASE64URL_NOPAD.encode(&secret));
        write!(f, "{}/c/{}#{}", self.base, self.channel, *secret)
    }
}

impl FromStr for ChannelLink {
    type Err = ChannelLinkError;

    fn from_str(text: &str) -> Result<Self, ChannelLinkError> {
        parse(text.trim()).ok_or(ChannelLinkError)
    }
}

fn parse(text: &str) -> Option<ChannelLink> {
    if text.len() > LINK_CHARS_MAX {
        return None;
    }
    let (address, secret) = text.split_once('#')?;
    let (base, channel) = address.rsplit_once("/c/")?;
    if !(base.starts_with("https://") || base.starts_with("http://")) {
        return None;
    }
    let secret = Zeroizing::new(BASE64URL_NOPAD.decode(secret.as_bytes()).ok()?);
    let secret: &[u8; SECRET_BYTES] = secret[..].try_into().ok()?;
    let (version, rest) = secret.split_first()?;
    let (owner, rest) = rest.split_first_chunk::<16>()?;
    let (owner_key, rest) = rest.split_first_chunk::<32>()?;
    let (epoch, rest) = rest.split_first_chunk::<8>()?;
    let key: &[u8; 32] = rest.try_into().ok()?;
    (*version == VERSION).then_some(())?;
    Some(ChannelLink {
        base: base.to_owned(),
        channel: channel.parse().ok()?,
        owner: Author { account: AccountId::from_bytes(*owner), account_key: PublicKey(*owner_key) },
        epoch: u64::from_be_bytes(*epoch),
        key: ChannelKey::from_bytes(key),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_reads_as_it_was_written_and_nothing_else_does() {
        let link = ChannelLink {
            base: "https://chat.example".into(),
            channel: ChannelId::from_bytes([1; 16]),
            owner: Author { account: AccountId::from_bytes([2; 16]), account_key: PublicKey([3; 32]) },
            epoch: 7,
            key: ChannelKey::generate(),
        };
        let text = link.to_string();
        assert_eq!(text.parse(), Ok(link.clone()));
        assert!(text.starts_with(&format!("https://chat.example/c/{}#", link.channel)));
        assert!(!format!("{link:?}").contains(&text[text.len() - 20..]), "its key is not printed by accident");
        let (address, _) = text.split_once('#').unwrap();
        let ftp = text.replace("https", "ftp");
        let long = format!("{text}{}", "A".repeat(3000));
        for wrong in ["", address, &text[1..], &text[..text.len() - 1], &ftp, &long, "https://a/c/b#AAAA", "é"] {
            assert!(wrong.parse::<ChannelLink>().is_err(), "{wrong}");
        }
    }
}
