//! Whom the uploads go to: this binary, or a peer that speaks tus.

use std::net::ToSocketAddrs as _;
use std::str::FromStr;

use anyhow::{Context as _, ensure};
use axum::http::Uri;

use super::wire::{Stalled, Version, Wire};
use crate::commands::bench::server::{Process, Server};

/// A server that is measured.
pub(super) struct Target {
    /// Its name in the figures.
    pub(super) who: String,
    address: String,
    /// The path at which uploads are created.
    path: String,
    process: Process,
    own: Option<Server>,
}

impl Target {
    /// This binary.
    pub(super) fn own(server: Server) -> anyhow::Result<Self> {
        Ok(Self {
            who: "waxwing".to_owned(),
            address: server.address.clone(),
            path: "/v1/uploads".to_owned(),
            process: server.process()?,
            own: Some(server),
        })
    }

    /// A peer, which has to be running.
    pub(super) fn peer(peer: Peer) -> Self {
        Self { who: peer.name, address: peer.address, path: peer.path, process: Process { pid: peer.pid }, own: None }
    }

    pub(super) const fn is_own(&self) -> bool {
        self.own.is_some()
    }

    pub(super) const fn process(&self) -> Process {
        self.process
    }

    /// Leave to upload, which ours alone asks for: that of a new account, so that no run eats up another's quota.
    pub(super) async fn grant(&self) -> anyhow::Result<Option<String>> {
        match &self.own {
            Some(server) => server.grant().await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn connect(&self, grant: Option<&str>) -> anyhow::Result<Wire> {
        self.connect_by(Version::Http1, grant).await
    }

    pub(super) async fn connect_by(&self, version: Version, grant: Option<&str>) -> anyhow::Result<Wire> {
        Wire::connect(&self.address, &self.path, grant, version).await
    }

    /// An upload to `path` that sends a part of what it announced and falls silent.
    pub(super) async fn stall(
        &self,
        grant: Option<&str>,
        path: &str,
        announced: usize,
        sent: usize,
    ) -> anyhow::Result<Stalled> {
        Stalled::start(&self.address, grant, path, announced, sent).await
    }
}

/// A running server of another make: `NAME=URL,PID`, the URL being where tus uploads are created.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    name: String,
    address: String,
    path: String,
    pid: u32,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let shape = "a peer is NAME=URL,PID";
        let (name, rest) = text.split_once('=').context(shape)?;
        let (url, pid) = rest.rsplit_once(',').context(shape)?;
        let url: Uri = url.parse()?;
        ensure!(url.scheme_str() == Some("http"), "a peer is reached by http://");
        let address = url.authority().context(shape)?.to_string();
        ensure!(address.to_socket_addrs().is_ok(), "{address} is not a host and port");
        Ok(Self { name: name.to_owned(), address, path: url.path().to_owned(), pid: pid.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_named_and_found() {
        let peer: Peer = "rustus=http://127.0.0.1:1081/files,4711".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.address.as_str()), ("rustus", "127.0.0.1:1081"));
        assert_eq!((peer.path.as_str(), peer.pid), ("/files", 4711));
        for wrong in ["", "rustus", "a=http://127.0.0.1:1/f", "a=https://127.0.0.1:1/f,1", "a=http://x,1", "a=/f,1"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
