//! Known answers from Google Tink's Python library: see `vectors/make_vectors.py`.

use data_encoding::HEXLOWER;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{BlobHeader, BlobKey, Layout, Opener, SegmentCipher};

/// Sealed by Tink, not padded. `vectors/interop.sh` has others, made a moment ago, read instead.
const TINK: &str = include_str!("../vectors/tink.json");

/// Sealed by this crate, padded, and opened by Tink.
const OURS: &str = include_str!("../vectors/ours.json");

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    key: String,
    header: String,
    true_bytes: u64,
    sealed_bytes: u64,
    sealed_sha256: String,
    sealed: Option<String>,
}

impl Vector {
    fn key(&self) -> BlobKey {
        BlobKey::from_bytes(hex(&self.key).try_into().unwrap())
    }

    fn header(&self) -> BlobHeader {
        BlobHeader::parse(&hex(&self.header)).unwrap()
    }

    fn plaintext(&self) -> Vec<u8> {
        (0..self.true_bytes).map(|i| (7 * i + i / 251) as u8).collect()
    }

    /// The whole blob, sealed here.
    fn seal(&self, layout: Layout) -> Vec<u8> {
        let cipher = SegmentCipher::new(&self.key(), &self.header());
        let mut padded = self.plaintext();
        padded.resize(layout.padded_bytes() as usize, 0);
        let mut blob = self.header().as_bytes().to_vec();
        for index in 0..layout.segments() {
            let range = layout.plaintext_range(index);
            let start = blob.len();
            blob.extend_from_slice(&padded[range.start as usize..range.end as usize]);
            blob.extend_from_slice(&[0; 16]);
            cipher.seal_in_place(index, layout.is_last(index), &mut blob[start..]);
        }
        blob
    }

    fn check(&self, layout: Layout) {
        let sealed = self.seal(layout);
        assert_eq!(sealed.len() as u64, self.sealed_bytes);
        assert_eq!(HEXLOWER.encode(&Sha256::digest(&sealed)), self.sealed_sha256, "{} bytes", self.true_bytes);
        let blob = self.sealed.as_deref().map_or(sealed, hex);
        let mut opened = Vec::new();
        let mut opener = Opener::new(&self.key(), &self.header(), layout);
        opener.push(&blob, |plain| opened.extend_from_slice(plain)).unwrap();
        opener.finish().unwrap();
        assert!(opened == self.plaintext(), "{} bytes", self.true_bytes);
    }
}

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// The file named here holds vectors to read in place of [`TINK`].
const FRESH_VECTORS: &str = "WAXWING_TINK_VECTORS";

fn vectors(text: &str) -> Vec<Vector> {
    serde_json::from_str::<Vectors>(text).unwrap().vectors
}

/// With Tink's key and header we make Tink's bytes, and open them.
#[test]
fn what_tink_seals_we_seal_alike_and_open() {
    let fresh = std::env::var_os(FRESH_VECTORS).map(|path| std::fs::read_to_string(path).unwrap());
    let vectors = vectors(fresh.as_deref().unwrap_or(TINK));
    assert_eq!(vectors.len(), 10);
    assert!(vectors.iter().any(|vector| vector.sealed.is_some()));
    for vector in vectors {
        vector.check(Layout::unpadded(vector.true_bytes).unwrap());
    }
}

/// What Tink opened once is what we still make.
#[test]
fn what_we_seal_is_what_tink_opened() {
    let vectors = vectors(OURS);
    assert_eq!(vectors.len(), 8);
    for vector in vectors {
        vector.check(Layout::of(vector.true_bytes).unwrap());
    }
}
