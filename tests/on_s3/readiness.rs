//! A bucket that cannot be used, told at the start and later.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use reqwest::StatusCode;

use super::scene::{Scene, node_config, write_keys};
use super::seaweed::{BUCKET, RETURN, Seaweed};
use crate::support::{Service, free_address, wait_at_most};

/// What the keys of a node may do.
const EVERYTHING: &[&str] = &["Admin", "Read", "Write", "List", "Tagging"];

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("a_bucket_that_goes_is_told_by_readyz_and_so_is_its_return", goes_and_returns),
        Trial::test("a_node_tells_at_its_start_what_is_wrong_with_its_bucket", refuses),
    ]
}

/// Keys are revoked, permission is taken away, the bucket is removed, the server stops: each is told with its reason, and
/// each is over when it is over.
fn goes_and_returns() -> Result<(), Failed> {
    let mut scene = Scene::start();
    is_ready(&scene);
    scene.seaweed.set_keys("waxwing", "another-secret", EVERYTHING);
    tells(&scene, "SignatureDoesNotMatch");
    scene.seaweed.set_keys("waxwing", "waxwing-secret", &["Read", "List"]);
    tells(&scene, "AccessDenied");
    scene.seaweed.set_keys("waxwing", "waxwing-secret", EVERYTHING);
    is_ready(&scene);
    scene.seaweed.remove_bucket();
    tells(&scene, "NoSuchBucket");
    scene.seaweed.make_bucket();
    is_ready(&scene);
    scene.seaweed.kill();
    tells(&scene, "onnection refused");
    scene.seaweed.start_again();
    is_ready(&scene);
    Ok(())
}

fn is_ready(scene: &Scene) {
    wait_at_most(RETURN, "the node to be ready", || (scene.readiness().0 == StatusCode::OK).then_some(()));
}

fn tells(scene: &Scene, why: &str) {
    wait_at_most(RETURN, &format!("the node to tell {why:?}"), || {
        let (status, said) = scene.readiness();
        (status == StatusCode::SERVICE_UNAVAILABLE && said.contains("origin (") && said.contains(why)).then_some(())
    });
}

/// What an operator reads who made a mistake.
fn refuses() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let mut seaweed = Seaweed::start(&dir.path().join("seaweed"));
    let endpoint = seaweed.endpoint();
    let good = || Mistake { dir: dir.path(), endpoint: &endpoint, bucket: BUCKET, keys: ("waxwing", "waxwing-secret") };
    // Once it starts with nothing wrong, what is refused is so for the reason that is told.
    wait_at_most(RETURN, "a node to start", || good().start().ok()).stop();
    let cases = [
        (Mistake { bucket: "no-such-bucket", ..good() }, "NoSuchBucket"),
        (Mistake { keys: ("waxwing", "guessed"), ..good() }, "SignatureDoesNotMatch"),
        (Mistake { keys: ("nobody", "guessed"), ..good() }, "InvalidAccessKeyId"),
        (Mistake { keys: ("reader", "reader-secret"), ..good() }, "check the permissions of the keys"),
        (Mistake { keys: ("", "guessed"), ..good() }, "AWS_ACCESS_KEY_ID is empty"),
        (Mistake { endpoint: "http://127.0.0.1:9", ..good() }, "onnection refused"),
    ];
    for (mistake, expected) in cases {
        let said = mistake.start().err().ok_or_else(|| format!("it starts, where {expected:?} was expected"))?;
        if !said.contains(expected) || !said.contains(&format!("bucket {}", mistake.bucket)) {
            return Err(format!("{expected:?} is not in: {said}").into());
        }
        if said.contains("guessed") || said.contains("reader-secret") {
            return Err(format!("a secret is told: {said}").into());
        }
    }
    seaweed.kill();
    let said = good().start().err().ok_or("it starts without a server")?;
    if said.contains("onnection refused") { Ok(()) } else { Err(said.into()) }
}

/// A configuration, with at most one thing wrong.
struct Mistake<'a> {
    dir: &'a Path,
    endpoint: &'a str,
    bucket: &'a str,
    keys: (&'a str, &'a str),
}

impl Mistake<'_> {
    fn start(&self) -> Result<Service, String> {
        let (access, secret) = self.keys;
        write_keys(self.dir, access, secret);
        let text = node_config(self.dir, &free_address(), &free_address(), self.endpoint);
        let text = text.replace(&format!("bucket = \"{BUCKET}\""), &format!("bucket = {:?}", self.bucket));
        let config = self.dir.join("node.toml");
        std::fs::write(&config, text).map_err(|error| error.to_string())?;
        Service::try_serve(&config, &[])
    }
}
