//! The configuration of a node: one TOML file, every key with a default.
//!
//! A misspelt key that is silently ignored leaves an operator with a default where a limit was meant. So an unknown key
//! is an error that names the key it resembles, and `waxwing config show` prints what is in effect.
//!
//! Flags win over the environment, the environment over the file. `WAXWING_KEY` (such as `WAXWING_LISTEN`) stands for a
//! key outside sections, `WAXWING_SECTION__KEY` (such as `WAXWING_EDGE__MEMORY_BYTES`) for one of a section. Secrets are
//! never in it: keys lie in the data directory, grants in files that it names.

mod entry;

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub(crate) use entry::{Acme, Listener, Network, Tls};

/// Everything a node is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The roles this node plays. Default: all of them.
    pub roles: Vec<Role>,
    /// The address to listen on. Default: 127.0.0.1:8460.
    pub listen: SocketAddr,
    /// The address of `/healthz`, `/readyz` and `/metrics`, and, on loopback alone, of what `waxwing admin` asks.
    /// Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// The directory that holds all state. Default: waxwing-data.
    pub data: PathBuf,
    /// How clients reach this node, such as `https://media.example`. Default: `http://` and the address listened on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Open connections at most; further ones wait in the kernel's queue. Default: 16,384.
    pub connections_max: usize,
    /// Seconds that running requests get to end after SIGTERM. Default: 20.
    pub drain_s: u64,
    /// What is between clients and the public address.
    pub listener: Listener,
    /// TLS on the public address.
    pub tls: Tls,
    /// Where the other roles are, when this node does not play them all.
    pub cluster: Cluster,
    /// Where the origin keeps blobs.
    pub blobs: waxwing_origin::BlobsConfig,
    /// The origin.
    pub origin: waxwing_origin::Config,
    /// The edge.
    pub edge: waxwing_edge::Config,
    /// The messaging core.
    pub messaging: waxwing_messaging::Config,
}

/// Where the other roles are. Each key has a default as long as this node plays the role itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cluster {
    /// Where this edge finds its origin, such as `http://10.0.0.5:8460`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_url: Option<String>,
    /// The file with the grant this edge shows its origin (`waxwing admin grant edge`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge_grant_file: Option<PathBuf>,
    /// The file with the public keys of grants: what messaging serves at `/.well-known/jwks.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// Where clients upload, for `/v1/info`: a base URL without a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploads_base_url: Option<String>,
    /// Where clients download, for `/v1/info`: a base URL without a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blobs_base_url: Option<String>,
    /// Where clients connect, for `/v1/info`: a base URL without a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messaging_base_url: Option<String>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Takes uploads and keeps blobs.
    Origin,
    /// Caches blobs and serves downloads.
    Edge,
    /// Keeps accounts, keys and mailboxes, and delivers messages.
    Messaging,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: vec![Role::Origin, Role::Edge, Role::Messaging],
            listen: crate::cli::DEV_ADDRESS.parse().expect("the default address is well-formed"),
            admin_listen: None,
            data: "waxwing-data".into(),
            public_url: None,
            connections_max: 16_384,
            drain_s: 20,
            listener: Listener::default(),
            tls: Tls::default(),
            cluster: Cluster::default(),
            blobs: waxwing_origin::BlobsConfig::default(),
            origin: waxwing_origin::Config::default(),
            edge: waxwing_edge::Config::default(),
            messaging: waxwing_messaging::Config::default(),
        }
    }
}

impl Config {
    /// Reads the file, if any, and lays the environment over it.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => String::new(),
        };
        let config = Self::parse(&text, environment())
            .with_context(|| file.map_or_else(|| "the environment".into(), |path| path.display().to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Reads TOML text with overriding environment variables.
    fn parse(text: &str, environment: impl Iterator<Item = (String, String)>) -> anyhow::Result<Self> {
        // The file alone first: its errors then show the line.
        let config: Self = toml::from_str(text).map_err(|error| explain(&error))?;
        let mut table: Table = toml::from_str(text)?;
        let mut overridden = Vec::new();
        for (name, value) in environment {
            let Some(rest) = name.strip_prefix("WAXWING_") else { continue };
            let Some((section, key)) = rest.split_once("__") else {
                let key = rest.to_ascii_lowercase();
                if PLAIN_KEYS.contains(&key.as_str()) {
                    table.insert(key, environment_value(&value));
                    overridden.push(name);
                }
                continue;
            };
            let section = table
                .entry(section.to_ascii_lowercase())
                .or_insert_with(|| Value::Table(Table::new()))
                .as_table_mut()
                .with_context(|| format!("{name} names a section that is a plain key"))?;
            section.insert(key.to_ascii_lowercase(), environment_value(&value));
            overridden.push(name);
        }
        if overridden.is_empty() {
            return Ok(config);
        }
        table.try_into().map_err(|error| explain(&error)).with_context(|| overridden.join(", "))
    }

    /// Whether this node plays `role`.
    pub(crate) fn plays(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// How many threads serve connections of their own each; `None` where one runtime serves all of them.
    pub(crate) fn threads(&self) -> Option<NonZero<usize>> {
        let cores = || available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        let is_edge_alone = self.roles == [Role::Edge];
        is_edge_alone.then(|| NonZero::new(self.listener.threads).unwrap_or_else(cores))
    }

    /// Finds what no single key can tell: roles that lack what they need from elsewhere.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.roles.is_empty() {
            bail!("`roles` is empty: name at least one of \"origin\", \"edge\", \"messaging\"");
        }
        if self.listener.threads > 0 && self.roles != [Role::Edge] {
            bail!("`listener.threads` is for nodes that play the edge role alone");
        }
        if self.listener.proxy_protocol && self.listener.proxy_networks.is_empty() {
            bail!("`listener.proxy_protocol` needs `listener.proxy_networks`: whose headers are to be believed");
        }
        if let Err(reason) = self.tls.check() {
            bail!("{reason}");
        }
        let cluster = &self.cluster;
        if self.plays(Role::Edge) && !self.plays(Role::Origin) && cluster.origin_url.is_none() {
            bail!("an edge without the origin role needs `cluster.origin_url`");
        }
        if !self.plays(Role::Messaging) {
            if cluster.jwks_file.is_none() {
                bail!("without the messaging role, grants are checked against `cluster.jwks_file`, which is not set");
            }
            if self.plays(Role::Edge) && cluster.edge_grant_file.is_none() {
                bail!("an edge without the messaging role needs `cluster.edge_grant_file` (waxwing admin grant edge)");
            }
            return Ok(());
        }
        if !self.plays(Role::Origin) && cluster.uploads_base_url.is_none() {
            bail!("clients must learn where to upload: set `cluster.uploads_base_url`");
        }
        if !self.plays(Role::Edge) && cluster.blobs_base_url.is_none() {
            bail!("clients must learn where to download: set `cluster.blobs_base_url`");
        }
        Ok(())
    }
}

