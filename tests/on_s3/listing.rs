//! What a bucket holds, by its server's own listing, against what its records name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::seaweed::Seaweed;

/// What a look found.
#[derive(Debug, Default)]
pub struct Looked {
    /// Blobs that are there.
    pub blobs: usize,
    /// Unfinished uploads.
    pub unfinished: usize,
    /// Objects, parts and tails that nothing names, and names whose bytes are not there.
    pub wrong: Vec<String>,
}

/// Names by what they are names of.
#[derive(Default)]
struct Named(BTreeMap<&'static str, BTreeMap<String, Option<u64>>>);

impl Named {
    fn add(&mut self, under: &'static str, name: &Value, bytes: Option<u64>) {
        if let Some(name) = name.as_str() {
            self.0.entry(under).or_default().insert(name.to_owned(), bytes);
        }
    }

    fn add_outboard(&mut self, outboard: &Value) {
        for object in outboard["objects"].as_array().into_iter().flatten() {
            self.add("outboards", &object["name"], object["bytes"].as_u64());
        }
    }
}

/// Looks at everything. Nobody may be writing.
pub fn look(server: &Seaweed) -> Looked {
    let mut looked = Looked::default();
    let mut named = Named::default();
    let mut parts_named = BTreeSet::new();
    // Bytes that may be there or not: what an upload is about to become.
    let mut ending = BTreeSet::new();
    for (blob, _) in server.list("blobs") {
        let pointer = server.json(&format!("blobs/{blob}"));
        if pointer["place"].is_null() {
            continue;
        }
        looked.blobs += 1;
        named.add("data", &pointer["place"]["data"], pointer["blob_bytes"].as_u64());
        named.add_outboard(&pointer["place"]["outboard"]);
    }
    for (upload, _) in server.list("uploads") {
        let draft = server.json(&format!("uploads/{upload}"));
        let is_finished = draft["record"]["state"].to_string().contains("omplete");
        looked.unfinished += usize::from(!is_finished);
        for tail in draft["tails"].as_array().into_iter().flatten() {
            named.add("tails", &tail["name"], tail["bytes"].as_u64());
        }
        named.add_outboard(&draft["outboard"]);
        parts_named.extend(draft["parts"]["upload"].as_str().map(str::to_owned));
        ending.extend(draft["ending"]["place"]["data"].as_str().map(str::to_owned));
        named.add_outboard(&draft["ending"]["place"]["outboard"]);
    }
    for under in ["data", "tails", "outboards"] {
        let there: BTreeMap<_, _> = server.list(under).into_iter().collect();
        let names = named.0.remove(under).unwrap_or_default();
        for (name, bytes) in &names {
            match there.get(name) {
                None => looked.wrong.push(format!("{under}/{name} is named and not there")),
                Some(size) if bytes.is_some_and(|bytes| bytes != *size) => {
                    looked.wrong.push(format!("{under}/{name} has {size} bytes instead of {bytes:?}"));
                }
                Some(_) => {}
            }
        }
        let orphans = there.keys().filter(|name| !names.contains_key(*name) && !ending.contains(*name));
        looked.wrong.extend(orphans.map(|name| format!("nothing names {under}/{name}")));
    }
    for (upload, _) in server.list(".uploads") {
        if !parts_named.contains(&upload) {
            looked.wrong.push(format!("nothing names the parts of {upload}"));
        }
    }
    for under in ["clocks", "probes"] {
        let left = server.list(under).into_iter();
        looked.wrong.extend(left.map(|(name, _)| format!("{under}/{name} was for a moment and stayed")));
    }
    looked
}
