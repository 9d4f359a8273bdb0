//! The two ways in which frames are written: protobuf for programs, JSON for whoever has no protobuf at hand.
//!
//! Both are the same schema. A WebSocket message, or the body of a poll, holds one or more frames: in protobuf each
//! prefixed by its length as a varint, in JSON (proto3's standard mapping: names in camelCase, bytes in base64, 64-bit
//! numbers as strings) one a line.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::{FRAME_BYTES_MAX, Frame, FrameError, SUBPROTOCOL_JSON, SUBPROTOCOL_PB, unpack};

/// How frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As protobuf.
    Protobuf,
    /// As JSON.
    Json,
}

impl Codec {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Protobuf, Self::Json];

    /// The WebSocket subprotocol.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Protobuf => SUBPROTOCOL_PB,
            Self::Json => SUBPROTOCOL_JSON,
        }
    }

    /// The media type of a poll's bodies.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.waxwing.v1.pb",
            Self::Json => "application/vnd.waxwing.v1.json",
        }
    }

    /// Bytes of one frame at most. Base64 makes a third more of bodies, and names take room.
    pub const fn frame_bytes_max(self) -> usize {
        match self {
            Self::Protobuf => FRAME_BYTES_MAX,
            Self::Json => FRAME_BYTES_MAX / 2 * 3,
        }
    }

    /// About how many bytes a frame takes.
    pub fn bytes(self, frame: &Frame) -> usize {
        match self {
            // The prefix has five bytes at most.
            Self::Protobuf => frame.encoded_len() + 5,
            Self::Json => frame.encoded_len() * 3 / 2 + 64,
        }
    }

    /// Appends a frame.
    pub fn pack(self, frame: &Frame, out: &mut BytesMut) {
        match self {
            Self::Protobuf => frame.pack(out),
            Self::Json => {
                serde_json::to_writer(out.writer(), frame).expect("frames have no maps, and memory grows as needed");
                out.put_u8(b'\n');
            }
        }
    }

    /// Takes the next frame off; `None` at the end.
    ///
    /// # Errors
    /// [`FrameError`] when what remains is not a frame; nothing after that can be trusted.
    pub fn unpack(self, message: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        if self == Self::Protobuf {
            return unpack(message);
        }
        loop {
            if message.is_empty() {
                return Ok(None);
            }
            let end = message.iter().position(|byte| *byte == b'\n');
            let line = message.split_to(end.unwrap_or(message.len()));
            if end.is_some() {
                message.advance(1);
            }
            if line.len() > self.frame_bytes_max() {
                return Err(FrameError::TooLarge(line.len()));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Ack, Class, Deliver, Envelope, Lane, SeqRange, frame::Body};

    fn frames() -> [Frame; 2] {
        let envelope = Envelope {
            seq: u64::MAX,
            msg_id: vec![7; 16].into(),
            class: Class::Call.into(),
            body: vec![0xFF; 100].into(),
            ..Envelope::default()
        };
        let deliver = Deliver { lane: Lane::Urgent.into(), envelopes: vec![envelope] };
        let ranges = vec![SeqRange { first: 9, last: 10 }];
        [
            Frame::push(Body::Deliver(deliver)),
            Frame::with_id(3, Body::Ack(Ack { lane: Lane::Normal.into(), up_to: 5, ranges })),
        ]
    }

    #[test]
    fn frames_come_back_from_both_codecs_as_they_were() {
        for codec in Codec::ALL {
            let mut out = BytesMut::new();
            frames().iter().for_each(|frame| codec.pack(frame, &mut out));
            assert!(out.len() <= frames().iter().map(|frame| codec.bytes(frame)).sum());
            let mut message = out.freeze();
            let back = [codec.unpack(&mut message).unwrap().unwrap(), codec.unpack(&mut message).unwrap().unwrap()];
            assert_eq!(back, frames());
            assert_eq!(codec.unpack(&mut message).unwrap(), None);
        }
    }

    #[test]
    fn json_is_the_standard_mapping_and_forgives_what_it_does_not_know() {
        let mut line = Bytes::from_static(
            b"\n {\"id\":3,\"ack\":{\"upTo\":\"5\",\"ranges\":[{\"first\":9,\"last\":\"10\"}]},\"later\":1}\n\n",
        );
        assert_eq!(Codec::Json.unpack(&mut line).unwrap().unwrap(), frames()[1]);
        assert_eq!(Codec::Json.unpack(&mut line).unwrap(), None);
        for malformed in [&b"{"[..], b"[]", b"{\"ack\":5}", b"\xff", b"{\"send\":{\"msgId\":\"!\"}}"] {
            assert!(Codec::Json.unpack(&mut Bytes::from_static(malformed)).is_err(), "{malformed:?}");
        }
    }
}
