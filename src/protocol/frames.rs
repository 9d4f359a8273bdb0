//! The frames of the messaging wire, and how they are packed into WebSocket messages.
//!
//! The types are generated from `waxwing.v1.proto`. A WebSocket message of the subprotocol `waxwing.v1.pb` holds one or
//! more frames, each prefixed by its length as a varint, so that a page of deliveries costs one write.

use bytes::{Bytes, BytesMut};
use prost::Message as _;

mod generated {
    #![allow(
        missing_docs,
        reason = "prost's oneofs and constructors; every message and field of the schema is documented"
    )]
    #![allow(unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/waxwing.v1.rs"));
    #[cfg(feature = "json")]
    include!(concat!(env!("OUT_DIR"), "/waxwing.v1.serde.rs"));
}

#[cfg(feature = "json")]
pub mod codec;

pub use generated::*;

/// The subprotocol whose messages are protobuf.
pub const SUBPROTOCOL_PB: &str = "waxwing.v1.pb";

/// The subprotocol whose messages are JSON, one frame a line: for browsers' developer tools, curl and scripts.
pub const SUBPROTOCOL_JSON: &str = "waxwing.v1.json";

/// Bytes of a message's ciphertext at most: 96 KiB. Larger things are blobs.
pub const BODY_BYTES_MAX: usize = 96 * 1024;

/// Bytes of one frame at most: a Send to eight devices with the largest bodies, and room for the rest.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Bytes to which a WebSocket message is filled with frames, unless a single frame is larger: 64 KiB.
pub const BATCH_BYTES: usize = 64 * 1024;

/// The window a client gets that asks for none: messages unacked at once.
pub const WINDOW_MSGS_DEFAULT: u32 = 256;
/// The largest window: messages unacked at once.
pub const WINDOW_MSGS_MAX: u32 = 4096;
/// The window a client gets that asks for none: bytes unacked at once.
pub const WINDOW_BYTES_DEFAULT: u32 = 1024 * 1024;
/// The largest window: bytes unacked at once.
pub const WINDOW_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// Bytes of a coalesce key at most.
pub const COALESCE_KEY_BYTES_MAX: usize = 16;

/// Messages that one [`DeliveryUpdate`] names at most.
pub const DELIVERY_IDS_MAX: usize = 256;

/// Accounts whose presence one connection can subscribe to at a time.
pub const PRESENCE_SUBSCRIPTIONS_MAX: usize = 512;

/// Bytes of an [`Ephemeral`]'s payload at most.
pub const EPHEMERAL_BYTES_MAX: usize = 512;

/// The frames for programs: an AsyncAPI 3 document, made of the schema.
#[cfg(feature = "json")]
pub const ASYNCAPI: &str = include_str!(concat!(env!("OUT_DIR"), "/asyncapi.json"));

/// WebSocket close codes that are Waxwing's own.
pub mod close {
    /// A message that is not frames.
    pub const BAD_FRAME: u16 = 4400;
    /// The token is missing, wrong or expired.
    pub const UNAUTHENTICATED: u16 = 4401;
    /// The origin or the account is refused.
    pub const REFUSED: u16 = 4403;
    /// No Hello, or silence for longer than 2.5 heartbeats.
    pub const SILENT: u16 = 4408;
    /// A newer connection of the same device took over.
    pub const DISPLACED: u16 = 4409;
    /// A frame over its limit.
    pub const TOO_LARGE: u16 = 4413;
    /// Too often; the Error before it says when to try again.
    pub const RATE_LIMITED: u16 = 4429;
    /// The server is going away; reconnect.
    pub const DRAINING: u16 = 4503;
    /// The client reads too slowly.
    pub const SLOW_READER: u16 = 4508;
}

/// Why a WebSocket message is not frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The protobuf or a length prefix is malformed.
    #[error("malformed frame: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A line is not a frame as JSON.
    #[error("malformed frame: {0}")]
    Json(#[from] serde_json::Error),
    /// A frame is over [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLarge(usize),
}

impl Frame {
    /// A frame that asks for no reply.
    pub fn push(body: frame::Body) -> Self {
        Self { id: 0, optional: false, body: Some(body) }
    }

    /// A frame that asks for a reply, or is one.
    pub fn with_id(id: u32, body: frame::Body) -> Self {
        Self { id, optional: false, body: Some(body) }
    }

    /// Appends the frame with its length prefix.
    pub fn pack(&self, out: &mut BytesMut) {
        self.encode_length_delimited(out).expect("BytesMut grows as needed");
    }

