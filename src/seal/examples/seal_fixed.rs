//! Seals fixed plaintexts under fixed keys and headers into a directory, for `vectors/make_vectors.py check` to open
//! with Tink.

use std::path::PathBuf;

use waxwing_seal::blob::{BlobHeader, BlobKey, Layout, SealPlan, SegmentDigest};

/// Sizes around every border, in bytes.
const SIZES: [usize; 8] = [0, 1, 541, 542, 65_480, 65_481, 131_001, 300_000];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir: PathBuf = std::env::args_os().nth(1).ok_or("usage: seal_fixed DIRECTORY")?.into();
    std::fs::create_dir_all(&dir)?;
    for (number, size) in (1_u8..).zip(SIZES) {
        let key = [number; BlobKey::BYTES];
        let header = [[0x28].as_slice(), &[number; 39]].concat();
        let layout = Layout::of(size as u64)?;
        let plan = SealPlan { key: BlobKey::from_bytes(key), header: BlobHeader::parse(&header)?, layout };
        let file: Vec<u8> = (0..size).map(|i| ((7 * i + i / 251) % 256).to_le_bytes()[0]).collect();
        let blob = seal(&plan, &file)?;
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{number:02}-{size}");
        std::fs::write(dir.join(format!("{name}.blob")), blob)?;
        std::fs::write(dir.join(format!("{name}.json")), format!("{{\"key\": \"{hex}\", \"true_bytes\": {size}}}\n"))?;
    }
    Ok(())
}

fn seal(plan: &SealPlan, file: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut digests = Vec::new();
    let mut digester = plan.digester();
    digester.update(file, |digest| digests.push(*digest))?;
    digester.finish()?;
    let sealer = plan.sealer();
    let (mut blob, mut segment) = (Vec::new(), Vec::new());
    for index in 0..plan.layout.segments() {
        let range = plan.layout.file_range(index);
        let part = usize::try_from(range.start)?..usize::try_from(range.end)?;
        sealer.prepare(index, &mut segment).copy_from_slice(&file[part]);
        let digest = digests.get(usize::try_from(index)?).copied().unwrap_or_else(SegmentDigest::of_padding);
        sealer.seal(index, &digest, &mut segment)?;
        blob.extend_from_slice(&segment);
    }
    Ok(blob)
}
