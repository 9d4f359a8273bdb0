//! Origins over one bucket, and who may upload to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::Client;

use super::seaweed::{BUCKET, RETURN, Seaweed};
use crate::support::{Done, Service, free_address, register, wait_at_most, waxwing};

/// A node with every role whose blobs are in a bucket.
pub struct Scene {
    /// The node, while it runs.
    pub service: Option<Service>,
    /// Its server.
    pub seaweed: Seaweed,
    pub upload_grant: String,
    pub media_grant: String,
    /// Where it listens.
    pub listen: String,
    pub http: Client,
    admin: String,
    config: PathBuf,
    dir: tempfile::TempDir,
}

impl Scene {
    /// A server, a node, and somebody who may upload.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let seaweed = Seaweed::start(&dir.path().join("seaweed"));
        let (listen, admin) = (free_address(), free_address());
        let config = dir.path().join("node.toml");
        let text = node_config(dir.path(), &listen, &admin, &seaweed.endpoint());
        std::fs::write(&config, text).expect("the directory is writable");
        write_keys(dir.path(), "waxwing", "waxwing-secret");
        let http = Client::builder().timeout(Duration::from_secs(60)).build().expect("a client needs nothing");
        let (upload_grant, media_grant) = (String::new(), String::new());
        let mut scene = Self { service: None, seaweed, upload_grant, media_grant, listen, http, admin, config, dir };
        scene.start_node(&[]);
        register(scene.dir.path(), &scene.url(), "alice");
        let grant = |kind| waxwing(scene.dir.path(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned();
        (scene.upload_grant, scene.media_grant) = (grant("upload"), grant("media"));
        scene
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Starts the node with these environment variables, as soon as its bucket lets it.
    pub fn start_node(&mut self, env: &[(&str, &str)]) {
        let config = &self.config;
        self.service = Some(wait_at_most(RETURN, "the node to start", || match Service::try_serve(config, env) {
            Ok(service) => Some(service),
            // The gateway answers before it can store.
            Err(said) if said.contains("cannot use bucket") => None,
            Err(said) => panic!("the node does not start: {said}"),
        }));
    }

    /// Another origin over the same bucket, which takes the grants of the first.
    pub fn another_origin(&self) -> Service {
        let jwks = self.http.get(format!("{}/.well-known/jwks.json", self.url())).send().expect("the node runs");
        let jwks = jwks.bytes().expect("it answers");
        let dir = self.dir().join("other");
        std::fs::create_dir_all(&dir).expect("the directory can be made");
        std::fs::write(dir.join("jwks.json"), jwks).expect("the directory is writable");
        write_keys(&dir, "waxwing", "waxwing-secret");
        let text = node_config(&dir, &free_address(), &free_address(), &self.seaweed.endpoint());
        let text = format!("roles = [\"origin\"]\n{text}[cluster]\njwks_file = {:?}\n", dir.join("jwks.json"));
        std::fs::write(dir.join("node.toml"), text).expect("the directory is writable");
        Service::serve(&dir.join("node.toml"))
    }

    /// What the node says of whether it should get requests.
    pub fn readiness(&self) -> (StatusCode, String) {
        let answer = self.http.get(format!("http://{}/readyz", self.admin)).send().expect("the node runs");
        (answer.status(), answer.text().expect("an answer has a body"))
    }

    /// `waxwing admin ARGS` at this node.
    pub fn admin(&self, args: &[&str]) -> Done {
        let admin = format!("http://{}", self.admin);
        waxwing(self.dir(), &[&["--json", "admin"], args, &["--admin", &admin]].concat())
    }
}

/// The configuration of a node whose data and keys are in `dir`.
pub fn node_config(dir: &Path, listen: &str, admin: &str, endpoint: &str) -> String {
    format!(
        "listen = \"{listen}\"\nadmin_listen = \"{admin}\"\ndata = {:?}\n\
         [messaging]\nregistration = \"open\"\n\
         [origin]\nsweep_interval_s = 1\n\
         [blobs.s3]\nendpoint = \"{endpoint}\"\nbucket = \"{BUCKET}\"\npart_bytes = 5242880\n\
         access_key_id_file = {:?}\nsecret_access_key_file = {:?}\n",
        dir.join("data"),
        dir.join("access"),
        dir.join("secret"),
    )
}

/// Writes the keys that a node in `dir` signs with.
pub fn write_keys(dir: &Path, access: &str, secret: &str) {
    std::fs::write(dir.join("access"), access).expect("the directory is writable");
    std::fs::write(dir.join("secret"), secret).expect("the directory is writable");
}
