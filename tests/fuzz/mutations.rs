//! A small fuzzer for parsers: inputs that are nearly right, by the thousand.
//!
//! Random bytes are refused at the first of them and try nothing. Here inputs grow out of a corpus of good ones: bits
//! flip, pieces go, come twice or change places with those of others, and numbers and signs that parsers trip over are
//! put in. The same seed gives the same inputs, so that what was found can be found again.
//!
//! `WAXWING_FUZZ_EXECUTIONS` says how many inputs a target gets and `WAXWING_FUZZ_SEED` where they begin; `make soak`
//! sets both.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Inputs of a target when nothing else is said: a second or so.
const EXECUTIONS: u64 = 20_000;

/// Bytes of an input at most: headers and frames that are longer are refused before they are parsed.
const INPUT_BYTES_MAX: usize = 4096;

/// What parsers trip over.
const PIECES: [&[u8]; 24] = [
    b"",
    b"0",
    b"-",
    b"-1",
    b"+1",
    b"*",
    b"/",
    b"=",
    b",",
    b";",
    b" ",
    b"\t",
    b"\r\n",
    b"\0",
    b"\xFF",
    b"%00",
    b":",
    b"..",
    b"?1",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775807",
    b"9223372036854775808",
    b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
];

/// Gives `check` mutations of `corpus`, which it must survive, and says how many. `check` panics when a promise of what
/// it tries does not hold.
pub(crate) fn fuzz(target: &str, corpus: &[&[u8]], check: impl Fn(&[u8])) {
    let executions = setting("WAXWING_FUZZ_EXECUTIONS").unwrap_or(EXECUTIONS);
    let mut random = Random(setting("WAXWING_FUZZ_SEED").unwrap_or(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for entry in corpus {
        check(entry);
    }
    for _ in 0..executions {
        let input = random.input(corpus);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(&input))) {
            eprintln!("{target} does not survive {:?}", String::from_utf8_lossy(&input));
            eprintln!("as bytes: {input:02x?}");
            resume_unwind(panic);
        }
    }
    eprintln!("{target}: {executions} executions");
}

/// As [`fuzz`], for what reads text.
#[allow(dead_code, reason = "not every crate has a parser of text and one of bytes")]
pub(crate) fn fuzz_text(target: &str, corpus: &[&str], check: impl Fn(&str)) {
    let corpus: Vec<&[u8]> = corpus.iter().map(|entry| entry.as_bytes()).collect();
    fuzz(target, &corpus, |input| check(&String::from_utf8_lossy(input)));
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % end.max(1)
    }

    /// Where a piece of `input` begins and ends.
    fn piece(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let begin = self.below(input.len() + 1);
        let bytes = self.below((input.len() - begin).min(16) + 1);
        begin..begin + bytes
    }

    fn input(&mut self, corpus: &[&[u8]]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].to_vec();
        for _ in 0..=self.below(4) {
            let range = self.piece(&input);
            match self.below(7) {
                0 if !input.is_empty() => {
                    let at = self.below(input.len());
                    input[at] ^= 1 << self.below(8);
                }
                1 => drop(input.drain(range)),
                2 => {
                    let again = input[range.clone()].repeat(1 + self.below(8));
                    drop(input.splice(range.end..range.end, again));
                }
                3 => {
                    let piece = PIECES[self.below(PIECES.len())];
                    drop(input.splice(range, piece.iter().copied()));
                }
                4 => {
                    let other = corpus[self.below(corpus.len())];
                    let piece = self.piece(other);
                    drop(input.splice(range, other[piece].iter().copied()));
                }
                5 => input.truncate(range.end),
                _ => {
                    for at in range {
                        input[at] = u8::try_from(self.below(256)).unwrap_or(0);
                    }
                }
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }
}
