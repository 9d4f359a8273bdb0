//! A broker of somebody else's that is measured beside our server.

use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::Context as _;

use super::server::Process;

/// A running MQTT broker: NAME=HOST:PORT,PID.
#[derive(Clone, Debug)]
pub(crate) struct Broker {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pid: u32,
}

impl Broker {
    /// What the kernel tells of it.
    pub(super) fn process(&self) -> Process {
        Process { pid: self.pid }
    }
}

impl FromStr for Broker {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let shape = "a broker is NAME=HOST:PORT,PID";
        let (name, rest) = text.split_once('=').context(shape)?;
        let (address, pid) = rest.rsplit_once(',').context(shape)?;
        Ok(Self { name: name.to_owned(), address: address.parse().context(shape)?, pid: pid.parse().context(shape)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_named_and_found() {
        let broker: Broker = "mosquitto=127.0.0.1:1883,4711".parse().unwrap();
        assert_eq!((broker.name.as_str(), broker.address.port(), broker.pid), ("mosquitto", 1883, 4711));
        for wrong in ["", "mosquitto", "a=127.0.0.1,1", "a=127.0.0.1:1", "127.0.0.1:1,1", "a=127.0.0.1:1,b"] {
            assert!(wrong.parse::<Broker>().is_err(), "{wrong}");
        }
    }
}
