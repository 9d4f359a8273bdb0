//! Share links: one URL that lets somebody without an account open one file.
//!
//! `https://HOST/s/<blob id>#<fragment>`. A browser never sends the fragment, so the server that serves the page does
//! not learn the key; the page or the command line reads it and sends only the grant, as a header.
//!
//! The fragment is base64url (RFC 4648 §5, no padding) of: version 1, key (32 bytes), header (40), size of the file
//! (8, big-endian), length of the name (2, big-endian), the name, and the share grant to the end.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::HEADER_BYTES;
use zeroize::Zeroizing;

use crate::blob::{BlobHeader, BlobKey, Layout};
use crate::blob_ref::BlobRef;

/// The version of fragments.
const VERSION: u8 = 1;

/// Characters of a link at most; longer ones are refused before they are parsed.
const LINK_CHARS_MAX: usize = 8 * 1024;

/// What a share link holds. Whoever has it can read the file: [`fmt::Display`] shows all of it, [`fmt::Debug`] no
/// secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ShareLink {
    /// The host that serves page and blob, such as `https://chat.example`; no slash at the end.
    pub base: String,
    /// The blob.
    pub blob: BlobId,
    /// The blob's key.
    pub key: BlobKey,
    /// The blob's header.
    pub header: BlobHeader,
    /// Bytes of the file.
    pub true_bytes: u64,
    /// The file's name as its sender has it; empty when it has none. At most [`BlobRef::FILE_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// The share grant, for `Authorization: Bearer`.
    pub grant: String,
}

/// Why a text is not a share link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareLinkError {
    /// The part before the `#` is not `https://HOST/s/<blob id>`.
    #[error("a share link looks like https://HOST/s/BLOB#KEY; this one has another address")]
    Address,
    /// The part after the `#` is missing: many programs cut it off.
    #[error("the share link lacks the part after #, without which the file cannot be opened; copy the whole link")]
    NoFragment,
    /// The part after the `#` is damaged.
    #[error("the part of the share link after # is damaged; copy the whole link")]
    Fragment,
}

impl ShareLink {
    /// The reference that opens the blob.
    pub fn blob_ref(&self) -> BlobRef {
        BlobRef {
            file_name: Some(self.name.clone()).filter(|name| !name.is_empty()),
            ..BlobRef::new(self.blob, self.key.clone(), self.header, self.true_bytes)
        }
    }

    fn fragment(&self) -> Zeroizing<Vec<u8>> {
        // A name over its limit is a caller's slip, not a reason to make a link nobody can read: it is left out.
        let name = if self.name.len() <= BlobRef::FILE_NAME_BYTES_MAX { self.name.as_str() } else { "" };
        let name_bytes = u16::try_from(name.len()).expect("at most 255");
        let mut bytes = Zeroizing::new(Vec::with_capacity(512 + self.grant.len()));
        bytes.push(VERSION);
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.extend_from_slice(self.header.as_bytes());
        bytes.extend_from_slice(&self.true_bytes.to_be_bytes());
        bytes.extend_from_slice(&name_bytes.to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(self.grant.as_bytes());
        bytes
    }
}

impl fmt::Display for ShareLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fragment = Zeroizing::new(BASE64URL_NOPAD.encode(&self.fragment()));
        write!(f, "{}/s/{}#{}", self.base, self.blob, *fragment)
    }
}

impl fmt::Debug for ShareLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShareLink({}/s/{}#..)", self.base, self.blob)
    }
}

impl FromStr for ShareLink {
    type Err = ShareLinkError;

    fn from_str(text: &str) -> Result<Self, ShareLinkError> {
        if text.len() > LINK_CHARS_MAX {
            return Err(ShareLinkError::Address);
        }
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (base, blob) = address.rsplit_once("/s/").ok_or(ShareLinkError::Address)?;
        if !is_base(base) {
            return Err(ShareLinkError::Address);
        }
        let blob = blob.parse().map_err(|_| ShareLinkError::Address)?;
        if fragment.is_empty() {
            return Err(ShareLinkError::NoFragment);
        }
        let bytes = BASE64URL_NOPAD.decode(fragment.as_bytes()).map_err(|_| ShareLinkError::Fragment)?;
        let parts = parse_fragment(&Zeroizing::new(bytes)).ok_or(ShareLinkError::Fragment)?;
        Ok(Self { base: base.to_owned(), blob, ..parts })
    }
}

