//! Padded sizes: how long a sealed blob looks.
//!
//! The exact size of a file tells which of the known files it is. Padded to buckets that grow by 5 %, a size says
//! little, and costs 2.5 % on average.
//!
//! The buckets are Signal's: `max(541, floor(1.05 ^ ceil(log(n) / log(1.05))))`. In floating point that formula depends
//! on the platform's `pow` and `log`, and two devices that disagree by a byte could not open each other's blobs. So the
//! buckets are computed exactly, once, by the compiler. Source: Signal-Android, `PaddingInputStream`.

use waxwing_protocol::blob::BLOB_BYTES_MAX;

/// The exponent of the smallest bucket: floor(1.05^129) = 541.
const FIRST_EXPONENT: u32 = 129;

/// How many buckets there are up to the largest blob.
const BUCKET_COUNT: usize = {
    let mut count = 0;
    let mut power = Power::of(FIRST_EXPONENT);
    while power.floor() <= BLOB_BYTES_MAX {
        power = power.next();
        count += 1;
    }
    count
};

/// floor(1.05^k) from k = 129 on, up to the size of the largest blob.
static BUCKETS: [u64; BUCKET_COUNT] = {
    let mut buckets = [0; BUCKET_COUNT];
    let mut power = Power::of(FIRST_EXPONENT);
    let mut at = 0;
    while at < BUCKET_COUNT {
        buckets[at] = power.floor();
        power = power.next();
        at += 1;
    }
    buckets
};

/// Bytes to which a plaintext of `n` bytes is padded: the smallest bucket that holds it, at most 5 % more than `n` from
/// 541 bytes on. Sizes over the largest bucket, which no blob can hold, come back as they are.
pub fn padded_bytes(n: u64) -> u64 {
    // 1.05^k >= n exactly when floor(1.05^k) >= n, since n is whole: the bucket is found without a logarithm.
    BUCKETS.get(BUCKETS.partition_point(|bucket| *bucket < n)).copied().unwrap_or(n)
}

/// A power of 1.05 in fixed point: 64 bits before the point and 192 after it, lowest limb first.
///
/// Each step cuts less than 2^-192 off; after 700 of them the error is below 2^-130, and no power comes that close to a
/// whole number (the test checks each against big integers).
#[derive(Clone, Copy)]
struct Power([u64; 4]);

impl Power {
    const fn of(exponent: u32) -> Self {
        let mut power = Self([0, 0, 0, 1]);
        let mut k = 0;
        while k < exponent {
            power = power.next();
            k += 1;
        }
        power
    }

    const fn floor(&self) -> u64 {
        self.0[3]
    }

    /// This times 1.05: itself and a twentieth of it.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the low 64 bits are what is wanted: long division and addition"
    )]
    const fn next(self) -> Self {
        let mut twentieth = [0; 4];
        let mut remainder = 0;
        let mut at = 4;
        while at > 0 {
            at -= 1;
            let dividend = (remainder << 64) | self.0[at] as u128;
            twentieth[at] = (dividend / 20) as u64;
            remainder = dividend % 20;
        }
        let mut sum = [0; 4];
        let mut carry = 0;
        while at < 4 {
            let total = self.0[at] as u128 + twentieth[at] as u128 + carry;
            sum[at] = total as u64;
            carry = total >> 64;
            at += 1;
        }
        Self(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    /// A natural number in base 2^32, lowest digit first.
    fn times(number: &[u32], factor: u64) -> Vec<u32> {
        let mut carry = 0_u128;
        let mut out: Vec<u32> = Vec::new();
        for digit in number.iter().copied().chain([0; 3]) {
            carry += u128::from(digit) * u128::from(factor);
            out.push(carry as u32);
            carry >>= 32;
        }
        while out.last() == Some(&0) {
            out.pop();
        }
        out
    }

    fn compare(a: &[u32], b: &[u32]) -> Ordering {
        a.len().cmp(&b.len()).then_with(|| a.iter().rev().cmp(b.iter().rev()))
    }

    /// floor(21^k / 20^k) = bucket, in whole numbers.
    #[test]
    fn every_bucket_is_exact() {
        let (mut numerator, mut denominator) = (vec![1], vec![1]);
        for _ in 0..FIRST_EXPONENT {
            (numerator, denominator) = (times(&numerator, 21), times(&denominator, 20));
        }
        for bucket in BUCKETS {
            assert_ne!(compare(&times(&denominator, bucket), &numerator), Ordering::Greater, "{bucket}");
            assert_eq!(compare(&times(&denominator, bucket + 1), &numerator), Ordering::Greater, "{bucket}");
            (numerator, denominator) = (times(&numerator, 21), times(&denominator, 20));
        }
        assert!(*BUCKETS.last().unwrap() <= BLOB_BYTES_MAX);
        assert!(BUCKETS.last().unwrap() * 21 / 20 > BLOB_BYTES_MAX);
    }

    /// Values of Signal's own formula.
    #[test]
    fn the_buckets_are_signals() {
        let signal = |n: u64| {
            let exponent = ((n as f64).ln() / 1.05_f64.ln()).ceil();
            541.max(1.05_f64.powf(exponent).floor() as u64)
        };
        for n in (1..5000).chain([65_479, 65_480, 65_481, 100_000, 1 << 20, 3_500_000, 50 << 20, 1 << 30, 100 << 30]) {
            assert_eq!(padded_bytes(n), signal(n), "{n}");
        }
        assert_eq!([0, 1, 541, 542, 568, 569].map(padded_bytes), [541, 541, 541, 568, 568, 596]);
    }

    proptest! {
        #[test]
        fn padding_grows_with_the_size_and_costs_at_most_a_twentieth(n in 541..BLOB_BYTES_MAX / 2, more in 0..1000_u64) {
            let padded = padded_bytes(n);
            prop_assert!(padded >= n);
            prop_assert!(u128::from(padded) * 20 <= u128::from(n) * 21);
            prop_assert!(padded_bytes(n + more) >= padded);
            prop_assert_eq!(padded_bytes(padded), padded);
        }
    }
}
