//! The same roles on different nodes: what works in one process works apart.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Service, free_address, register, sample_file, waxwing};

fn config(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(format!("{name}.toml"));
    let data = dir.join(name);
    fs::write(&path, format!("listen = \"127.0.0.1:0\"\ndata = {data:?}\nroles = [\"{name}\"]\n{text}")).unwrap();
    path
}

/// Each node must know the others before they run.
fn free_url() -> String {
    format!("http://{}", free_address())
}

#[test]
fn origin_edge_and_messaging_work_on_three_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (origin_url, edge_url) = (free_url(), free_url());
    let cluster = format!("[cluster]\nuploads_base_url = \"{origin_url}\"\nblobs_base_url = \"{edge_url}\"\n");
    let messaging_config = config(dir, "messaging", &format!("{cluster}[messaging]\nregistration = \"open\"\n"));
    let messaging = Service::serve(&messaging_config);

    let jwks = reqwest::blocking::get(format!("{}/.well-known/jwks.json", messaging.url)).unwrap().text().unwrap();
    fs::write(dir.join("jwks.json"), jwks).unwrap();
    let data = dir.join("messaging");
    let grant = ["admin", "grant", "edge", "--node", "edge-1", "--data", data.to_str().unwrap()];
    fs::write(dir.join("edge.grant"), waxwing(dir, &grant).ok().stdout).unwrap();
    let jwks_file = format!("[cluster]\njwks_file = {:?}\n", dir.join("jwks.json"));
    let listen = |url: &str, text: &Path| {
        let config = fs::read_to_string(text).unwrap().replace("127.0.0.1:0", url.strip_prefix("http://").unwrap());
        fs::write(text, config).unwrap();
    };
    let origin_config = config(dir, "origin", &jwks_file);
    listen(&origin_url, &origin_config);
    let _origin = Service::serve(&origin_config);
    let edge_cluster =
        format!("{jwks_file}origin_url = \"{origin_url}\"\nedge_grant_file = {:?}\n", dir.join("edge.grant"));
    let edge_config = config(dir, "edge", &edge_cluster);
    listen(&edge_url, &edge_config);
    let _edge = Service::serve(&edge_config);

    register(dir, &messaging.url, "alice");
    register(dir, &messaging.url, "bob");
    let photo = sample_file(dir, "photo.jpg", 3_000_000);
    waxwing(dir, &["send", "photo.jpg", "--to", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["watch", "--once", "--save", "inbox", "--home", "bob"]).ok();
    assert_eq!(fs::read(dir.join("inbox/photo.jpg")).unwrap(), fs::read(photo).unwrap());
}
