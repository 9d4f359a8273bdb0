//! How connections come in: by way of a load balancer that says for whom, and encrypted.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is between clients and the public address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Listener {
    /// Whether connections from the networks of `proxy_networks` begin with a PROXY protocol header, version 1 or 2, that
    /// names the client. One that begins otherwise is closed. Default: false.
    pub proxy_protocol: bool,
    /// The networks of the load balancers, such as `["10.0.0.0/8", "fd00::7"]`. Connections from elsewhere are taken as
    /// clients of their own: what they say of themselves is not believed. Default: none.
    pub proxy_networks: Vec<Network>,
    /// Threads that serve connections of their own each, where a node plays the edge role alone; others share one runtime.
    /// Connections are spread over them as they come, and stay. Default: 0, for one a core.
    pub threads: usize,
}

/// TLS on the public address: by a certificate in files, both of them, or by ACME.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    /// The certificate chain, PEM, the server's own first. Read again when it changes, and at SIGHUP. Default: none, and
    /// with it plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM (PKCS #8, PKCS #1 or SEC 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// An authority that certificates are got from. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
}

/// How certificates are got by ACME (RFC 8555). The authority proves names by TLS-ALPN-01, so it must reach `listen` at
/// port 443 of each. To name one here is to agree to its terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Acme {
    /// The names that the certificate is for, such as `["media.example"]`. At least one; no wildcards.
    pub domains: Vec<String>,
    /// Where the authority writes to when something is wrong, such as `["mailto:ops@media.example"]`. Default: none.
    pub contact: Vec<String>,
    /// The directory of the authority. Default: Let's Encrypt's.
    pub directory_url: String,
    /// The authority, as a certificate in PEM, that vouches for the directory: for one of your own. Default: those of the
    /// operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            contact: Vec::new(),
            directory_url: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            ca_file: None,
        }
    }
}

impl Tls {
    /// Refuses what contradicts itself.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err("`tls.cert_file` and `tls.key_file` are set both or not at all".to_owned());
        }
        let Some(acme) = &self.acme else { return Ok(()) };
        if self.cert_file.is_some() {
            return Err("the certificate is in `tls.cert_file` or got by `tls.acme`, not both".to_owned());
        }
        if acme.domains.is_empty() {
            return Err("`tls.acme.domains` needs a name".to_owned());
        }
        let is_name = |domain: &String| {
            let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
            domain.chars().all(is_part) && domain.parse::<IpAddr>().is_err() && !domain.is_empty()
        };
        if let Some(wrong) = acme.domains.iter().find(|domain| !is_name(domain)) {
            return Err(format!(
                "`{wrong}` in `tls.acme.domains` is no name in lower-case letters; wildcards cannot be had"
            ));
        }
        if !acme.directory_url.starts_with("https://") {
            return Err("`tls.acme.directory_url` must begin with https://".to_owned());
        }
        Ok(())
    }
}

/// A network: an address and how many of its leading bits count. A bare address is a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` is in it.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let same = |mine: &[u8], other: &[u8]| {
            let (whole, rest) = (usize::from(self.bits / 8), self.bits % 8);
            let rest_differs = || (mine[whole] ^ other[whole]) >> (8 - rest) != 0;
            mine[..whole] == other[..whole] && (rest == 0 || !rest_differs())
        };
        match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => same(&mine.octets(), &other.octets()),
            (IpAddr::V6(mine), IpAddr::V6(other)) => same(&mine.octets(), &other.octets()),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{text}` is no network such as 10.0.0.0/8 or fd00::/8");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(bits_max), |bits| bits.parse().map_err(|_| refuse()))?;
        if bits > bits_max {
            return Err(refuse());
        }
        Ok(Self { address, bits })
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_its_leading_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.3.4", "11.0.0.0"),
            ("192.168.4.0/22", "192.168.7.255", "192.168.8.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.2"),
            ("fd00::/9", "fd7f::1", "fd80::1"),
            ("::1", "::1", "::2"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{inside} in {network}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{outside} in {network}");
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/", "::/129", "example.org", "10.0.0.0/-1", "10.0.0/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
