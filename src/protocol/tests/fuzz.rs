//! Every parser of this crate that meets the network, given what is nearly right.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "../../../tests/fuzz/mutations.rs"]
mod mutations;

use bytes::{Bytes, BytesMut};
use ed25519_dalek::{Signer as _, SigningKey};
use mutations::{fuzz, fuzz_text};
use waxwing_protocol::blob::{BlobHasher, GROUP_BYTES, Outboard};
use waxwing_protocol::channel::{
    Author, CHANNEL_CHARTER_DOMAIN, CHANNEL_ENTRY_DOMAIN, Charter, Entry, Page, Position, SignedCharter, SignedEntry,
};
use waxwing_protocol::frames::{Frame, frame, unpack};
use waxwing_protocol::http1::Framing;
use waxwing_protocol::identity::{
    Base64, DEVICE_LIST_DOMAIN, Device, DeviceList, PublicKey, SignedDeviceList, signed_bytes,
};
use waxwing_protocol::range::{RANGES_MAX, Selection, parse_content_range, parse_ranges, select};
use waxwing_protocol::{
    AccountId, BlobId, ChannelId, DeviceId, DeviceToken, Handle, MsgId, Problem, Timestamp, UploadId,
};

#[test]
fn fuzz_ranges() {
    let corpus = ["bytes=0-499", "bytes=500-", "bytes=-500", "Bytes=0-0, -1", "bytes=0-0,2-2,4-4,6-6", "items=1-2"];
    fuzz_text("ranges", &corpus, |header| {
        let _ = parse_ranges(header);
        for size in [0, 1, 500, u64::MAX] {
            let Selection::Parts(parts) = select(header, size) else { continue };
            assert!(!parts.is_empty() && parts.len() <= RANGES_MAX);
            for (at, part) in parts.iter().enumerate() {
                assert!(part.start < part.end && part.end <= size, "{part:?} of {size}");
                let apart =
                    |other: &waxwing_protocol::range::ByteRange| part.end < other.start || other.end < part.start;
                assert!(parts[at + 1..].iter().all(apart), "{parts:?} touch");
            }
        }
    });
}

#[test]
fn fuzz_content_ranges() {
    let corpus = ["bytes 0-499/1000", "bytes 999-999/1000", "bytes */1000", "bytes 0-0/*"];
    fuzz_text("content ranges", &corpus, |header| {
        if let Some((range, size)) = parse_content_range(header) {
            assert!(range.start < range.end && range.end <= size);
            assert_eq!(parse_content_range(&range.content_range(size)), Some((range, size)));
        }
    });
}

/// However the network cuts a request, it is followed alike; and no line that passes ends otherwise than by CR and LF.
#[test]
fn fuzz_framing() {
    let corpus: [&[u8]; 4] = [
        b"GET /v1/blobs/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\nRange: bytes=0-4\r\n\r\n",
        b"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nbytesGET / HTTP/1.0\r\n\r\n",
        b"PUT /v1/blobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nbytes\r\n0\r\nX: y\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0",
    ];
    fuzz("framing", &corpus, |input| {
        let mut whole = Framing::new();
        let at_once = whole.follow(input).map_err(|error| error.at);
        let mut cut = Framing::new();
        let (head, tail) = input.split_at(input.len() / 3);
        let in_two = cut.follow(head).map_err(|error| error.at);
        let in_two = in_two.and_then(|()| cut.follow(tail).map_err(|error| head.len() + error.at));
        assert_eq!(at_once, in_two);
        assert_eq!(whole.is_between(), cut.is_between());
        if let (Ok(()), Some(end)) = (at_once, input.iter().position(|byte| *byte == b'\n')) {
            assert!(end > 0 && input[end - 1] == b'\r');
        }
    });
}

#[test]
fn fuzz_frames() {
    let ping = |nonce| frame::Body::Ping(waxwing_protocol::frames::Ping { nonce });
    let mut several = BytesMut::new();
    for n in 0..3 {
        Frame::with_id(n, ping(u64::from(n))).pack(&mut several);
    }
    let one = Frame::push(ping(u64::MAX)).to_message();
    fuzz("frames", &[&several, &one], |input| {
        let mut message = Bytes::copy_from_slice(input);
        // Each frame takes bytes off the message, so this ends.
        while let Ok(Some(frame)) = unpack(&mut message) {
            assert_eq!(unpack(&mut frame.to_message()).unwrap(), Some(frame));
        }
    });
}

#[cfg(feature = "json")]
#[test]
fn fuzz_json_frames() {
    use waxwing_protocol::frames::codec::Codec;
    let corpus: [&[u8]; 3] = [
        br#"{"id":3,"ack":{"lane":"URGENT","upTo":"5","ranges":[{"first":9,"last":"10"}]}}"#,
        br#"{"id":1,"send":{"msgId":"AAECAwQFBgcICQoLDA0ODw==","direct":{"devices":[{"device":1,"ciphertext":"AQ=="}]}}}"#,
        b"{\"ping\":{\"nonce\":\"7\"}}\n{\"optional\":true,\"later\":{}}\n",
    ];
    fuzz("JSON frames", &corpus, |input| {
        let mut message = Bytes::copy_from_slice(input);
        // Each frame takes bytes off the message, so this ends.
        while let Ok(Some(frame)) = Codec::Json.unpack(&mut message) {
            // A kind that this version does not know has a number and no name to write.
            let Ok(line) = serde_json::to_vec(&frame) else { continue };
            assert_eq!(Codec::Json.unpack(&mut line.into()).unwrap(), Some(frame));
        }
    });
}

