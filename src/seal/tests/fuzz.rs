//! Every parser of this crate that reads what others wrote, given what is nearly right.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../tests/fuzz/mutations.rs"]
mod mutations;

use mutations::{fuzz, fuzz_text};
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::HEADER_BYTES;
use waxwing_seal::blob::{BlobHeader, BlobKey};
use waxwing_seal::blob_ref::BlobRef;
use waxwing_seal::message::Content;
use waxwing_seal::share::ShareLink;

fn reference() -> BlobRef {
    let header = BlobHeader::generate();
    let reference = BlobRef::new(BlobId::from_bytes([7; 32]), BlobKey::from_bytes([8; 32]), header, 5_000_000);
    BlobRef { media_type: "image/jpeg".into(), file_name: Some("photo.jpg".into()), ..reference }
}

#[test]
fn fuzz_blob_refs() {
    fuzz("blob references", &[&reference().encode()], |input| {
        if let Ok(read) = BlobRef::decode(input) {
            assert!(read.layout().is_ok(), "a size that no blob has");
            assert_eq!(BlobRef::decode(&read.encode()).unwrap(), read);
        }
    });
}

#[test]
fn fuzz_share_links() {
    let BlobRef { id, key, header, true_bytes, .. } = reference();
    let base = "https://media.example".into();
    let link = ShareLink { base, blob: id, key, header, true_bytes, name: "photo.jpg".into(), grant: "a.b-c_".into() };
    let link = link.to_string();
    let local = link.replace("https://media.example", "http://127.0.0.1:8460");
    fuzz_text("share links", &[&link, &local], |text| {
        if let Ok(link) = text.parse::<ShareLink>() {
            let again: ShareLink = link.to_string().parse().expect("what is written is read");
            assert_eq!(again.to_string(), link.to_string());
        }
    });
}

#[test]
fn fuzz_messages() {
    let text = Content::Text("hello".into()).to_bytes();
    let file = Content::File(Box::new(reference())).to_bytes();
    fuzz("messages", &[&text, &file], |input| {
        if let Ok(read) = Content::from_bytes(input) {
            let _ = read.to_bytes();
        }
    });
}

#[test]
fn fuzz_blob_headers() {
    let mut header = vec![40];
    header.resize(HEADER_BYTES, 9);
    fuzz("blob headers", &[&header], |input| {
        assert_eq!(BlobHeader::parse(input).is_ok(), input.len() == HEADER_BYTES && input[0] == 40);
    });
}