/// The keys outside sections: `WAXWING_` and one of these names it. Other variables are for commands (`WAXWING_HOME`).
const PLAIN_KEYS: [&str; 7] = ["roles", "listen", "admin_listen", "data", "public_url", "connections_max", "drain_s"];

/// The environment's variables, but for those that are not text: none of ours is among them.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A variable's text as the TOML value it spells (`12`, `true`, `["edge"]`), else as a string.
fn environment_value(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The error with a suggestion, where it is about a key that resembles a known one.
fn explain(error: &toml::de::Error) -> anyhow::Error {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let suggestion = message.starts_with("unknown field").then(|| {
        let unknown = quoted.next()?;
        let near = |known: &&str| strsim::damerau_levenshtein(unknown, known);
        quoted.min_by_key(near).filter(|known| near(known) <= 1 + unknown.len() / 3)
    });
    match suggestion.flatten() {
        Some(known) => anyhow::anyhow!("{error}\ndid you mean `{known}`?"),
        None => anyhow::anyhow!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        Config::parse(text, std::iter::empty())
    }

    #[test]
    fn nothing_configured_is_every_default() {
        assert_eq!(parse("").unwrap(), Config::default());
        assert!(Config::default().check().is_ok());
    }

    #[test]
    fn what_show_prints_can_be_read_again() {
        let shown = toml::to_string(&Config::default()).unwrap();
        assert_eq!(parse(&shown).unwrap(), Config::default());
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_its_line_and_the_right_one() {
        let error = parse("roles = [\"edge\"]\nlisen = \"127.0.0.1:1\"").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("did you mean `listen`?"), "{error}");
        let error = parse("[cluster]\norigin_ulr = \"http://x\"").unwrap_err().to_string();
        assert!(error.contains("did you mean `origin_url`?"), "{error}");
    }

    #[test]
    fn the_environment_wins_over_the_file_and_is_checked_as_strictly() {
        let env = |name: &str, value: &str| std::iter::once((name.to_owned(), value.to_owned()));
        let text = "[cluster]\norigin_url = \"http://file\"";
        let config = Config::parse(text, env("WAXWING_CLUSTER__ORIGIN_URL", "http://env")).unwrap();
        assert_eq!(config.cluster.origin_url.as_deref(), Some("http://env"));
        let config = Config::parse(text, env("WAXWING_ROLES", "[\"edge\"]")).unwrap();
        assert_eq!(config.roles, [Role::Edge]);
        let error = Config::parse(text, env("WAXWING_CLUSTER__ORIGIN_ULR", "http://env")).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("WAXWING_CLUSTER__ORIGIN_ULR") && error.contains("origin_url"), "{error}");
    }

    #[test]
    fn half_of_what_belongs_together_is_refused() {
        for (text, key) in [
            ("[listener]\nproxy_protocol = true", "proxy_networks"),
            ("[tls]\ncert_file = \"cert.pem\"", "tls.key_file"),
            ("[listener]\nthreads = 2", "listener.threads"),
            ("[tls.acme]\ncontact = [\"mailto:a@b.example\"]", "tls.acme.domains"),
            ("[tls.acme]\ndomains = [\"*.media.example\"]", "wildcards"),
            ("[tls]\ncert_file = \"c\"\nkey_file = \"k\"\n[tls.acme]\ndomains = [\"media.example\"]", "not both"),
        ] {
            let error = parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let error = format!("{:#}", parse("[listener]\nproxy_networks = [\"10.0.0.0/64\"]").unwrap_err());
        assert!(error.contains("10.0.0.0/64"), "{error}");
    }

    #[test]
    fn a_role_alone_needs_to_know_the_others() {
        for (roles, key) in [("edge", "origin_url"), ("origin", "jwks_file"), ("messaging", "uploads_base_url")] {
            let error = parse(&format!("roles = [\"{roles}\"]")).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
