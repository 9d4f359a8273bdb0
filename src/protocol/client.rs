//! Whence a request came.
//!
//! Limits for each address are worth nothing when every request seems to come from the load balancer. So the listener,
//! which alone knows what the network and a PROXY header say, puts this into the extensions of every request, WebSocket
//! upgrades and long polls included; services take it from there and believe no header of the request.

use std::net::{IpAddr, SocketAddr};

/// The address of the client that sent a request: its own, not that of a load balancer in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub SocketAddr);

impl ClientAddress {
    /// The address behind `address` as it is to be compared and counted: a socket that listens on IPv6 sees clients of
    /// IPv4 as `::ffff:192.0.2.1`, which is no client of its own.
    pub fn new(address: SocketAddr) -> Self {
        Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The address without its port.
    pub const fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

/// Marks a request that came over TLS which ends here: what is made of its `Host` begins with `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secured;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_one_address_however_the_socket_spells_it() {
        let mapped = ClientAddress::new("[::ffff:192.0.2.1]:5000".parse().unwrap());
        assert_eq!(mapped, ClientAddress::new("192.0.2.1:5000".parse().unwrap()));
        let six = ClientAddress::new("[2001:db8::1]:5000".parse().unwrap());
        assert_eq!(six.ip(), "2001:db8::1".parse::<IpAddr>().unwrap());
    }
}
