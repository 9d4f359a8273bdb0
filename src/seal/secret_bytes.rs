//! Secrets as bytes for the profile, without copies of them left behind in memory.

use serde::Serialize;
use zeroize::Zeroizing;

/// `value` as JSON in a buffer that is erased when dropped.
///
/// A growing buffer would leave its earlier, shorter self in freed memory, so the length is measured first.
pub(crate) fn to_secret_bytes(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut measure = Length(0);
    serde_json::to_writer(&mut measure, value).expect("these types have string keys and no failing parts");
    let mut bytes = Zeroizing::new(Vec::with_capacity(measure.0));
    serde_json::to_writer(&mut *bytes, value).expect("these types have string keys and no failing parts");
    bytes
}

/// Counts what is written to it.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_never_grew() {
        let value: Vec<u32> = (0..10_000).collect();
        let bytes = to_secret_bytes(&value);
        assert_eq!(bytes.capacity(), bytes.len());
        assert_eq!(serde_json::from_slice::<Vec<u32>>(&bytes).unwrap(), value);
    }
}
