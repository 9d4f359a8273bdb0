//! The IETF's uploads on a raw connection: what a client learns while it is still sending.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::{Service, register, sample_bytes, waxwing};

struct Wire {
    connection: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    fn connect(service: &Service) -> Self {
        let connection = TcpStream::connect(service.address()).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { connection, read: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.connection.write_all(bytes).unwrap();
    }

    /// The next message's head, in lower case, and the part of it that was read of what follows stays for the next.
    fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                let head = std::mem::replace(&mut self.read, rest);
                return String::from_utf8(head).unwrap().to_ascii_lowercase();
            }
            let mut piece = [0; 4096];
            let n = self.connection.read(&mut piece).unwrap();
            assert!(n > 0, "the connection ended before a whole head: {:?}", String::from_utf8_lossy(&self.read));
            self.read.extend(&piece[..n]);
        }
    }
}

fn field(head: &str, name: &str) -> String {
    let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).to_owned()
}

struct Uploading {
    _dir: tempfile::TempDir,
    service: Service,
    grant: String,
}

impl Uploading {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(dir.path());
        register(dir.path(), &service.url, "alice");
        let grant = waxwing(dir.path(), &["grant", "upload", "--home", "alice"]).ok().stdout.trim().to_owned();
        Self { _dir: dir, service, grant }
    }

    fn request(&self, method: &str, path: &str, headers: &str) -> Vec<u8> {
        let (address, grant) = (self.service.address(), &self.grant);
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {grant}\r\n{headers}\r\n")
            .into_bytes()
    }
}

/// A phone's operating system sends a whole video in one request. The tunnel comes; the URL it was told amid the request
/// lets it go on.
#[test]
fn a_client_that_sends_all_at_once_learns_where_to_resume() {
    let uploading = Uploading::start();
    let bytes = sample_bytes(500_000);
    let mut wire = Wire::connect(&uploading.service);
    let headers = "Upload-Complete: ?1\r\nUpload-Draft-Interop-Version: 6\r\nContent-Length: 500000\r\n";
    wire.send(&uploading.request("POST", "/v1/uploads", headers));
    let told = wire.head();
    assert!(told.starts_with("http/1.1 104 "), "{told}");
    assert_eq!(field(&told, "upload-draft-interop-version"), "6");
    assert!(field(&told, "upload-limit").starts_with("max-size="));
    wire.send(&bytes[..300_000]);
    wire.connection.shutdown(Shutdown::Write).unwrap();
    let _ = wire.connection.read_to_end(&mut Vec::new());

    let location = field(&told, "location");
    let path = location.strip_prefix(&uploading.service.url).unwrap();
    let mut wire = Wire::connect(&uploading.service);
    wire.send(&uploading.request("HEAD", path, "Upload-Draft-Interop-Version: 6\r\n"));
    let standing = wire.head();
    assert_eq!(
        (field(&standing, "upload-offset"), field(&standing, "upload-complete")),
        ("300000".into(), "?0".into())
    );

    // On the same connection: nothing is told to a request that makes no upload.
    let headers = "Upload-Offset: 300000\r\nUpload-Complete: ?1\r\nUpload-Draft-Interop-Version: 6\r\n\
        Content-Type: application/partial-upload\r\nContent-Length: 200000\r\n";
    wire.send(&uploading.request("PATCH", path, headers));
    wire.send(&bytes[300_000..]);
    let done = wire.head();
    assert!(done.starts_with("http/1.1 200 "), "{done}");
    let hash = waxwing_protocol::BlobId::from_bytes(*blake3::hash(&bytes).as_bytes());
    assert_eq!(field(&done, "waxwing-blob"), hash.to_string());
}

/// Interim responses and answers take turns on one connection, whatever stands between them.
#[test]
fn interim_responses_never_fall_into_another_message() {
    let uploading = Uploading::start();
    let mut wire = Wire::connect(&uploading.service);
    for round in 0..20 {
        let bytes = sample_bytes(1000 + round);
        let length = bytes.len();
        let headers = format!(
            "Upload-Complete: ?1\r\nUpload-Draft-Interop-Version: 8\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n"
        );
        wire.send(&uploading.request("PUT", "/v1/blobs", &headers));
        let mut heads = [wire.head(), wire.head()];
        heads.sort();
        assert!(heads[0].starts_with("http/1.1 100 ") && heads[1].starts_with("http/1.1 104 "), "{heads:?}");
        wire.send(&bytes);
        let done = wire.head();
        assert!(done.starts_with("http/1.1 201 "), "{done}");
        let body: usize = field(&done, "content-length").parse().unwrap();
        while wire.read.len() < body {
            let mut piece = [0; 4096];
            let n = wire.connection.read(&mut piece).unwrap();
            wire.read.extend(&piece[..n]);
        }
        wire.read.drain(..body);
    }
}

/// A client that named no version of the draft would not know what a 104 is.
#[test]
fn nobody_is_told_what_he_did_not_ask_for() {
    let uploading = Uploading::start();
    for headers in ["Upload-Complete: ?1\r\n", "Upload-Complete: ?1\r\nUpload-Draft-Interop-Version: 3\r\n"] {
        let mut wire = Wire::connect(&uploading.service);
        wire.send(&uploading.request("POST", "/v1/uploads", &format!("{headers}Content-Length: 5\r\n")));
        wire.send(b"bytes");
        let answer = wire.head();
        assert!(answer.starts_with("http/1.1 201 "), "{answer}");
    }
}
