//! Whence a request came, edge by edge, so that none goes in circles.
//!
//! Edges ask edges. Two that name one another as shields, by an operator's mistake or an address that moved, would ask
//! each other until both are out of sockets, and a mistake would be an outage. So each request names the edges it has
//! passed (`CDN-Loop`, RFC 8586) and counts them; an edge that finds itself in it, or too many before it, refuses.
//!
//! The name is made anew at each start and is in no configuration: two edges that were given the same one by mistake
//! would refuse each other's requests for ever.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

/// RFC 8586.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// How many edges a request has passed. Beside `CDN-Loop`, since boxes in between may drop or shorten that.
const HOPS: HeaderName = HeaderName::from_static("waxwing-hops");

/// Edges that a request passes at most: the one a client asks, a peer, and shields of two regions.
const HOPS_MAX: u8 = 4;

/// Bytes of `CDN-Loop` at most: a dozen networks, each with a name and parameters.
const LOOP_BYTES_MAX: usize = 1024;

/// The edges a request has passed before this one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Via {
    hops: u8,
    /// `CDN-Loop` as it came.
    passed: Option<Arc<str>>,
}

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Circle {
    /// It has been here.
    #[error("this request has passed this edge already: the peers and shields of some edges point at one another")]
    Closed,
    /// It has passed too many.
    #[error("this request has passed {HOPS_MAX} edges, the most there may be")]
    TooLong,
    /// What it says of its way cannot be read.
    #[error("what this request says of its way cannot be read")]
    Unreadable,
}

/// What this edge is called in `CDN-Loop`.
#[derive(Clone, Debug)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// A name that nobody else has.
    pub(crate) fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the operating system has randomness");
        Self(format!("waxwing-{:016x}", u64::from_le_bytes(random)).into())
    }
}

impl Via {
    /// The way of a request from another edge to the edge of this name.
    ///
    /// # Errors
    /// [`Circle`] when it must go no further.
    pub(crate) fn of(headers: &HeaderMap, name: &Name) -> Result<Self, Circle> {
        let mut passed = String::new();
        for line in headers.get_all(CDN_LOOP) {
            let line = line.to_str().map_err(|_| Circle::Unreadable)?;
            if passed.len() + line.len() > LOOP_BYTES_MAX {
                return Err(Circle::Unreadable);
            }
            if !passed.is_empty() {
                passed.push_str(", ");
            }
            passed.push_str(line);
        }
        // A name may have parameters behind it.
        let named = |one: &str| one.split(';').next().is_some_and(|one| one.trim() == &*name.0);
        if passed.split(',').any(named) {
            return Err(Circle::Closed);
        }
        // Who asks as an edge is one.
        let hops = match headers.get(HOPS) {
            Some(hops) => hops.to_str().ok().and_then(|hops| hops.parse().ok()).ok_or(Circle::Unreadable)?,
            None => 1,
        };
        if hops >= HOPS_MAX {
            return Err(Circle::TooLong);
        }
        Ok(Self { hops, passed: (!passed.is_empty()).then(|| passed.into()) })
    }

    /// Whether it came from a client rather than from another edge.
    pub(crate) const fn is_from_client(&self) -> bool {
        self.hops == 0
    }

    /// Says on a request that goes on from the edge of this name what it has passed.
    pub(crate) fn tell(&self, name: &Name, headers: &mut HeaderMap) {
        let passed = match &self.passed {
            Some(passed) => format!("{passed}, {}", name.0),
            None => name.0.to_string(),
        };
        headers.insert(CDN_LOOP, HeaderValue::try_from(passed).expect("what was read as text is a header value"));
        headers.insert(HOPS, HeaderValue::from(u16::from(self.hops) + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_request_that_comes_back_is_known_again() {
        let (first, second) = (Name::new(), Name::new());
        let mut told = HeaderMap::new();
        Via::default().tell(&first, &mut told);
        assert_eq!(Via::of(&told, &first).unwrap_err(), Circle::Closed);
        let via = Via::of(&told, &second).unwrap();
        assert!(!via.is_from_client());
        let mut told = HeaderMap::new();
        via.tell(&second, &mut told);
        assert_eq!(Via::of(&told, &first).unwrap_err(), Circle::Closed);
        assert_eq!(Via::of(&told, &second).unwrap_err(), Circle::Closed);
        assert!(Via::of(&told, &Name::new()).is_ok());
    }

    #[test]
    fn a_way_is_read_as_the_rfc_writes_it_and_has_a_bound() {
        let name = Name::new();
        let with_parameters = format!("foo123.example;a=\"x\", {} ; abc=123", name.0);
        assert_eq!(Via::of(&headers(&[(CDN_LOOP, &with_parameters)]), &name).unwrap_err(), Circle::Closed);
        assert_eq!(Via::of(&headers(&[(CDN_LOOP, "a"), (CDN_LOOP, &name.0)]), &name).unwrap_err(), Circle::Closed);
        assert!(Via::of(&headers(&[(CDN_LOOP, "foo.example, bar")]), &name).is_ok());
        assert_eq!(Via::of(&headers(&[(HOPS, "4")]), &name).unwrap_err(), Circle::TooLong);
        for hops in ["-1", "256", "x", ""] {
            assert_eq!(Via::of(&headers(&[(HOPS, hops)]), &name).unwrap_err(), Circle::Unreadable, "{hops}");
        }
        let long = "x".repeat(LOOP_BYTES_MAX);
        assert_eq!(Via::of(&headers(&[(CDN_LOOP, &long), (CDN_LOOP, "y")]), &name).unwrap_err(), Circle::Unreadable);
    }
}
