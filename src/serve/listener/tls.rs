//! TLS by rustls: one certificate from files, taken up anew when they change. Who puts them there, an operator or
//! [`super::acme`], is no matter here.
//!
//! Certificates last weeks, and a server that has to be restarted for each new one is restarted at the worst moment, or
//! forgotten. So the files are looked at again and again, and a pair that cannot be used leaves the old one in place.
//!
//! Promises: a handshake has an end, and so does the number of those under way; no handshake fails because files were
//! being written.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

/// How often the files are looked at.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// Handshakes under way at once; each holds some 30 KB and costs a signature. Further ones wait for their turn.
const HANDSHAKES_MAX: usize = 1024;

/// Both versions that are left; 1.2 is what older phones and boxes in between still speak.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// What HTTP/2 is called within TLS.
pub(super) const ALPN_H2: &[u8] = b"h2";

/// What an authority that looks for the answer to a challenge speaks, RFC 8737.
pub(super) const ALPN_ACME: &[u8] = b"acme-tls/1";

/// TLS of a listener. Clones share the certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
    turns: Arc<Semaphore>,
}

/// The certificate in use, and where it came from.
#[derive(Debug)]
struct Certificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    provider: Arc<CryptoProvider>,
    /// `None` until there is one.
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// What is shown to an authority, by the name it asks about.
    challenges: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

/// What a file was like when it was looked at. A rename puts another file in its place, a write makes it younger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Tls {
    /// TLS with the certificate chain and the key of these files.
    ///
    /// # Errors
    /// When they cannot be read, are not what they should be, or do not belong to one another.
    pub(crate) fn from_files(cert_file: &Path, key_file: &Path) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = read(cert_file, key_file, &provider)?;
        Self::with(cert_file, key_file, provider, Some(current))
    }

    /// TLS with the certificate chain and the key of one file, which may not be there yet: until it is, no handshake
    /// succeeds but those of authorities.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn awaiting(file: &Path) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = read(file, file, &provider).ok();
        Self::with(file, file, provider, current)
    }

    fn with(
        cert_file: &Path,
        key_file: &Path,
        provider: Arc<CryptoProvider>,
        current: Option<CertifiedKey>,
    ) -> anyhow::Result<Self> {
        let certificate = Arc::new(Certificate {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
            provider: Arc::clone(&provider),
            current: RwLock::new(current.map(Arc::new)),
            challenges: RwLock::default(),
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Certificate>::clone(&certificate));
        config.alpn_protocols = vec![ALPN_H2.to_vec(), b"http/1.1".to_vec(), ALPN_ACME.to_vec()];
        // Who comes again is spared the signature and a round trip, and nothing is kept here for it.
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { acceptor, certificate, turns: Arc::new(Semaphore::new(HANDSHAKES_MAX)) })
    }

    /// Makes the handshake with who is at the other end of `stream`, within `timeout`, the wait for a turn included.
    ///
    /// # Errors
    /// When that fails.
    pub(super) async fn accept(&self, stream: TcpStream, timeout: Duration) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let _turn = self.turns.acquire().await.map_err(io::Error::other)?;
            self.acceptor.accept(stream).await
        };
        tokio::time::timeout(timeout, handshake).await?
    }

    /// Shows `chain` from now on to an authority that asks about `name`.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(super) fn begin_challenge(
        &self,
        name: &str,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> anyhow::Result<()> {
        // Not by `from_der`, which looks whether both belong together and knows nothing of RFC 8737's critical extension.
        let shown = CertifiedKey::new(chain, self.certificate.provider.key_provider.load_private_key(key)?);
        let mut challenges = self.certificate.challenges.write().unwrap_or_else(PoisonError::into_inner);
        challenges.insert(name.to_ascii_lowercase(), Arc::new(shown));
        Ok(())
    }

    /// Shows authorities nothing any more.
    pub(super) fn end_challenges(&self) {
        self.certificate.challenges.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes the certificate up that is in the files now.
    pub(super) fn renew(&self) {
        self.certificate.renew();
    }

    /// Takes the certificate up anew whenever its files change, looking each `pause`, or the process gets SIGHUP; never
    /// ends.
    pub(crate) async fn follow_files(self, pause: Duration) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let certificate = self.certificate;
        let mut seen = certificate.look();
        loop {
            let is_asked = tokio::select! {
                () = tokio::time::sleep(pause) => false,
                asked = hangup.recv() => asked.is_some(),
            };
            let now = certificate.look();
            if now == seen && !is_asked {
                continue;
            }
            seen = now;
            certificate.renew();
        }
    }
}

impl Certificate {
    /// Reads the files again. When they are no good, the old certificate stays in use.
    fn renew(&self) {
        match read(&self.cert_file, &self.key_file, &self.provider) {
            Ok(renewed) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(renewed));
                info!("took up the certificate of {}", self.cert_file.display());
            }
            // Half of a renewal, most often: the other file will change too, and is seen then.
            Err(error) => warn!("the certificate stays the old one: {error:#}"),
        }
    }

    fn look(&self) -> [Option<Look>; 2] {
        use std::os::unix::fs::MetadataExt as _;
        [&self.cert_file, &self.key_file].map(|file| {
            let meta = fs::metadata(file).ok()?;
            Some(Look { modified: meta.modified().ok(), bytes: meta.len(), inode: meta.ino() })
        })
    }
}

impl ResolvesServerCert for Certificate {
    /// One for all names: which of them it is good for is in it.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // An authority offers nothing else, RFC 8737 §3; whoever does gets what a client gets.
        if hello.alpn().is_some_and(|mut offered| offered.next() == Some(ALPN_ACME) && offered.next().is_none()) {
            let challenges = self.challenges.read().unwrap_or_else(PoisonError::into_inner);
            return challenges.get(&hello.server_name()?.to_ascii_lowercase()).cloned();
        }
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(cert_file: &Path, key_file: &Path, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let text = |file: &Path| fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    let chain = CertificateDer::pem_slice_iter(&text(cert_file)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is not PEM", cert_file.display()))?;
    anyhow::ensure!(!chain.is_empty(), "no certificate is in {}", cert_file.display());
    let key = PrivateKeyDer::from_pem_slice(&text(key_file)?)
        .with_context(|| format!("no private key is in {}", key_file.display()))?;
    CertifiedKey::from_der(chain, key, provider).with_context(|| {
        format!(
            "the key of {} and the certificate of {} cannot be used together",
            key_file.display(),
            cert_file.display()
        )
    })
}
