//! Without our client: what curl and a tus client see.

use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use serde_json::Value;

use crate::support::{Service, register, sample_bytes, waxwing};

struct Http {
    _dir: tempfile::TempDir,
    service: Service,
    client: Client,
    upload: String,
    media: String,
}

impl Http {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start(dir.path());
        register(dir.path(), &service.url, "alice");
        let grant = |kind| waxwing(dir.path(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned();
        let (upload, media) = (grant("upload"), grant("media"));
        Self { service, client: Client::new(), upload, media, _dir: dir }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.service.url)
    }

    /// A blob in one request.
    fn put_blob(&self, bytes: &[u8]) -> String {
        let request = self.client.put(self.url("/v1/blobs")).bearer_auth(&self.upload).body(bytes.to_vec());
        let answer = request.send().unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        answer.headers()["waxwing-blob"].to_str().unwrap().to_owned()
    }

    fn get(&self, path: &str, grant: &str) -> Response {
        self.client.get(self.url(path)).bearer_auth(grant).send().unwrap()
    }
}

#[track_caller]
fn assert_problem(answer: Response, status: StatusCode) -> Value {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().unwrap();
    assert_eq!(problem["status"], status.as_u16());
    assert!(problem["type"].as_str().unwrap().starts_with("urn:problem-type:waxwing:"), "{problem}");
    problem
}

#[test]
fn info_tells_where_everything_is() {
    let http = Http::start();
    let info: Value = http.client.get(http.url("/v1/info")).send().unwrap().json().unwrap();
    assert_eq!(info["uploads_url"], http.url("/v1/uploads"));
    assert_eq!(info["blobs_url"], http.url("/v1/blobs"));
    assert_eq!(info["socket_url"], http.url("/v1/ws").replace("http", "ws"));
    assert_eq!(info["registration"], "open");
}

#[test]
fn a_tus_upload_comes_back_through_the_edge_named_by_its_hash() {
    let http = Http::start();
    let bytes = sample_bytes(300_000);
    let created = http
        .client
        .post(http.url("/v1/uploads"))
        .bearer_auth(&http.upload)
        .header("Tus-Resumable", "1.0.0")
        .header("Upload-Length", bytes.len().to_string())
        .send()
        .unwrap();
    assert_eq!(created.status(), StatusCode::CREATED);
    let upload = created.headers()["location"].to_str().unwrap().to_owned();
    let patch = |offset: usize, part: &[u8]| {
        let request = http.client.patch(&upload).bearer_auth(&http.upload).header("Tus-Resumable", "1.0.0");
        let request = request.header("Upload-Offset", offset.to_string());
        request.header("Content-Type", "application/offset+octet-stream").body(part.to_vec()).send().unwrap()
    };
    assert_eq!(patch(0, &bytes[..100_000]).status(), StatusCode::NO_CONTENT);
    assert_problem(patch(0, &bytes[..10]), StatusCode::CONFLICT);
    let last = patch(100_000, &bytes[100_000..]);
    assert_eq!(last.status(), StatusCode::NO_CONTENT);

    let blob = last.headers()["waxwing-blob"].to_str().unwrap().to_owned();
    let hash = blake3::hash(&bytes);
    assert_eq!(blob, waxwing_protocol::BlobId::from_bytes(*hash.as_bytes()).to_string());
    let got = http.get(&format!("/v1/blobs/{blob}"), &http.media);
    assert_eq!(got.bytes().unwrap(), bytes);
}

#[test]
fn a_range_is_that_range() {
    let http = Http::start();
    let bytes = sample_bytes(2_500_000);
    let path = format!("/v1/blobs/{}", http.put_blob(&bytes));
    for (first, last) in
        [(0, 0), (65_535, 65_536), (1_048_575, 1_048_576), (2_499_999, 2_499_999), (500_000, 2_400_000)]
    {
        let request = http.client.get(http.url(&path)).bearer_auth(&http.media);
        let answer = request.header("Range", format!("bytes={first}-{last}")).send().unwrap();
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.headers()["content-range"], format!("bytes {first}-{last}/2500000"));
        assert_eq!(answer.bytes().unwrap(), bytes[first..=last]);
    }
}

/// A wrong grant is told apart from a missing one, and a hit asks for one as a miss does.
#[test]
fn grants_are_asked_for_before_anything_is_looked_up() {
    let http = Http::start();
    let path = format!("/v1/blobs/{}", http.put_blob(&sample_bytes(1000)));
    assert_eq!(http.get(&path, &http.media).status(), StatusCode::OK);

    let without = http.client.get(http.url(&path)).send().unwrap();
    assert!(without.headers().contains_key("www-authenticate"));
    assert_problem(without, StatusCode::UNAUTHORIZED);
    assert_problem(http.get(&path, "nonsense"), StatusCode::UNAUTHORIZED);
    assert_problem(http.get(&path, &http.upload), StatusCode::FORBIDDEN);
    assert_problem(http.get(&path.replace("/v1/", "/origin/v1/"), &http.media), StatusCode::FORBIDDEN);
    let upload =
        http.client.post(http.url("/v1/uploads")).header("Tus-Resumable", "1.0.0").header("Upload-Length", "1");
    assert_problem(upload.bearer_auth(&http.media).send().unwrap(), StatusCode::FORBIDDEN);
}

#[test]
fn malformed_and_unknown_ids_are_not_found() {
    let http = Http::start();
    for id in ["x", &"A".repeat(52), &"a".repeat(52), "..%2f..%2fetc%2fpasswd"] {
        assert_problem(http.get(&format!("/v1/blobs/{id}"), &http.media), StatusCode::NOT_FOUND);
        let head = http.client.head(http.url(&format!("/v1/uploads/{id}"))).header("Tus-Resumable", "1.0.0");
        assert_eq!(head.bearer_auth(&http.upload).send().unwrap().status(), StatusCode::NOT_FOUND);
    }
    assert_problem(http.get("/v1/nothing/here", &http.media), StatusCode::NOT_FOUND);
}

/// The description for programs names what is there: each operation exists, and asks for a grant before anything else.
#[test]
fn every_operation_of_the_description_exists() {
    let http = Http::start();
    let answer = http.client.get(http.url("/v1/openapi.json")).send().unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    let description: Value = answer.json().unwrap();
    let paths = description["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 7);
    for (path, operations) in paths {
        let id = if path.contains("uploads") { "a".repeat(26) } else { "a".repeat(52) };
        let url = http.url(&path.replace("{id}", &id));
        for method in operations.as_object().unwrap().keys() {
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let answer = http.client.request(method.clone(), &url).header("tus-resumable", "1.0.0").send().unwrap();
            let expected = if method == "OPTIONS" { StatusCode::NO_CONTENT } else { StatusCode::UNAUTHORIZED };
            assert_eq!(answer.status(), expected, "{method} {path}");
        }
    }
}
