//! Typed ids: what names a blob, an upload, an account, a device, a message.
//!
//! Ids arrive as text in paths, headers and JSON, from anyone. Each is parsed once, at the border, into a type that can
//! hold nothing but a well-formed id; behind the border no code joins a stranger's text into a path or a key.
//!
//! Text forms are canonical: one id has exactly one spelling, so a cache or a purge list cannot be passed by a second.

use std::fmt;
use std::str::FromStr;

use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::LazyLock;
use uuid::Uuid;

/// Lower-case RFC 4648 base32 without padding; trailing bits must be zero, so that every id has one spelling.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("32 distinct symbols are a valid base32 alphabet")
});

/// Why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed {kind}")]
pub struct IdError {
    /// What the text should have named, such as `blob id`.
    pub kind: &'static str,
}

/// Text and serde forms of an id that is `$len` bytes in base32.
macro_rules! base32_id {
    ($name:ident, $len:literal, $kind:literal) => {
        impl $name {
            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The id's bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                BASE32.encode_display(&self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = IdError { kind: $kind };
                let mut bytes = [0; $len];
                if BASE32.decode_len(text.len()) != Ok($len) {
                    return Err(error);
                }
                BASE32.decode_mut(text.as_bytes(), &mut bytes).map_err(|_| error)?;
                Ok(Self(bytes))
            }
        }

        text_serde!($name);
    };
}

/// Serde through `Display` and `FromStr`.
macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Names a blob: the BLAKE3-256 hash of its sealed bytes, as 52 characters of base32.
///
/// Nobody who has not seen the bytes can guess it, so knowing it is itself a capability to ask for them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId([u8; 32]);

base32_id!(BlobId, 32, "blob id");

/// Names an upload: 128 random bits, as 26 characters of base32. Unguessable, since its holder may append.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId([u8; 16]);

base32_id!(UploadId, 16, "upload id");

/// Names whoever owns blobs, to the origin only: a tag that messaging derives from the account under a key of its own,
/// so that the origin can count quotas and knows no accounts. 26 characters of base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerTag([u8; 16]);

base32_id!(OwnerTag, 16, "owner tag");

/// Names the meeting of a device of an account and one that is to be linked: derived from the code that the new one
/// shows, 26 characters of base32. It does not tell the code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId([u8; 16]);

base32_id!(LinkId, 16, "link id");

/// Names an account: a UUID made by its first device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Uuid);

/// Names a message: a UUIDv7 made by its sender, and the key under which sending it twice is sending it once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsgId(Uuid);

/// Names a group: a UUID made by whoever founds it; also the token of its conversation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(Uuid);

/// Names a channel: a random UUID made by whoever founds it. Nobody guesses one, so knowing it is what lets somebody ask for
/// the channel's ciphertext.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(Uuid);

/// Text, byte and serde forms of an id that is a UUID.
macro_rules! uuid_id {
    ($name:ident, $kind:literal) => {
        impl $name {
            /// The id with these 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The id's 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id in these bytes.
            ///
            /// # Errors
            /// When there are not exactly 16 of them.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| IdError { kind: $kind })
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = IdError { kind: $kind };
                let uuid = Uuid::try_parse(text).map_err(|_| error)?;
                // Braces, upper case and the undashed form parse as well: only the canonical spelling is an id.
                let id = Self(uuid);
                if id.to_string() == text { Ok(id) } else { Err(error) }
            }
        }

        text_serde!($name);
    };
}

uuid_id!(AccountId, "account id");
uuid_id!(MsgId, "message id");
uuid_id!(GroupId, "group id");
uuid_id!(ChannelId, "channel id");

/// Names a device within its account. 1 is the first; numbers are never used again. 0 names no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct DeviceId(u32);

impl DeviceId {
    /// The device that made the account.
    pub const FIRST: Self = Self(1);

    /// The device numbered `number`.
    ///
    /// # Errors
    /// When `number` is 0.
    pub const fn new(number: u32) -> Result<Self, IdError> {
        if number == 0 { Err(IdError { kind: "device id" }) } else { Ok(Self(number)) }
    }

    /// The device's number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for DeviceId {
    type Error = IdError;

    fn try_from(number: u32) -> Result<Self, IdError> {
        Self::new(number)
    }
}

impl From<DeviceId> for u32 {
    fn from(device: DeviceId) -> Self {
        device.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DeviceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = IdError { kind: "device id" };
        let canonical = !text.starts_with(['0', '+']);
        if !canonical {
            return Err(error);
        }
        text.parse::<u32>().map_err(|_| error).and_then(Self::new)
    }
}

/// The name people type: 2 to 32 characters of `a-z`, `0-9`, `.`, `_` and `-`, beginning with a letter.
///
/// Lower case only, so that two handles never differ by case alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(String);

impl Handle {
    /// The most characters a handle can have.
    pub const CHARS_MAX: usize = 32;

    /// The handle as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Handle {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let well_formed = (2..=Self::CHARS_MAX).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError { kind: "handle (2 to 32 of a-z 0-9 . _ -, a letter first)" })
        }
    }
}

text_serde!(Handle);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_id_has_exactly_one_spelling() {
        let id = BlobId::from_bytes([0xA5; 32]);
        let text = id.to_string();
        assert_eq!(text.len(), 52);
        assert_eq!(text.parse(), Ok(id));
        assert!(text.to_uppercase().parse::<BlobId>().is_err());
        assert!(format!("{text}====").parse::<BlobId>().is_err());
        // The last character carries four spare bits: any but zero would be a second spelling.
        let twin = &text[..51];
        for c in "abcdefghijklmnopqrstuvwxyz234567".chars() {
            let spelled = format!("{twin}{c}");
            if let Ok(id) = spelled.parse::<BlobId>() {
                assert_eq!(id.to_string(), spelled);
            }
        }
    }

    #[test]
    fn paths_and_other_text_are_not_ids() {
        let long = "a".repeat(51);
        for text in ["", "..", "../../etc/passwd", "a/b", long.as_str(), "é", "%2e%2e"] {
            assert!(text.parse::<BlobId>().is_err(), "{text}");
            assert!(text.parse::<UploadId>().is_err(), "{text}");
            assert!(text.parse::<AccountId>().is_err(), "{text}");
            assert!(text.parse::<Handle>().is_err(), "{text}");
        }
    }

    #[test]
    fn uuids_are_read_in_their_canonical_spelling_only() {
        let id = AccountId::from_bytes([7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().replace('-', "").parse::<AccountId>().is_err());
        assert!(format!("{{{id}}}").parse::<AccountId>().is_err());
    }

    #[test]
    fn handles_are_lower_case_and_begin_with_a_letter() {
        for good in ["al", "alice", "a.b_c-9"] {
            assert!(good.parse::<Handle>().is_ok(), "{good}");
        }
        for bad in ["a", "Alice", "9lives", "-x", "a b", &"a".repeat(33)] {
            assert!(bad.parse::<Handle>().is_err(), "{bad}");
        }
    }

    #[test]
    fn device_zero_and_padded_numbers_are_refused() {
        assert_eq!("1".parse(), Ok(DeviceId::FIRST));
        for bad in ["0", "01", "+1", "-1", "4294967296", ""] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }
}
