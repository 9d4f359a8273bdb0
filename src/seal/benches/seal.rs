//! How fast a file is sealed and its blob hashed, from memory, on one core; beside the bare cipher and the bare hash.
//!
//! Prints JSON lines: `{"bench", "metric", "value", "unit", "who", "n", "min", "max"}`; `value` is the median. Who is
//! who: `waxwing` seals as an upload does (digest of the plaintext checked, sealed in place, ciphertext hashed),
//! `waxwing-open` opens as a download does, `aes-gcm` and `blake3` are what those are made of, over the same bytes.

use std::hint::black_box;
use std::time::Instant;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use waxwing_protocol::blob::BlobHasher;
use waxwing_seal::blob::{Opener, SealPlan, SegmentDigest};

/// Bytes of the file: far beyond every cache.
const FILE_BYTES: usize = 256 << 20;

/// Rounds; each measures everybody once, so that a machine that slows down slows all.
const ROUNDS: usize = 7;

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let mut file = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(b"bench").finalize_xof().fill(&mut file);
    let plan = SealPlan::generate(file.len() as u64).expect("the file fits a blob");
    let digests = digest(&plan, &file);
    let sealed = seal(&plan, &digests, &file);
    let cipher = Aes256Gcm::new(&[7; 32].into());

    let mut rates: [(&str, Vec<f64>); 4] =
        [("waxwing", vec![]), ("waxwing-open", vec![]), ("aes-gcm", vec![]), ("blake3", vec![])];
    let mut segment = vec![0; 65_520];
    for _ in 0..ROUNDS {
        rates[0].1.push(rate(|| {
            black_box(seal_and_hash(&plan, &digests, &file));
        }));
        rates[1].1.push(rate(|| open(&plan, &sealed)));
        rates[2].1.push(rate(|| {
            for chunk in file.chunks_exact(segment.len()) {
                segment.copy_from_slice(chunk);
                let tag = cipher.encrypt_inout_detached(&[0; 12].into(), &[], segment.as_mut_slice().into());
                black_box(tag.expect("a segment is far below the cipher's limit"));
            }
        }));
        rates[3].1.push(rate(|| {
            for chunk in file.chunks(65_536) {
                black_box(blake3::hash(chunk));
            }
        }));
    }
    for (who, rates) in &mut rates {
        report(who, rates);
    }
}

/// GB of file a second.
fn rate(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    FILE_BYTES as f64 / 1e9 / began.elapsed().as_secs_f64()
}

#[allow(clippy::print_stdout, reason = "a benchmark's result")]
fn report(who: &str, rates: &mut [f64]) {
    rates.sort_by(f64::total_cmp);
    let (n, min, median, max) = (rates.len(), rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
    println!(
        r#"{{"bench": "client", "metric": "seal_gb_per_s", "value": {median:.3}, "unit": "GB/s", "who": "{who}", "n": {n}, "min": {min:.3}, "max": {max:.3}}}"#
    );
}

fn digest(plan: &SealPlan, file: &[u8]) -> Vec<SegmentDigest> {
    let mut digests = Vec::new();
    let mut digester = plan.digester();
    digester.update(file, |digest| digests.push(*digest)).expect("the file is as planned");
    digester.finish().expect("the file is as planned");
    digests
}

fn for_each_segment(plan: &SealPlan, digests: &[SegmentDigest], file: &[u8], mut take: impl FnMut(&[u8])) {
    let sealer = plan.sealer();
    let padding = SegmentDigest::of_padding();
    let mut segment = Vec::new();
    for index in 0..plan.layout.segments() {
        let range = plan.layout.file_range(index);
        let place = |at: u64| usize::try_from(at).expect("the file is in memory");
        sealer.prepare(index, &mut segment).copy_from_slice(&file[place(range.start)..place(range.end)]);
        let planned = digests.get(index as usize).unwrap_or(&padding);
        sealer.seal(index, planned, &mut segment).expect("the file is as planned");
        take(&segment);
    }
}

fn seal(plan: &SealPlan, digests: &[SegmentDigest], file: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    for_each_segment(plan, digests, file, |segment| sealed.extend_from_slice(segment));
    sealed
}

fn seal_and_hash(plan: &SealPlan, digests: &[SegmentDigest], file: &[u8]) -> waxwing_protocol::BlobId {
    let mut hasher = BlobHasher::new();
    for_each_segment(plan, digests, file, |segment| hasher.update(segment, |_| ()));
    hasher.finish(|_| ())
}

fn open(plan: &SealPlan, sealed: &[u8]) {
    let mut opener = Opener::new(&plan.key, &plan.header, plan.layout);
    for piece in sealed.chunks(256 * 1024) {
        let opened = opener.push(piece, |plain| {
            black_box(plain);
        });
        opened.expect("it was just sealed");
    }
    opener.finish().expect("it was just sealed");
}
