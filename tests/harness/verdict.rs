//! The outside log of uploads held against what a service has: what was acknowledged and does not hold is a loss.

use std::collections::BTreeMap;

use waxwing_protocol::BlobId;

use super::uploader::{Tus, content};

#[derive(Default)]
struct Acknowledged {
    seed: u64,
    len: u64,
    offset: u64,
    blob: Option<String>,
    gone: Option<String>,
}

/// Brings every upload of the log to its end at the service at `url`, and reads every blob back. Gives a line for each
/// acknowledgement that does not hold; an error when the log says nothing sensible.
pub fn lost_uploads(
    lines: &[Vec<String>],
    url: &str,
    upload_grant: &str,
    media_grant: &str,
) -> Result<Vec<String>, String> {
    let tus = Tus::new(upload_grant);
    let http = reqwest::blocking::Client::new();
    let mut losses = Vec::new();
    for (upload, told) in &acknowledged(lines)? {
        let bytes = content(told.seed, told.len);
        let expected = BlobId::from_bytes(*blake3::hash(&bytes).as_bytes()).to_string();
        if let Some(status) = &told.gone {
            losses.push(format!("{upload}: created, then {status}"));
            continue;
        }
        let blob = match &told.blob {
            Some(blob) => Some(blob.clone()),
            None => finish(&tus, upload, told.offset, &bytes, &mut losses),
        };
        let Some(blob) = blob else { continue };
        if blob != expected {
            losses.push(format!("{upload}: became {blob}, its bytes are {expected}"));
            continue;
        }
        let got = http.get(format!("{url}/v1/blobs/{blob}")).bearer_auth(media_grant).send();
        let got = got.and_then(reqwest::blocking::Response::error_for_status).and_then(|answer| answer.bytes());
        match got {
            Ok(got) if got == bytes => {}
            Ok(got) => losses.push(format!("{blob}: came back as {} other bytes", got.len())),
            Err(error) => losses.push(format!("{blob}: acknowledged complete, now {error}")),
        }
    }
    Ok(losses)
}

/// The log by upload.
fn acknowledged(lines: &[Vec<String>]) -> Result<BTreeMap<String, Acknowledged>, String> {
    let mut uploads: BTreeMap<String, Acknowledged> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{line:?}: {error}"));
        let upload = uploads.entry(words[1].to_owned()).or_default();
        match words[..] {
            ["created", _, seed, len] => (upload.seed, upload.len) = (number(seed)?, number(len)?),
            ["offset", _, offset] => upload.offset = upload.offset.max(number(offset)?),
            ["blob", _, blob] => upload.blob = Some(blob.to_owned()),
            ["gone", _, status] => upload.gone = Some(status.to_owned()),
            _ => return Err(format!("the recorder has a line it should not: {line:?}")),
        }
    }
    Ok(uploads)
}

/// Resumes an upload whose worker is dead and completes it; its blob.
fn finish(tus: &Tus, url: &str, told: u64, bytes: &[u8], losses: &mut Vec<String>) -> Option<String> {
    let (offset, blob) = match tus.head(url) {
        Some(Ok(standing)) => standing,
        other => {
            losses.push(format!("{url}: acknowledged at {told}, now {other:?}"));
            return None;
        }
    };
    if offset < told {
        losses.push(format!("{url}: acknowledged {told}, now at {offset}"));
        return None;
    }
    if blob.is_some() {
        return blob;
    }
    let rest = &bytes[usize::try_from(offset).expect("uploads here are small")..];
    let done = tus.patch(url, offset, rest).and_then(|(_, blob)| blob);
    if done.is_none() {
        losses.push(format!("{url}: cannot be completed from {offset}"));
    }
    done
}
