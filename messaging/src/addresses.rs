//! Limits of addresses, for what anybody can do who has no account yet.
//!
//! A device's limits begin when its token is known. Before that, whoever tries tokens or registers accounts is only an
//! address. Behind a loopback address may stand a proxy, and so everybody: it is not limited.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use waxwing_protocol::{ClientAddress, Timestamp};

use crate::config::Config;
use crate::limits::{Limit, LimitView};

/// Limits what addresses do.
pub(crate) struct Addresses {
    requests: Limit<IpAddr>,
    registrations: Limit<IpAddr>,
}

/// An address did too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much comes from this address")]
pub(crate) struct TooMuch {
    pub(crate) retry_after: Duration,
}

impl Addresses {
    pub(crate) fn new(config: &Config) -> Self {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
        Self {
            requests: Limit::new("requests-of-address", config.address_requests_per_minute, minute),
            registrations: Limit::new("registrations-of-address", config.address_registrations_per_hour, hour),
        }
    }

    /// A request from `client`.
    pub(crate) fn request(&self, client: ClientAddress, now: Timestamp) -> Result<(), TooMuch> {
        Self::spend(&self.requests, client, now)
    }

    /// A registration from `client`.
    pub(crate) fn registration(&self, client: ClientAddress, now: Timestamp) -> Result<(), TooMuch> {
        Self::spend(&self.registrations, client, now)
    }

    pub(crate) fn limits(&self) -> [LimitView; 2] {
        [self.requests.view(), self.registrations.view()]
    }

    fn spend(limit: &Limit<IpAddr>, client: ClientAddress, now: Timestamp) -> Result<(), TooMuch> {
        let Some(network) = network(client.ip()) else { return Ok(()) };
        limit.spend(network, now).map_err(|retry_after| TooMuch { retry_after })
    }
}

/// What counts as one address: of IPv6 the /64 that one subscriber has whole. `None`: not limited.
fn network(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        ip if ip.is_loopback() => None,
        IpAddr::V4(_) => Some(ip),
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);

    fn client(address: &str) -> ClientAddress {
        ClientAddress::new(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_limited_whatever_port_or_low_bits_it_comes_with() {
        let config = Config { address_requests_per_minute: 2, ..Config::default() };
        let addresses = Addresses::new(&config);
        for (one, again, other) in [
            ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1"),
            ("[2001:db8::1]:1", "[2001:db8::ffff:2]:9", "[2001:db8:0:1::1]:1"),
        ] {
            assert_eq!(addresses.request(client(one), NOW), Ok(()));
            assert_eq!(addresses.request(client(again), NOW), Ok(()));
            let refused = addresses.request(client(one), NOW).unwrap_err();
            assert_eq!(refused.retry_after, Duration::from_secs(30));
            assert_eq!(addresses.request(client(other), NOW), Ok(()));
        }
        for _ in 0..10 {
            assert_eq!(addresses.request(client("127.0.0.1:1"), NOW), Ok(()), "a proxy may stand there");
        }
    }
}
