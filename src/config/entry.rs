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

/// TLS on the public address. Both files, or neither.
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
