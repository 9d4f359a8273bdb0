//! What an operator asks of an edge.

use reqwest::StatusCode;
use serde_json::Value;

use super::Node;
use crate::support::{sample_bytes, wait_for};

fn start() -> Node {
    Node::with("127.0.0.1", &[("WAXWING_EDGE__DISK_BYTES", "67108864")])
}

impl Node {
    fn store(&self, bytes: &[u8]) -> String {
        self.put(bytes).headers()["waxwing-blob"].to_str().unwrap().to_owned()
    }

    fn read(&self, blob: &str) -> reqwest::blocking::Response {
        self.client
            .get(format!("{}/v1/blobs/{blob}", self.service.url))
            .bearer_auth(self.grant("media"))
            .send()
            .unwrap()
    }

    /// The parts of `blob` that the edge holds, in order.
    fn held(&self, blob: &str, args: &[&str]) -> Vec<String> {
        let told = self.admin(&[&["edge", "ls"], args].concat()).ok().stdout;
        let held = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut parts: Vec<_> = held.filter(|held| held["blob"] == blob).map(|held| held["part"].to_string()).collect();
        parts.sort();
        parts
    }

    fn stat(&self, name: &str) -> u64 {
        let told: Value = serde_json::from_str(&self.admin(&["edge", "stats"]).ok().stdout).unwrap();
        told["stats"][name].as_u64().unwrap_or_else(|| panic!("{told} has no {name}"))
    }
}

#[test]
fn an_operator_sees_what_an_edge_holds_and_makes_it_forget() {
    let node = start();
    let bytes = sample_bytes(3 << 20);
    let (film, photo) = (node.store(&bytes), node.store(b"small"));
    for _ in 0..2 {
        assert_eq!(node.read(&film).bytes().unwrap(), bytes);
        assert_eq!(node.read(&photo).bytes().unwrap(), "small");
    }
    assert_eq!((node.stat("misses"), node.stat("fill_bytes")), (2, bytes.len() as u64 + 5));
    let parts = ["\"outboard\"", "{\"slice\":0}", "{\"slice\":1}", "{\"slice\":2}"];
    for tier in [&[][..], &["--memory"]] {
        // What was fetched is written a moment later.
        wait_for("all parts", || (node.held(&film, tier) == parts).then_some(()));
        wait_for("the photo", || (node.held(&photo, tier) == ["\"whole\""]).then_some(()));
    }

    node.admin(&["edge", "purge", &film]).ok();
    for tier in [&[][..], &["--memory"]] {
        assert!(node.held(&film, tier).is_empty(), "{tier:?}");
        assert_eq!(node.held(&photo, tier), ["\"whole\""]);
    }
    // The origin still has it.
    assert_eq!(node.read(&film).bytes().unwrap(), bytes);
    assert_eq!(node.stat("fill_bytes"), 2 * bytes.len() as u64 + 5);
}

/// A load balancer that probes stops sending; whoever was sent before is answered.
#[test]
fn an_edge_that_drains_is_not_ready_and_still_answers() {
    let node = start();
    let photo = node.store(b"small");
    let ready = || node.client.get(format!("{}/readyz", node.admin)).send().unwrap();
    assert_eq!(ready().status(), StatusCode::OK);
    node.admin(&["edge", "drain"]).ok();
    let refused = ready();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.text().unwrap().contains("edge"));
    assert_eq!(node.metric("waxwing_ready{role=\"edge\"}"), Some(0.0));
    assert_eq!(node.read(&photo).bytes().unwrap(), "small");
    node.admin(&["edge", "drain", "--end"]).ok();
    assert_eq!(ready().status(), StatusCode::OK);
}