#[test]
fn fuzz_device_lists() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = PublicKey::from_slice(key.verifying_key().as_bytes()).unwrap();
    let account = AccountId::from_slice(&[1; 16]).unwrap();
    let device = |n: u32| Device {
        id: DeviceId::new(n).unwrap(),
        reg_id: n * 1000,
        curve25519: PublicKey::from_slice(&[n as u8; 32]).unwrap(),
        ed25519: public,
    };
    let list = DeviceList {
        account,
        revision: 3,
        signed_at: Timestamp::from_secs(1_800_000_000),
        devices: vec![device(1), device(2), device(9)],
    };
    fuzz("device lists", &[&list.to_bytes()], |input| {
        // Signed as it is: what its own account key signed may still be nonsense.
        let signature = key.sign(&signed_bytes(DEVICE_LIST_DOMAIN, input)).to_bytes().to_vec();
        let signed = SignedDeviceList { list: Base64(input.to_vec()), signature: Base64(signature) };
        if let Ok(read) = signed.verify(account, &public) {
            assert!(read.account == account && (1..=32).contains(&read.devices.len()));
            assert!(read.devices.is_sorted_by(|a, b| a.id < b.id));
        }
    });
}

/// Charters and entries, signed as they are: whoever owns a channel may still send nonsense.
#[test]
fn fuzz_channels() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let (owner, owner_key) = (AccountId::from_bytes([1; 16]), PublicKey(key.verifying_key().to_bytes()));
    let charter = Charter {
        channel: ChannelId::from_bytes([9; 16]),
        epoch: 1,
        previous: None,
        owner,
        owner_key,
        authors: vec![Author { account: owner, account_key: owner_key }],
        key_id: [5; 32],
        title: b"sealed".to_vec(),
        after: Position::default(),
        made_at: Timestamp::from_secs(1_800_000_000),
    };
    let sign = |domain, message: &[u8]| key.sign(&signed_bytes(domain, message)).to_bytes().to_vec();
    fuzz("charters", &[&charter.to_bytes()], |input| {
        let signature = Base64(sign(CHANNEL_CHARTER_DOMAIN, input));
        let signed = SignedCharter { charter: Base64(input.to_vec()), signature };
        if let Ok(read) = signed.verify(None) {
            assert!(read.to_bytes() == input && read.author(read.owner).is_some() && read.epoch == 1);
            assert!(read.authors.is_sorted_by(|a, b| a.account < b.account));
        }
    });
    let msg_id = MsgId::from_bytes([3; 16]);
    let entry = Entry { epoch: 1, after: Position::default(), author: 0, msg_id, body: b"sealed".to_vec() }.to_bytes();
    fuzz("entries", &[&entry], |input| {
        let signature = sign(CHANNEL_ENTRY_DOMAIN, &Entry::signed_message(charter.channel, input));
        let bytes = SignedEntry { entry: input.to_vec(), signature }.to_bytes();
        if let Ok((read, at)) = SignedEntry::verify(&bytes, &charter, &Position::default()) {
            assert!(read.to_bytes() == input && at.seq == 1 && read.author == 0);
        }
    });
    let page = Page { first_seq: 1, entries: vec![entry.clone(), entry] }.to_bytes();
    fuzz("pages", &[&page], |input| {
        if let Ok(read) = Page::from_bytes(input) {
            assert!(read.entries.iter().map(Vec::len).sum::<usize>() <= input.len());
        }
    });
}

#[test]
fn fuzz_ids_and_tokens() {
    let token = "wxd_".to_owned() + &"a".repeat(52);
    let corpus = [
        "aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "0196b0a4-0000-7000-8000-000000000000",
        "alice",
        "alice@example.org",
        &token,
    ];
    fuzz_text("ids and tokens", &corpus, |text| {
        // An id has exactly one spelling: whatever is read is written the same.
        macro_rules! one_spelling {
            ($($id:ty),+) => {
                $(if let Ok(id) = text.parse::<$id>() { assert_eq!(id.to_string(), text); })+
            };
        }
        one_spelling!(UploadId, BlobId, AccountId, MsgId, Handle);
        if let Ok(token) = text.parse::<DeviceToken>() {
            assert_eq!(token.to_text(), text);
        }
    });
}

#[test]
fn fuzz_outboards() {
    let data: Vec<u8> = (0..3 * GROUP_BYTES + 5).map(|n| n as u8).collect();
    let (mut hasher, mut outboard) = (BlobHasher::new(), Vec::new());
    hasher.update(&data, |cv| outboard.extend_from_slice(cv));
    let id = hasher.finish(|cv| outboard.extend_from_slice(cv));
    let size = data.len() as u64;
    assert!(Outboard::verify(id, size, &outboard).is_ok());
    fuzz("outboards", &[&outboard], |input| {
        for claimed in [size, size - 1, input.len() as u64 * 2048, 0, u64::MAX] {
            if let Ok(read) = Outboard::verify(id, claimed, input) {
                assert_eq!(input, outboard, "another outboard passed for the blob's");
                let beyond = data.chunks(GROUP_BYTES as usize).len() as u64;
                assert!(read.verify_group(beyond, &data[..5]).is_err());
            }
        }
    });
}

#[test]
fn fuzz_problems() {
    let problem = Problem::new(409, "offset-mismatch", "client is at offset 5, server at 3").with("offset", 3);
    fuzz("problems", &[&problem.to_json(), br#"{"type":"about:blank","title":"","status":500}"#], |input| {
        if let Ok(problem) = serde_json::from_slice::<Problem>(input) {
            let _ = problem.slug();
            let again: Problem = serde_json::from_slice(&problem.to_json()).unwrap();
            assert_eq!(again.kind, problem.kind);
        }
    });
}
