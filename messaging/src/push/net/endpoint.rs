//! Endpoints that devices name, held against what the operator allows: at registration, and again at every send.

use url::{Host, Url};
use waxwing_protocol::api::PUSH_TOKEN_BYTES_MAX;

use super::Place;

/// Where endpoints may lead.
#[derive(Clone, Debug)]
pub(crate) struct EndpointRules {
    /// Hosts: a name, `*.` and a name for whatever is below it, or `*`. On port 443 alone.
    hosts: Vec<String>,
    /// Names and ports in the operator's own network, whose addresses are not checked.
    inside: Vec<(String, u16)>,
}

/// Why an endpoint is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointRefused {
    #[error("an endpoint is a URL of at most {PUSH_TOKEN_BYTES_MAX} bytes")]
    Malformed,
    #[error("an endpoint is an https URL")]
    NotHttps,
    #[error("an endpoint names no user")]
    UserInfo,
    #[error("this service posts to no such host")]
    HostNotAllowed,
    #[error("this service posts to no such port")]
    PortNotAllowed,
}

/// An endpoint that may be posted to, if its name leads to where it may.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(in crate::push) place: Place,
    /// Scheme, host and port: what a VAPID token is for.
    pub(in crate::push) origin: String,
    /// With the query.
    pub(in crate::push) path: String,
}

impl EndpointRules {
    /// Reads rules.
    ///
    /// # Errors
    /// Names the first that makes no sense.
    pub(crate) fn new(hosts: &[String], inside: &[String]) -> Result<Self, String> {
        for host in hosts {
            let name = host.strip_prefix("*.").unwrap_or(host);
            let is_name =
                !name.contains('*') && matches!(Host::parse(name), Ok(Host::Domain(parsed)) if parsed == name);
            if host != "*" && !is_name {
                return Err(format!("`{host}` is neither a host's name nor `*.` and one, in lower case"));
            }
        }
        let inside = inside.iter().map(|text| {
            let (host, port) = text.rsplit_once(':')?;
            Some((host.to_owned(), port.parse().ok()?))
        });
        let inside = inside.collect::<Option<_>>().ok_or("a host inside is `name:port`")?;
        Ok(Self { hosts: hosts.to_vec(), inside })
    }

    fn allow(&self, host: &str) -> bool {
        self.hosts.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some(below) => host.len() > below.len() && host.ends_with(below),
            None => host == allowed,
        })
    }
}

impl Endpoint {
    /// Reads an endpoint and holds it against the rules.
    pub(crate) fn parse(text: &str, rules: &EndpointRules) -> Result<Self, EndpointRefused> {
        if text.len() > PUSH_TOKEN_BYTES_MAX {
            return Err(EndpointRefused::Malformed);
        }
        let url = Url::parse(text).map_err(|_| EndpointRefused::Malformed)?;
        if url.scheme() != "https" {
            return Err(EndpointRefused::NotHttps);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointRefused::UserInfo);
        }
        let port = url.port_or_known_default().ok_or(EndpointRefused::Malformed)?;
        let host = url.host().ok_or(EndpointRefused::Malformed)?;
        let name = url.host_str().unwrap_or_default();
        let trusted = rules.inside.iter().any(|(inside, at)| inside == name && *at == port);
        if !trusted {
            // Parsing has made one notation of all: what is an address in any of them is one here.
            if !matches!(host, Host::Domain(_)) || !rules.allow(name) {
                return Err(EndpointRefused::HostNotAllowed);
            }
            if port != 443 {
                return Err(EndpointRefused::PortNotAllowed);
            }
        }
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let origin = url.origin().ascii_serialization();
        let host = name.trim_matches(['[', ']']).to_owned();
        Ok(Self { place: Place { host, port, trusted }, origin, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> EndpointRules {
        let hosts = ["push.example".to_owned(), "*.push.example.net".to_owned()];
        EndpointRules::new(&hosts, &["ntfy.lan:8443".to_owned()]).unwrap()
    }

    fn parse(text: &str) -> Result<Endpoint, EndpointRefused> {
        Endpoint::parse(text, &rules())
    }

    #[test]
    fn what_is_allowed_is_taken_apart() {
        let endpoint = parse("https://push.example/send/abc?x=1#frag").unwrap();
        assert_eq!((endpoint.origin.as_str(), endpoint.path.as_str()), ("https://push.example", "/send/abc?x=1"));
        assert!(!endpoint.place.trusted);
        assert!(parse("https://eu.push.example.net/x").is_ok());
        let inside = parse("https://ntfy.lan:8443/topic").unwrap();
        assert_eq!((inside.origin.as_str(), inside.place.trusted), ("https://ntfy.lan:8443", true));
    }

    #[test]
    fn what_is_not_is_refused_with_its_reason() {
        use EndpointRefused::*;
        for (text, refused) in [
            ("nonsense", Malformed),
            ("http://push.example/x", NotHttps),
            ("file:///etc/passwd", NotHttps),
            ("https://user@push.example/x", UserInfo),
            ("https://push.example@evil.example/x", UserInfo),
            ("https://evil.example/x", HostNotAllowed),
            ("https://evilpush.example/x", HostNotAllowed),
            ("https://push.example.net/x", HostNotAllowed),
            ("https://push.example./x", HostNotAllowed),
            ("https://push.example:8443/x", PortNotAllowed),
            ("https://ntfy.lan/x", HostNotAllowed),
            ("https://ntfy.lan:22/x", HostNotAllowed),
        ] {
            assert_eq!(parse(text).unwrap_err(), refused, "{text}");
        }
        assert_eq!(parse(&format!("https://push.example/{}", "x".repeat(2000))).unwrap_err(), Malformed);
    }

    /// With `*` any host is allowed; still none that is an address.
    #[test]
    fn no_notation_of_an_address_is_a_name() {
        let rules = EndpointRules::new(&["*".to_owned()], &[]).unwrap();
        for host in
            ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "017700000001", "0x7f.1", "１２７.0.0.1", "[::1]"]
        {
            let refused = Endpoint::parse(&format!("https://{host}/x"), &rules).unwrap_err();
            assert_eq!(refused, EndpointRefused::HostNotAllowed, "{host}");
        }
    }

    #[test]
    fn rules_that_make_no_sense_are_named() {
        for host in ["https://push.example", "Push.example", "*push.example", "10.0.0.1", ""] {
            assert!(EndpointRules::new(&[host.to_owned()], &[]).is_err(), "{host}");
        }
        assert!(EndpointRules::new(&[], &["ntfy.lan".to_owned()]).is_err());
    }
}