    /// The frame alone as a WebSocket message.
    pub fn to_message(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len() + 5);
        self.pack(&mut out);
        out.freeze()
    }
}

/// Takes the next frame off a WebSocket message; `None` at its end. Bodies share the message's memory.
///
/// # Errors
/// [`FrameError`] when what remains is not a frame; nothing after that can be trusted.
pub fn unpack(message: &mut Bytes) -> Result<Option<Frame>, FrameError> {
    if message.is_empty() {
        return Ok(None);
    }
    let length = prost::decode_length_delimiter(&mut *message)?;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    if length > message.len() {
        // Decoding what is there gives prost's own error for a cut buffer.
        let cut = Frame::decode_length_delimited(&[0x02, 0x08][..]).expect_err("a frame cut in its first field");
        return Err(cut.into());
    }
    let frame = message.split_to(length);
    Ok(Some(Frame::decode(frame)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn several_frames_share_a_message() {
        let mut out = BytesMut::new();
        for nonce in 0..3 {
            Frame::push(frame::Body::Ping(Ping { nonce })).pack(&mut out);
        }
        let mut message = out.freeze();
        for nonce in 0..3 {
            let frame = unpack(&mut message).unwrap().unwrap();
            assert_eq!(frame.body, Some(frame::Body::Ping(Ping { nonce })));
        }
        assert!(unpack(&mut message).unwrap().is_none());
    }

    #[test]
    fn a_cut_or_oversized_frame_is_an_error() {
        let whole = Frame::push(frame::Body::Bye(Bye { reason: "done".into() })).to_message();
        for cut in 1..whole.len() {
            assert!(unpack(&mut whole.slice(..cut)).is_err(), "{cut}");
        }
        let mut oversized = BytesMut::new();
        prost::encode_length_delimiter(FRAME_BYTES_MAX + 1, &mut oversized).unwrap();
        assert!(matches!(unpack(&mut oversized.freeze()), Err(FrameError::TooLarge(_))));
    }

    /// Every message and field of the schema is in the description, read here from its text; and the other way round.
    #[cfg(feature = "json")]
    #[test]
    fn the_description_has_what_the_schema_has() {
        use std::collections::BTreeSet;
        let described: serde_json::Value = serde_json::from_str(ASYNCAPI).unwrap();
        let (mut schema, mut within) = (BTreeSet::new(), String::new());
        for line in include_str!("waxwing.v1.proto").lines().map(str::trim) {
            let words: Vec<_> = line.split([' ', ';', '=']).filter(|word| !word.is_empty()).collect();
            match words[..] {
                ["message", name, "{"] => within = name.to_owned(),
                ["enum", ..] => within.clear(),
                [.., name, number]
                    if !within.is_empty() && number.parse::<u32>().is_ok() && !line.starts_with("//") =>
                {
                    schema.insert((within.clone(), name.to_owned(), number.parse().unwrap()));
                }
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        for (message, it) in described["components"]["schemas"].as_object().unwrap() {
            for field in it["properties"].as_object().into_iter().flat_map(|fields| fields.values()) {
                let field = &field["x-protobuf"];
                let number = u32::try_from(field["number"].as_u64().unwrap()).unwrap();
                found.insert((message.clone(), field["name"].as_str().unwrap().to_owned(), number));
            }
        }
        for (name, it) in described["components"]["messages"].as_object().unwrap() {
            let number = u32::try_from(it["x-protobuf"]["number"].as_u64().unwrap()).unwrap();
            found.insert(("Frame".to_owned(), name.clone(), number));
        }
        schema.retain(|(message, field, _)| message != "Frame" || !matches!(&field[..], "id" | "optional"));
        assert_eq!(found, schema);
        assert!(found.len() > 100, "{}", found.len());
        let hello = &described["operations"]["receive_hello"];
        assert_eq!(hello["reply"]["messages"][0]["$ref"], "#/channels/socket/messages/welcome");
        assert!(described["operations"]["send_hello"].is_null(), "only clients say it");
        for (name, code) in [("4413", close::TOO_LARGE), ("4508", close::SLOW_READER), ("4503", close::DRAINING)] {
            assert!(code.to_string() == name && described["info"]["description"].as_str().unwrap().contains(name));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut message = Bytes::from(bytes);
            while let Ok(Some(_)) = unpack(&mut message) {}
        }
    }
}
