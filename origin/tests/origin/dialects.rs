//! A client that speaks whichever dialect a test wants, so that one story is told of all three.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Answer, OFFSET_STREAM, TestOrigin};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Tus,
    Ietf,
    Ranges,
}

use Dialect::{Ietf, Ranges, Tus};

pub(crate) const ALL: [Dialect; 3] = [Tus, Ietf, Ranges];

/// The length that uploads here are announced to have.
pub(crate) const LENGTH: usize = 10;

pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

impl Dialect {
    /// Method, path and headers of a creation.
    pub(crate) fn creation(self, length: Option<usize>) -> (&'static str, &'static str, Vec<(&'static str, String)>) {
        let length = length.map(|length| length.to_string());
        match self {
            Tus => {
                let length = length.map_or(("upload-defer-length", "1".into()), |length| ("upload-length", length));
                ("POST", "/v1/uploads", vec![("tus-resumable", "1.0.0".into()), length])
            }
            Ietf => {
                let mut headers = vec![("upload-complete", "?0".to_owned())];
                headers.extend(length.map(|length| ("upload-length", length)));
                ("POST", "/v1/uploads", headers)
            }
            Ranges => {
                let length = length.map(|length| ("x-upload-content-length", length));
                ("POST", "/v1/uploads?uploadType=resumable", length.into_iter().collect())
            }
        }
    }

    /// Method and headers of an append of `bytes` at `offset` of an upload of `length` bytes.
    pub(crate) fn append(
        self,
        offset: usize,
        bytes: usize,
        length: Option<usize>,
    ) -> (&'static str, Vec<(&'static str, String)>) {
        match self {
            Tus => {
                let typed = (OFFSET_STREAM.0, OFFSET_STREAM.1.to_owned());
                ("PATCH", vec![("tus-resumable", "1.0.0".into()), typed, ("upload-offset", offset.to_string())])
            }
            Ietf => {
                let typed = ("content-type", "application/partial-upload".to_owned());
                ("PATCH", vec![typed, ("upload-complete", "?0".into()), ("upload-offset", offset.to_string())])
            }
            Ranges => {
                let total = length.map_or("*".to_owned(), |length| length.to_string());
                let range = match bytes {
                    0 => format!("bytes */{total}"),
                    _ => format!("bytes {offset}-{}/{total}", offset + bytes - 1),
                };
                ("PUT", vec![("content-range", range)])
            }
        }
    }

    /// Method and headers of the question where an upload stands.
    pub(crate) fn question(self) -> (&'static str, Headers<'static>) {
        match self {
            Tus => ("HEAD", &[("tus-resumable", "1.0.0")]),
            Ietf => ("HEAD", &[("upload-draft-interop-version", "8")]),
            Ranges => ("PUT", &[("content-range", "bytes */*")]),
        }
    }
}

/// Someone who speaks a dialect to an origin.
pub(crate) struct Client<'a> {
    pub(crate) origin: &'a TestOrigin,
    pub(crate) dialect: Dialect,
    pub(crate) grant: Option<&'a str>,
}

impl<'a> Client<'a> {
    pub(crate) fn of_alice(origin: &'a TestOrigin, dialect: Dialect) -> Self {
        Self { origin, dialect, grant: Some(&origin.alice) }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> Answer {
        let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all.extend(self.grant.map(|grant| ("authorization", grant)));
        self.origin.ask(method, path, &all, body).await
    }

    pub(crate) async fn create(&self, length: Option<usize>, more: Headers<'_>) -> Answer {
        let (method, path, headers) = self.dialect.creation(length);
        self.ask(method, path, &with(headers, more), b"").await
    }

    /// A new upload's path.
    pub(crate) async fn created(&self, length: Option<usize>, more: Headers<'_>) -> String {
        let answer = self.create(length, more).await;
        assert!([200, 201].contains(&answer.status), "{:?} {answer:?}", self.dialect);
        self.origin.path_of(&answer)
    }

    pub(crate) async fn append(&self, path: &str, offset: usize, body: &[u8], more: Headers<'_>) -> Answer {
        self.append_of(path, offset, body, Some(LENGTH), more).await
    }

    pub(crate) async fn append_of(
        &self,
        path: &str,
        offset: usize,
        body: &[u8],
        length: Option<usize>,
        more: Headers<'_>,
    ) -> Answer {
        let (method, headers) = self.dialect.append(offset, body.len(), length);
        self.ask(method, path, &with(headers, more), body).await
    }

    pub(crate) async fn standing(&self, path: &str) -> Answer {
        let (method, headers) = self.dialect.question();
        self.ask(method, path, &with(Vec::new(), headers), b"").await
    }

    /// Bytes that the origin holds of an upload.
    pub(crate) async fn offset(&self, path: &str) -> usize {
        let answer = self.standing(path).await;
        match self.dialect {
            Tus | Ietf => answer.header("upload-offset").unwrap().parse().unwrap(),
            Ranges if answer.status == 200 => panic!("the upload is finished"),
            Ranges => answer
                .header("range")
                .map_or(0, |range| range.strip_prefix("bytes=0-").unwrap().parse::<usize>().unwrap() + 1),
        }
    }
}

/// `headers` with `more`; one of the same name is replaced.
fn with<'a>(headers: Vec<(&'a str, String)>, more: Headers<'a>) -> Vec<(&'a str, String)> {
    let mut headers = headers;
    for (name, value) in more {
        headers.retain(|(other, _)| other != name);
        headers.push((name, (*value).to_owned()));
    }
    headers
}

/// A failure as it must be told: status and slug; an answer to HEAD has no body to read a slug in.
pub(crate) fn told(answer: &Answer, status: u16, slug: &str, dialect: Dialect) {
    assert_eq!(answer.status, status, "{dialect:?} {answer:?}");
    if !answer.body.is_empty() {
        assert_eq!(answer.problem().slug(), slug, "{dialect:?} {answer:?}");
    }
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{dialect:?}: hidden from browsers");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{dialect:?}: could be answered from a cache");
    if dialect == Tus {
        assert_eq!(answer.header("tus-resumable"), Some("1.0.0"));
    }
    if status == 503 || status == 507 {
        assert!(answer.header("retry-after").is_some(), "{dialect:?}: does not say when to come back");
    }
}

/// An append of [`LENGTH`] bytes that has brought `sent` of them, and that the origin has begun to read.
pub(crate) async fn sending(client: &Client<'_>, path: &str, sent: &[u8]) -> tokio::net::TcpStream {
    let (method, headers) = client.dialect.append(0, LENGTH, Some(LENGTH));
    let length = LENGTH.to_string();
    let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.extend(client.grant.map(|grant| ("authorization", grant)));
    all.extend([("expect", "100-continue"), ("content-length", length.as_str())]);
    let mut connection = client.origin.connect().await;
    let head = client.origin.head(method, path, &all) + "\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    // The origin says so when it has begun to read.
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    connection.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 "), "{:?}", client.dialect);
    connection.write_all(sent).await.unwrap();
    connection
}
