//! Request headers, read strictly: a header that could be read in two ways is read in none.

use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use data_encoding::BASE64;
use waxwing_protocol::{BlobId, Secured, Timestamp};

use super::error::HttpError;
use crate::config::Config;

/// Bytes of `Upload-Metadata` at most.
pub(super) const METADATA_BYTES_MAX: usize = 8 * 1024;

/// The value of header `name`; an error when it is there twice or is no visible ASCII text.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, HttpError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad(name, "stands there twice"));
    }
    value.to_str().map(Some).map_err(|_| bad(name, "is not ASCII text"))
}

/// Header `name` as tus writes integers: digits only, below 2^63.
pub(super) fn integer(headers: &HeaderMap, name: &str) -> Result<Option<u64>, HttpError> {
    let Some(text) = single(headers, name)? else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten().filter(|number| i64::try_from(*number).is_ok());
    number.map(Some).ok_or_else(|| bad(name, "is not a number of digits only below 2^63"))
}

/// Header `name` as a blob id.
pub(super) fn blob_id(headers: &HeaderMap, name: &str) -> Result<Option<BlobId>, HttpError> {
    let Some(text) = single(headers, name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|error| bad(name, &format!("is {error}")))
}

/// How many bytes of content are announced.
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, HttpError> {
    integer(headers, CONTENT_LENGTH.as_str())
}

/// Whether the content is said to be of media type `expected`, whatever its case and parameters.
pub(super) fn is_media_type(headers: &HeaderMap, expected: &str) -> Result<bool, HttpError> {
    let Some(text) = single(headers, CONTENT_TYPE.as_str())? else { return Ok(false) };
    let essence = text.split(';').next().unwrap_or_default().trim();
    Ok(essence.eq_ignore_ascii_case(expected))
}

/// `Upload-Metadata`, tus 1.0 "Creation": `key base64,key2,…`. Checked and given back as it came; nothing here uses it.
pub(super) fn metadata(headers: &HeaderMap) -> Result<Option<String>, HttpError> {
    const NAME: &str = "upload-metadata";
    let Some(text) = single(headers, NAME)? else { return Ok(None) };
    if text.len() > METADATA_BYTES_MAX {
        return Err(bad(NAME, &format!("has more than {METADATA_BYTES_MAX} bytes")));
    }
    if text.is_empty() {
        return Ok(None);
    }
    let mut keys = std::collections::HashSet::new();
    for pair in text.split(',') {
        let pair = pair.trim_matches(' ');
        let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
        if key.is_empty() || BASE64.decode(value.as_bytes()).is_err() {
            return Err(bad(NAME, "is not a list of keys and base64 values"));
        }
        if !keys.insert(key) {
            return Err(bad(NAME, "has a key twice"));
        }
    }
    Ok(Some(text.to_owned()))
}

/// How the client reached us: the configured URL, else by the host it named. Forwarding headers are not asked: anyone
/// can send them.
pub(super) fn base_url(config: &Config, parts: &Parts) -> Result<String, HttpError> {
    if let Some(url) = &config.public_url {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let host = match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => single(&parts.headers, HOST.as_str())?,
    };
    let plausible = |host: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        !host.is_empty() && host.len() <= 255 && host.bytes().all(allowed)
    };
    let host = host.filter(plausible).ok_or_else(|| bad(HOST.as_str(), "does not name a host"))?;
    let scheme = if parts.extensions.get::<Secured>().is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{host}"))
}

/// A moment as an HTTP date.
pub(super) fn http_date(at: Timestamp) -> String {
    httpdate::fmt_http_date(at.into())
}

/// A header value made of digits, ids and other text known to be plain.
pub(super) fn plain(text: &impl ToString) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).unwrap_or(HeaderValue::from_static(""))
}

fn bad(name: &str, what: &str) -> HttpError {
    HttpError::bad_request("bad-header", format!("header {name} {what}")).with("header", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, Request};
    use proptest::prelude::*;

    fn with(name: &'static str, values: &[&str]) -> HeaderMap {
        let name = HeaderName::from_static(name);
        values.iter().map(|value| (name.clone(), HeaderValue::try_from(*value).unwrap())).collect()
    }

    #[test]
    fn integers_have_digits_only_and_fit() {
        let read = |text| integer(&with("upload-length", &[text]), "upload-length");
        assert_eq!(read("0").unwrap(), Some(0));
        assert_eq!(read("9223372036854775807").unwrap(), Some(i64::MAX as u64));
        for bad in ["", "-1", "+1", " 1", "1 ", "0x1", "1.0", "1,1", "9223372036854775808", "99999999999999999999"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(integer(&with("upload-length", &["1", "1"]), "upload-length").is_err());
    }

    #[test]
    fn metadata_is_checked_and_given_back_as_it_came() {
        let read = |text: &str| metadata(&with("upload-metadata", &[text]));
        for good in ["filename d29ybGQ=", "a,b,c eA==", "is_public", "a ,b eA=="] {
            assert_eq!(read(good).unwrap().as_deref(), Some(good));
        }
        let long = format!("a {}", "A".repeat(METADATA_BYTES_MAX));
        for bad in ["a b c", "a !!!!", "a eA==,a eA==", ",", "a eA", &long] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn locations_do_not_trust_forwarding_headers() {
        let request = |host: &str| {
            let request = Request::get("/v1/uploads").header("host", host);
            request.header("x-forwarded-host", "evil.example").body(()).unwrap().into_parts().0
        };
        let config = Config::default();
        assert_eq!(base_url(&config, &request("127.0.0.1:8460")).unwrap(), "http://127.0.0.1:8460");
        assert_eq!(base_url(&config, &request("[::1]:80")).unwrap(), "http://[::1]:80");
        for bad in ["", "a/b", "a b", "user@host", "a?x"] {
            assert!(base_url(&config, &request(bad)).is_err(), "{bad}");
        }
        let mut secured = request("up.example");
        secured.extensions.insert(Secured);
        assert_eq!(base_url(&config, &secured).unwrap(), "https://up.example");
        let public = Config { public_url: Some("https://up.example/".into()), ..config };
        assert_eq!(base_url(&public, &request("a/b")).unwrap(), "https://up.example");
    }

    proptest! {
        #[test]
        fn no_metadata_panics(text in "[ -~]{0,64}") {
            let _ = metadata(&with("upload-metadata", &[&text]));
        }
    }
}
