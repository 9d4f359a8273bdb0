//! What every client's test begins and ends with: a service, a grant and a file; the blob that must be that file.

use std::path::PathBuf;

use super::proxy::{Cut, Proxy};
use crate::support::{Service, register, sample_bytes, sample_file, waxwing};

/// A service with one account, and a wire to it.
pub struct Scene {
    /// Where the test's files are; holds `sample.bin`.
    pub dir: tempfile::TempDir,
    pub service: Service,
    pub wire: Proxy,
    /// An upload grant.
    pub grant: String,
    /// The file to upload.
    pub file: PathBuf,
    bytes: usize,
}

impl Scene {
    /// A file of so many bytes, and a wire with these cuts before the service.
    pub fn new(bytes: usize, cuts: &[(u64, Cut)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(dir.path());
        register(dir.path(), &service.url, "alice");
        let grant = grant(&dir, "upload");
        let file = sample_file(dir.path(), "sample.bin", bytes);
        let wire = Proxy::start(service.address(), cuts);
        Self { dir, service, wire, grant, file, bytes }
    }

    /// Where uploads are created, through the wire.
    pub fn endpoint(&self) -> String {
        format!("{}/v1/uploads", self.wire.url)
    }

    /// The file, as an argument.
    pub fn file(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// A place in the test's directory, as an argument.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// See that `blob`, which the origin told a client, is the file, and that an edge gives the file back.
    #[track_caller]
    pub fn is_stored(&self, blob: Option<&str>) {
        let bytes = sample_bytes(self.bytes);
        let hash = data_encoding::BASE32_NOPAD.encode(blake3::hash(&bytes).as_bytes()).to_lowercase();
        assert_eq!(blob, Some(hash.as_str()), "the origin's id is not the BLAKE3 of the file");
        let url = format!("{}/v1/blobs/{hash}", self.service.url);
        let request = reqwest::blocking::Client::new().get(url).bearer_auth(grant(&self.dir, "media"));
        let response = request.send().unwrap().error_for_status().unwrap();
        assert!(response.bytes().unwrap() == bytes, "an edge gives other bytes than were uploaded");
    }
}

fn grant(dir: &tempfile::TempDir, kind: &str) -> String {
    waxwing(dir.path(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned()
}
