//! Every parser of requests, given what is nearly right.

#[path = "../../../tests/fuzz/mutations.rs"]
mod mutations;

use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request};
use waxwing_protocol::OwnerTag;
use waxwing_protocol::grant::{Audience, Grant, GrantError, GrantSigner, UPLOAD_LIFETIME, bearer};

use self::mutations::fuzz_text;
use super::*;

/// `text` as the only field `name`, if it can be one.
fn field(name: &'static str, text: &str) -> Option<HeaderMap> {
    let value = HeaderValue::try_from(text).ok()?;
    Some(HeaderMap::from_iter([(HeaderName::from_static(name), value)]))
}

#[test]
fn fuzz_sent_ranges() {
    let corpus = ["bytes 0-4/5", "Bytes 3-3/*", "bytes */7", "bytes */*", "bytes 262144-699999/700000"];
    fuzz_text("ranges sent", &corpus, content_range::check_sent);
}

#[test]
fn fuzz_upload_metadata() {
    let corpus = ["filename d29ybGQ=", "a,b,c eA==", "is_public", "a ,b eA==", "filename d29ybGQ=,filetype dGV4dA=="];
    fuzz_text("upload metadata", &corpus, |text| {
        let Some(headers) = field("upload-metadata", text) else { return };
        if let Ok(Some(kept)) = headers::metadata(&headers) {
            // It is given back as a header.
            assert!(kept == text && HeaderValue::try_from(kept).is_ok());
        }
    });
}

#[test]
fn fuzz_integers() {
    fuzz_text("integers", &["0", "5", "9223372036854775807", "1000"], |text| {
        let Some(headers) = field("upload-offset", text) else { return };
        if let Ok(Some(number)) = headers::integer(&headers, "upload-offset") {
            assert!(i64::try_from(number).is_ok() && text.bytes().all(|byte| byte.is_ascii_digit()));
        }
    });
}

#[test]
fn fuzz_structured_fields() {
    let corpus = ["5", "?1", "?0", "999999999999999", "5;unit=bytes", "6, 7", "\"text\"", ":AAAA:", "(1 2)", "1.5"];
    fuzz_text("structured fields", &corpus, |text| {
        for name in ["upload-offset", "upload-complete"] {
            if let Some(headers) = field(name, text) {
                ietf::check_item(&headers, &HeaderName::from_static(name));
            }
        }
    });
}

#[test]
fn fuzz_upload_checksums() {
    let corpus = ["sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "crc32 y/Q5Jg==", "md5 JfnnlDI7RTiF9RgfG2JNCw==", "blake3 AAAA"];
    fuzz_text("checksums", &corpus, |text| {
        if let Some(headers) = field("upload-checksum", text) {
            let _ = digests::checked(&headers, Body::empty());
        }
    });
}

#[test]
fn fuzz_digest_fields() {
    let corpus = [
        "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:",
        "md5=:AAAA:, sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:;x=y",
        "sha-256=3, sha-512=0",
        "sha-512=10",
        "sha-256=(:AAAA: :AAAA:)",
    ];
    fuzz_text("digest fields", &corpus, |text| {
        for name in ["content-digest", "repr-digest", "want-repr-digest"] {
            let Some(headers) = field(name, text) else { continue };
            let _ = digests::content_digest(&headers);
            let _ = digests::whole_digest(&headers);
        }
    });
}

#[test]
fn fuzz_concatenations() {
    let id = "a".repeat(26);
    let corpus = [
        format!("/v1/uploads/{id} /v1/uploads/{id}"),
        format!("http://origin.example/v1/uploads/{id}"),
        "../../etc/passwd".into(),
    ];
    let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
    fuzz_text("concatenations", &corpus, tus::check_parts_named);
}

#[test]
fn fuzz_hosts() {
    let config = Config::default();
    fuzz_text("hosts", &["127.0.0.1:8460", "[::1]:80", "origin.example", "up.example:443"], |text| {
        let Some(value) = HeaderValue::try_from(text).ok() else { return };
        let request = Request::get("/v1/uploads").header(HOST, value).body(()).unwrap();
        if let Ok(url) = headers::base_url(&config, &request.into_parts().0) {
            // What it begins becomes a header and, in a client, a URL.
            let rest = url.strip_prefix("http://").unwrap();
            assert!(!rest.contains(['/', '@', '?', '#', ' ', '\r', '\n']) && HeaderValue::try_from(&url).is_ok());
        }
    });
}

/// Whatever changes in a grant makes it worthless.
#[test]
fn fuzz_grants() {
    let signer = GrantSigner::from_seed(&[5; 32]);
    let keys = GrantKeys::from_jwks(&signer.jwks()).unwrap();
    let now = Timestamp::from_secs(1_800_000_000);
    let grant = Grant::Upload { owner: OwnerTag::from_bytes([1; 16]), blob_bytes_max: u64::MAX, quota_bytes: u64::MAX };
    let genuine = format!("Bearer {}", signer.mint(&grant, now, UPLOAD_LIFETIME, [0; 16]).text);
    let other = format!("Bearer {}", signer.mint(&Grant::Media, now, UPLOAD_LIFETIME, [1; 16]).text);
    let token_of = |text: &str| bearer(text).map(str::to_owned);
    let known = [token_of(&genuine), token_of(&other)];
    fuzz_text("grants", &[&genuine, &other], |text| {
        let Some(token) = bearer(text) else { return };
        match keys.verify(token, &[Audience::Upload, Audience::Media], now) {
            Ok(_) | Err(GrantError::Expired) => assert!(known.contains(&Some(token.to_owned())), "forged: {token}"),
            Err(_) => {}
        }
    });
}