/// A link whose base and blob are still to be filled in.
fn parse_fragment(bytes: &[u8]) -> Option<ShareLink> {
    let [VERSION, rest @ ..] = bytes else { return None };
    let (key, rest) = rest.split_first_chunk::<{ BlobKey::BYTES }>()?;
    let (header, rest) = rest.split_first_chunk::<HEADER_BYTES>()?;
    let (true_bytes, rest) = rest.split_first_chunk::<8>()?;
    let (name_bytes, rest) = rest.split_first_chunk::<2>()?;
    let (name, grant) = rest.split_at_checked(u16::from_be_bytes(*name_bytes).into())?;
    let true_bytes = u64::from_be_bytes(*true_bytes);
    Layout::of(true_bytes).ok()?;
    // It becomes a header: letters, digits and the signs of a JWT only.
    let is_grant = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.len() > BlobRef::FILE_NAME_BYTES_MAX || grant.is_empty() || !grant.iter().all(is_grant) {
        return None;
    }
    Some(ShareLink {
        base: String::new(),
        blob: BlobId::from_bytes([0; 32]),
        key: BlobKey::from_bytes(*key),
        header: BlobHeader::parse(header).ok()?,
        true_bytes,
        name: String::from_utf8(name.to_vec()).ok()?,
        grant: String::from_utf8(grant.to_vec()).ok()?,
    })
}

/// Whether a text is `http(s)://HOST[:PORT][/PATH]`, with nothing in it that could send the grant elsewhere.
fn is_base(base: &str) -> bool {
    let Some(rest) = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://")) else { return false };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '/');
    !rest.is_empty() && !rest.starts_with(['/', ':']) && !rest.ends_with('/') && rest.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link() -> ShareLink {
        ShareLink {
            base: "https://chat.example".into(),
            blob: BlobId::from_bytes([7; 32]),
            key: BlobKey::from_bytes([1; 32]),
            header: BlobHeader::generate(),
            true_bytes: 1_000_000,
            name: "фото 1.jpg".into(),
            grant: "eyJ.e30.abc-_".into(),
        }
    }

    #[test]
    fn a_link_is_read_as_it_was_written() {
        let link = link();
        let text = link.to_string();
        assert_eq!(text.parse(), Ok(link.clone()));
        assert!(text.starts_with(&format!("https://chat.example/s/{}#", link.blob)));
        let nameless = ShareLink { name: String::new(), base: "http://127.0.0.1:8460".into(), ..link.clone() };
        assert_eq!(nameless.to_string().parse(), Ok(nameless.clone()));
        assert_eq!(nameless.blob_ref().file_name, None);
        assert!(!format!("{link:?}").contains(&text[100..120]));
    }

    #[test]
    fn only_the_whole_link_opens_anything() {
        let text = link().to_string();
        let (address, fragment) = text.split_once('#').unwrap();
        assert_eq!(address.parse::<ShareLink>(), Err(ShareLinkError::NoFragment));
        assert_eq!(format!("{address}#").parse::<ShareLink>(), Err(ShareLinkError::NoFragment));
        // Cut anywhere before the grant, or with a character that is none of base64url.
        for cut in 1..120 {
            assert_eq!(format!("{address}#{}", &fragment[..cut]).parse::<ShareLink>(), Err(ShareLinkError::Fragment));
        }
        assert_eq!(format!("{text}=").parse::<ShareLink>(), Err(ShareLinkError::Fragment));
        assert_eq!(format!("{text} ").parse::<ShareLink>(), Err(ShareLinkError::Fragment));
    }

    #[test]
    fn addresses_that_lead_elsewhere_are_refused() {
        let link = link();
        for base in [
            "",
            "ftp://a",
            "https://",
            "https:///x",
            "https://u:p@evil",
            "https://a b",
            "https://a?b=",
            "javascript:x",
            "https://a/",
        ] {
            let text = ShareLink { base: base.into(), ..link.clone() }.to_string();
            assert_eq!(text.parse::<ShareLink>(), Err(ShareLinkError::Address), "{base}");
        }
        let other_path = link.to_string().replace("/s/", "/v1/blobs/");
        assert_eq!(other_path.parse::<ShareLink>(), Err(ShareLinkError::Address));
        assert_eq!("x".repeat(LINK_CHARS_MAX + 1).parse::<ShareLink>(), Err(ShareLinkError::Address));
    }

    #[test]
    fn a_grant_that_would_break_a_header_is_refused() {
        for grant in ["", "a\r\nX: y", "a b"] {
            let text = ShareLink { grant: grant.into(), ..link() }.to_string();
            assert_eq!(text.parse::<ShareLink>(), Err(ShareLinkError::Fragment), "{grant:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(fragment in "[A-Za-z0-9_-]{0,300}") {
            let _ = format!("https://a/s/{}#{fragment}", BlobId::from_bytes([7; 32])).parse::<ShareLink>();
        }
    }
}
