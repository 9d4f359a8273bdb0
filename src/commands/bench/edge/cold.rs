//! What a reader waits for when the edge does not have the blob, beside the same from the origin itself.

use super::super::as_f64;
use super::super::figure::Figure;
use super::target::Service;
use super::{BENCH, MIB, fetch};
use crate::output::Output;

/// Blobs of which the last bytes are asked for first, and then all the others; their size, and how many bytes.
const BLOBS: usize = 10;
const BLOB_BYTES: usize = 64 * MIB;
const RANGE_BYTES: usize = 64 * 1024;

/// Milliseconds to the first of a blob's last bytes, and MB a second of a whole blob; neither is at the edge.
pub(super) async fn measure(service: &Service, output: Output) -> anyhow::Result<()> {
    let figures = |metric, unit| ["waxwing", "origin"].map(|who| Figure::new(BENCH, metric, unit, who));
    let (mut first_byte, mut rate) = (figures("cold_first_byte_ms", "ms"), figures("cold_mb_per_s", "MB/s"));
    let last = Some((BLOB_BYTES - RANGE_BYTES, BLOB_BYTES - 1));
    for n in 0..2 * BLOBS {
        let id = service.store(BLOB_BYTES, 700 + n).await?;
        let range = last.filter(|_| n < BLOBS);
        let requests =
            [(service.edge, service.request(&id, range)), (service.origin, service.request_to_origin(&id, range))];
        // The first to ask brings it nearer: every other time it is the origin's own reader.
        let order = if n % 2 == 0 { [0, 1] } else { [1, 0] };
        for at in order {
            let (address, request) = &requests[at];
            let once = fetch::once(*address, request)?;
            match range {
                Some(_) => first_byte[at].add(once.first_s * 1e3),
                None => rate[at].add(as_f64(BLOB_BYTES) / 1e6 / once.took_s),
            }
        }
    }
    first_byte.iter().chain(&rate).for_each(|figure| figure.print(output));
    Ok(())
}
