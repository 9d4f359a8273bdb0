//! What every HTTP error says: `application/problem+json`, RFC 9457.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The media type of a problem.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// What stands before a slug in a problem's `type`.
const TYPE_PREFIX: &str = "urn:problem-type:waxwing:";

/// An error as an HTTP body, RFC 9457.
///
/// Clients match on the slug at the end of `type`, never on prose. Extension members carry the values needed to act,
/// such as `offset`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem: `urn:problem-type:waxwing:` and a slug that is part of the API.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in a few words, the same for every occurrence.
    pub title: String,
    /// The HTTP status code this was answered with.
    pub status: u16,
    /// This occurrence in a sentence, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Further members, by name.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

impl Problem {
    /// A problem of the kind named by `slug`, such as `offset-mismatch`; its title is the slug in words.
    pub fn new(status: u16, slug: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{slug}"),
            title: slug.replace('-', " "),
            status,
            detail: detail.into(),
            extensions: Map::new(),
        }
    }

    /// The same problem with an extension member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extensions.insert(name.to_owned(), value.into());
        self
    }

    /// The slug of the kind, or the whole `type` when it is not one of ours.
    pub fn slug(&self) -> &str {
        self.kind.strip_prefix(TYPE_PREFIX).unwrap_or(&self.kind)
    }

    /// The problem as JSON text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and JSON values always serialize")
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", if self.detail.is_empty() { &self.title } else { &self.detail }, self.slug())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire_with_its_members() {
        let problem = Problem::new(409, "offset-mismatch", "client is at 5, server at 3").with("offset", 3);
        let back: Problem = serde_json::from_slice(&problem.to_json()).unwrap();
        assert_eq!(back, problem);
        assert_eq!(back.slug(), "offset-mismatch");
        assert_eq!(back.extensions["offset"], 3);
    }
}
