//! A worker that uploads without end over raw tus and reports every acknowledged offset.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::HeaderMap;

use super::recorder::Reporter;

/// Uploads to a disk are up to this large: many fit one request, some take many.
pub const UPLOAD_BYTES_MAX: u64 = 6 << 20;

/// The content of the upload with this seed.
pub fn content(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("uploads here are small")];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A small generator of pseudo-random numbers (Marsaglia's xorshift64), so that a run can be repeated by its seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a tus client says, to one service.
pub struct Tus {
    client: Client,
    grant: String,
}

impl Tus {
    /// A client with an upload grant.
    pub fn new(grant: &str) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(20)).build().expect("a client needs nothing");
        Self { client, grant: grant.to_owned() }
    }

    /// Creates an upload; its URL.
    pub fn create(&self, server: &str, len: u64) -> Option<String> {
        let request = self.client.post(format!("{server}/v1/uploads")).header("Upload-Length", len.to_string());
        let answer = self.send(request)?;
        (answer.status() == StatusCode::CREATED).then(|| header(answer.headers(), "location").expect("201 has one"))
    }

    /// Where the upload stands, and its blob when it is complete. `Err` when the server says that it is not there.
    pub fn head(&self, url: &str) -> Option<Result<(u64, Option<String>), StatusCode>> {
        let answer = self.send(self.client.head(url))?;
        if answer.status().is_server_error() {
            return None;
        }
        let offset = header(answer.headers(), "upload-offset").and_then(|text| text.parse().ok());
        Some(offset.map(|at| (at, header(answer.headers(), "waxwing-blob"))).ok_or(answer.status()))
    }

    /// Appends at `offset`; the new offset, and the blob when it is complete. `None` when nothing was acknowledged.
    pub fn patch(&self, url: &str, offset: u64, part: &[u8]) -> Option<(u64, Option<String>)> {
        let request = self.client.patch(url).header("Upload-Offset", offset.to_string());
        let request = request.header("Content-Type", "application/offset+octet-stream").body(part.to_vec());
        let answer = self.send(request).filter(|answer| answer.status() == StatusCode::NO_CONTENT)?;
        let offset = header(answer.headers(), "upload-offset").and_then(|text| text.parse().ok())?;
        Some((offset, header(answer.headers(), "waxwing-blob")))
    }

    fn send(&self, request: reqwest::blocking::RequestBuilder) -> Option<Response> {
        request.bearer_auth(&self.grant).header("Tus-Resumable", "1.0.0").send().ok()
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The largest request is so small a part of the largest upload.
const REQUESTS: u64 = 3;

/// Runs the worker, whose uploads have less than `bytes_max` bytes, until it is killed. Lines: `created URL SEED LEN`, `offset URL N`, `blob URL ID`, `gone URL STATUS`.
pub fn run(server: &str, grant: &str, recorder: &str, seed: &str, bytes_max: &str) {
    let reporter = Reporter::connect(recorder);
    let tus = Tus::new(grant);
    let number = |text: &str| text.parse::<u64>().expect("it is a number");
    let (mut seed, bytes_max) = (number(seed), number(bytes_max));
    loop {
        seed += 1;
        let mut dice = Dice::new(seed);
        let len = dice.below(bytes_max);
        let bytes = content(seed, len);
        let Some(url) = tus.create(server, len) else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        reporter.say(&format!("created {url} {seed} {len}"));
        let mut offset = 0;
        loop {
            let part = dice.below(bytes_max / REQUESTS).min(len - offset);
            let end = usize::try_from(offset + part).expect("uploads here are small");
            let start = usize::try_from(offset).expect("uploads here are small");
            let answer = tus.patch(&url, offset, &bytes[start..end]).or_else(|| ask(&tus, &reporter, &url));
            let Some((now, blob)) = answer else { break };
            reporter.say(&format!("offset {url} {now}"));
            offset = now;
            if let Some(blob) = blob {
                reporter.say(&format!("blob {url} {blob}"));
                break;
            }
        }
    }
}

/// Asks until the server is back; `None` when the upload is gone.
fn ask(tus: &Tus, reporter: &Reporter, url: &str) -> Option<(u64, Option<String>)> {
    loop {
        match tus.head(url) {
            Some(Ok(standing)) => return Some(standing),
            Some(Err(status)) => {
                reporter.say(&format!("gone {url} {}", status.as_u16()));
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
