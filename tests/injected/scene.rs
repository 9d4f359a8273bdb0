//! A node whose disk and whose life are at stake, and what it acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use reqwest::blocking::{Client, RequestBuilder, Response};
use waxwing_protocol::BlobId;

use crate::harness::uploader::content;
use crate::support::{Service, free_address, register, waxwing};

/// A node and its clients.
pub struct Scene {
    /// The node, while it runs.
    pub service: Option<Service>,
    /// What it said, by the upload's URL.
    pub told: BTreeMap<String, Told>,
    dir: tempfile::TempDir,
    config: PathBuf,
    listen: String,
    admin: String,
    upload_grant: String,
    media_grant: String,
    http: Client,
}

/// What was acknowledged of an upload.
#[derive(Clone, Debug)]
pub struct Told {
    /// What its content is made of.
    pub seed: u64,
    /// Its length.
    pub len: u64,
    /// The highest offset that was acknowledged.
    pub offset: u64,
    /// The highest offset that was sent.
    pub sent: u64,
    /// The blob it became.
    pub blob: Option<String>,
}

impl Scene {
    /// A node whose data is in `data`, or in a directory of its own; the origin leaves `reserve_bytes` free.
    pub fn start(dir: tempfile::TempDir, data: Option<&Path>, reserve_bytes: u64) -> Self {
        let (listen, admin) = (free_address(), free_address());
        let config = dir.path().join("node.toml");
        let data = data.map_or_else(|| dir.path().join("data"), Path::to_owned);
        let text = format!(
            "listen = \"{listen}\"\nadmin_listen = \"{admin}\"\ndata = \"{}\"\n\
             [origin]\nreserve_bytes = {reserve_bytes}\nsweep_interval_s = 1\n[messaging]\nregistration = \"open\"\n",
            data.display()
        );
        std::fs::write(&config, text).expect("the directory is writable");
        let http = Client::builder().timeout(Duration::from_secs(60)).build().expect("a client needs nothing");
        let mut scene = Self {
            service: None,
            told: BTreeMap::new(),
            dir,
            config,
            listen,
            admin,
            upload_grant: String::new(),
            media_grant: String::new(),
            http,
        };
        scene.restart(&[]);
        register(scene.dir.path(), &scene.url(), "alice");
        let grant = |kind| waxwing(scene.dir.path(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned();
        (scene.upload_grant, scene.media_grant) = (grant("upload"), grant("media"));
        scene
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Kills the node if it runs, and starts it with these environment variables.
    pub fn restart(&mut self, env: &[(&str, &str)]) {
        if let Some(service) = self.service.take() {
            service.kill();
        }
        self.service = Some(Service::serve_with(&self.config, env));
    }

    /// Whether the node says that it should get requests.
    pub fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("http://{}/readyz", self.admin)).send().expect("the node runs");
        answer.status().is_success()
    }

    fn ask(&self, request: RequestBuilder) -> Option<Response> {
        request.bearer_auth(&self.upload_grant).header("Tus-Resumable", "1.0.0").send().ok()
    }

    /// Creates an upload of content `seed`, whose length is told now or later. Its URL, or the status it was refused with.
    pub fn create(&mut self, seed: u64, len: u64, deferred: bool) -> Option<Result<String, u16>> {
        let request = self.http.post(format!("{}/v1/uploads", self.url()));
        let request = match deferred {
            true => request.header("Upload-Defer-Length", "1"),
            false => request.header("Upload-Length", len.to_string()),
        };
        let answer = self.ask(request)?;
        if answer.status() != 201 {
            return Some(Err(answer.status().as_u16()));
        }
        let url = answer.headers()["location"].to_str().expect("it is a URL").to_owned();
        self.told.insert(url.clone(), Told { seed, len, offset: 0, sent: 0, blob: None });
        Some(Ok(url))
    }

    /// Sends at most `bytes` of upload `url` from where it stands. The status of the answer, if there was one.
    pub fn append(&mut self, url: &str, bytes: u64, length: Option<u64>) -> Option<u16> {
        let told = self.told[url].clone();
        let end = told.len.min(told.offset.saturating_add(bytes));
        let all = content(told.seed, told.len);
        let piece = all[index(told.offset)..index(end)].to_vec();
        self.entry(url).sent = told.sent.max(end);
        let request = self.http.patch(url).header("Upload-Offset", told.offset.to_string());
        let request = match length {
            Some(length) => request.header("Upload-Length", length.to_string()),
            None => request,
        };
        let answer = self.ask(request.header("Content-Type", "application/offset+octet-stream").body(piece))?;
        self.note(url, &answer);
        Some(answer.status().as_u16())
    }

    /// Asks where upload `url` stands; an answer must fit what was acknowledged and sent.
    pub fn head(&mut self, url: &str) -> Option<Result<u64, String>> {
        let answer = self.ask(self.http.head(url))?;
        let told = self.told[url].clone();
        let offset = header(&answer, "upload-offset").and_then(|text| text.parse().ok());
        Some(match offset {
            Some(offset) if told.offset <= offset && offset <= told.sent => {
                self.note(url, &answer);
                Ok(offset)
            }
            other => Err(format!("{url}: {} at {other:?}, and {told:?} was told", answer.status())),
        })
    }

    fn entry(&mut self, url: &str) -> &mut Told {
        self.told.get_mut(url).expect("it was created here")
    }

    fn note(&mut self, url: &str, answer: &Response) {
        if !answer.status().is_success() {
            return;
        }
        let offset = header(answer, "upload-offset").and_then(|text| text.parse().ok());
        let blob = header(answer, "waxwing-blob");
        let told = self.entry(url);
        told.offset = told.offset.max(offset.unwrap_or(0));
        told.blob = blob.or(told.blob.take());
    }

    /// Whether what `url` became is what was sent.
    pub fn check_blob(&self, url: &str) -> Result<(), String> {
        let told = &self.told[url];
        let bytes = content(told.seed, told.len);
        let expected = BlobId::from_bytes(*blake3::hash(&bytes).as_bytes()).to_string();
        if told.blob.as_ref() != Some(&expected) {
            return Err(format!("{url} became {:?}, its bytes are {expected}", told.blob));
        }
        let request = self.http.get(format!("{}/v1/blobs/{expected}", self.url())).bearer_auth(&self.media_grant);
        let got = request.send().and_then(Response::error_for_status).and_then(Response::bytes);
        match got {
            Ok(got) if got == bytes => Ok(()),
            Ok(got) => Err(format!("{expected} came back as {} other bytes", got.len())),
            Err(error) => Err(format!("{expected} was acknowledged: {error}")),
        }
    }

    /// Whether everything that was acknowledged is there. Asks a node that has nothing in memory of it.
    pub fn check_all(&mut self) -> Result<(), Failed> {
        for url in self.told.keys().cloned().collect::<Vec<_>>() {
            self.head(&url).ok_or("the node does not answer")??;
            if self.told[&url].blob.is_some() {
                self.check_blob(&url)?;
            }
        }
        Ok(())
    }

    /// Completes what is unfinished, and sees that it is what was sent.
    pub fn finish_all(&mut self) -> Result<(), Failed> {
        for url in self.told.keys().cloned().collect::<Vec<_>>() {
            if self.told[&url].blob.is_none() {
                let length = self.told[&url].len;
                let status = self.append(&url, u64::MAX, Some(length));
                if status != Some(204) {
                    return Err(format!("{url} cannot be completed: {status:?}").into());
                }
            }
            self.check_blob(&url)?;
        }
        Ok(())
    }
}

/// A test; skipped and said when `missing` tells what it lacks. On CI as root that is a failure: it could have been
/// installed.
pub fn trial(name: &str, missing: Option<&str>, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    if let Some(reason) = missing {
        eprintln!("{name} is not tested: {reason}");
    }
    let is_required = std::env::var_os("CI").is_some() && rustix::process::getuid().is_root();
    Trial::test(name, test).with_ignored_flag(missing.is_some() && !is_required)
}

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("uploads here are small")
}
