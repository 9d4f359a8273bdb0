//! Between edges and origins over networks that belong to others: encrypted, and with whom they mean.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::blocking::{Client, Response};
use reqwest::{Certificate, StatusCode};

use crate::support::{Service, WAXWING, sample_bytes, waxwing};

/// Writes a certificate for `name` and its key.
fn write_certificate(dir: &Path, name: &str) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    fs::write(dir.join(format!("{name}.pem")), made.cert.pem()).unwrap();
}

struct Secured {
    dir: tempfile::TempDir,
    origin: Service,
    client: Client,
    media: String,
    blob: String,
    bytes: Vec<u8>,
}

impl Secured {
    /// An origin that speaks TLS alone, and has a blob.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path(), "127.0.0.1");
        let authority = dir.path().join("127.0.0.1.pem");
        let certificate = Certificate::from_pem(&fs::read(&authority).unwrap()).unwrap();
        let client = Client::builder().tls_certs_only([certificate]).build().unwrap();
        let origin =
            node(dir.path(), "all", "", &tls(dir.path(), "127.0.0.1"), "[messaging]\nregistration = \"open\"\n");
        let say = |args: &[&str]| {
            let mut command = Command::new(WAXWING);
            let done = command.current_dir(dir.path()).env("SSL_CERT_FILE", &authority).args(args).output().unwrap();
            assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap().trim().to_owned()
        };
        say(&["register", "--handle", "alice", "--home", "alice", "--server", &origin.url]);
        let (upload, media) =
            (say(&["grant", "upload", "--home", "alice"]), say(&["grant", "media", "--home", "alice"]));
        let data = dir.path().join("all");
        let grant = ["admin", "grant", "edge", "--node", "e", "--data", data.to_str().unwrap()];
        fs::write(dir.path().join("edge.grant"), waxwing(dir.path(), &grant).ok().stdout).unwrap();
        let jwks = client.get(format!("{}/.well-known/jwks.json", origin.url)).send().unwrap().text().unwrap();
        fs::write(dir.path().join("jwks.json"), jwks).unwrap();
        let bytes = sample_bytes(3_000_000);
        let put = client.put(format!("{}/v1/blobs", origin.url)).bearer_auth(&upload).body(bytes.clone());
        let blob = put.send().unwrap().headers()["waxwing-blob"].to_str().unwrap().to_owned();
        Self { dir, origin, client, media, blob, bytes }
    }

    /// An edge before it with these keys of its own.
    fn edge(&self, name: &str, tls: &str, keys: &str) -> Service {
        let dir = self.dir.path();
        let cluster = format!(
            "roles = [\"edge\"]\n{tls}[cluster]\norigin_url = {:?}\njwks_file = {:?}\nedge_grant_file = {:?}\n",
            self.origin.url,
            dir.join("jwks.json"),
            dir.join("edge.grant")
        );
        let (roles, cluster) = cluster.split_once('\n').unwrap();
        node(dir, name, roles, cluster, &format!("[edge]\n{keys}"))
    }

    fn get(&self, edge: &Service) -> Response {
        self.client.get(format!("{}/v1/blobs/{}", edge.url, self.blob)).bearer_auth(&self.media).send().unwrap()
    }

    fn authority(&self, name: &str) -> String {
        format!("ca_file = {:?}\n", self.dir.path().join(format!("{name}.pem")))
    }
}

fn tls(dir: &Path, name: &str) -> String {
    let path = |ending: &str| -> PathBuf { dir.join(format!("{name}.{ending}")) };
    format!("[tls]\ncert_file = {:?}\nkey_file = {:?}\n", path("pem"), path("key"))
}

fn node(dir: &Path, name: &str, roles: &str, sections: &str, more: &str) -> Service {
    let config = dir.join(format!("{name}.toml"));
    let data = dir.join(name);
    let text = format!("listen = \"127.0.0.1:0\"\ndata = {data:?}\n{roles}\n{sections}{more}");
    fs::write(&config, text).unwrap();
    Service::serve(&config)
}

#[test]
fn edges_ask_shields_and_origins_over_tls() {
    let secured = Secured::start();
    let authority = secured.authority("127.0.0.1");
    let shield = secured.edge("shield", &tls(secured.dir.path(), "127.0.0.1"), &authority);
    assert!(shield.url.starts_with("https://"), "{}", shield.url);
    let edge = secured.edge("edge", "", &format!("{authority}shields = [{:?}]\n", shield.url));
    let answer = secured.get(&edge);
    assert_eq!(answer.status(), StatusCode::OK);
    let hops = answer.headers()["cache-status"].to_str().unwrap().to_owned();
    assert_eq!(hops.matches("waxwing; fwd=").count(), 2, "by way of the shield: {hops}");
    assert_eq!(answer.bytes().unwrap(), secured.bytes);
    // What both have asks nobody.
    assert!(secured.get(&edge).headers()["cache-status"].to_str().unwrap().starts_with("waxwing; hit"));
}

/// The edge's grant opens every blob: it is shown to nobody who cannot show whose address this is.
#[test]
fn an_edge_gives_nothing_to_an_origin_that_nobody_vouches_for() {
    let secured = Secured::start();
    write_certificate(secured.dir.path(), "another");
    let edge = secured.edge("edge", "", &secured.authority("another"));
    let answer = secured.get(&edge);
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(answer.text().unwrap().contains("origin-unavailable"));
}
