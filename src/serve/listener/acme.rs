//! A certificate by ACME (RFC 8555): asked for when there is none, and again when two thirds of its life are over.
//!
//! Without it an operator has to run a second program beside each public node, and to notice when that stops. Names are
//! proven by TLS-ALPN-01 (RFC 8737): the authority makes a handshake with this very listener, so no further port is
//! opened, and no request is answered in its place.
//!
//! Account and certificate are kept in the data directory, so that a restart asks for nothing: authorities bound how many
//! certificates a name gets in a week. The certificate is put into one file with its key and taken up from there as an
//! operator's is.
//!
//! Promises:
//! - A failure leaves the certificate in use in place, and is tried again after longer and longer pauses.
//! - A challenge is answered to whoever speaks nothing but `acme-tls/1`, for as long as it is open.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tracing::{info, warn};
use x509_parser::extensions::GeneralName;

use super::tls::Tls;
use crate::config::Acme;

/// The pause after the first failure; each further one doubles it. Five in the first hour are what Let's Encrypt allows.
const PAUSE_MIN: Duration = Duration::from_secs(120);

/// The longest pause, also between two looks whether the certificate is due: a clock that was set is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// How long an authority may take to look at the challenges, and again to issue.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(180));

/// How long all of it may take: an authority that stops answering amid it is asked anew.
const ORDER_TIMEOUT: Duration = Duration::from_secs(900);

/// Keeps the certificate of a listener.
pub(crate) struct Keeper {
    settings: Acme,
    dir: PathBuf,
    tls: Tls,
}

/// What a certificate says of itself.
struct Validity {
    from_s: i64,
    to_s: i64,
    names: Vec<String>,
}

/// Where the certificate and its key are, in one file, so that one is never there without the other.
pub(crate) fn certificate_file(dir: &Path) -> PathBuf {
    dir.join("certificate.pem")
}

impl Keeper {
    /// A keeper of the certificate of `tls`, which has its files in `dir`.
    pub(crate) const fn new(settings: Acme, dir: PathBuf, tls: Tls) -> Self {
        Self { settings, dir, tls }
    }

    /// Asks for certificates whenever one is due; never ends.
    pub(crate) async fn keep(self) {
        let mut pause = PAUSE_MIN;
        loop {
            let now_s = unix_seconds(SystemTime::now());
            let wait = match self.due_s() {
                Some(due_s) if due_s > now_s => Duration::from_secs(due_s.abs_diff(now_s)).min(PAUSE_MAX),
                _ => {
                    // Boxed: it is rare, and what it holds between two requests is large.
                    let order = tokio::time::timeout(ORDER_TIMEOUT, Box::pin(self.order())).await;
                    self.tls.end_challenges();
                    match order.map_err(anyhow::Error::from).flatten() {
                        Ok(()) => {
                            info!("got a certificate for {}", self.settings.domains.join(", "));
                            pause = PAUSE_MIN;
                            // One that is due again at once must not be asked for again at once.
                            PAUSE_MIN
                        }
                        Err(error) => {
                            warn!(retry_s = pause.as_secs(), "got no certificate: {error:#}");
                            let wait = pause;
                            pause = (pause * 2).min(PAUSE_MAX);
                            wait
                        }
                    }
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// When the next certificate is to be asked for, in seconds since 1970; `None` for at once.
    fn due_s(&self) -> Option<i64> {
        let text = fs::read(certificate_file(&self.dir)).ok()?;
        let validity = Validity::of(&CertificateDer::from_pem_slice(&text).ok()?)?;
        let has_all = self.settings.domains.iter().all(|domain| validity.names.contains(domain));
        has_all.then_some(validity.to_s - (validity.to_s - validity.from_s) / 3)
    }

    async fn order(&self) -> anyhow::Result<()> {
        let account = self.account().await?;
        let names: Vec<_> = self.settings.domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await.context("no order was taken")?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                // Proven lately, for an order before.
                AuthorizationStatus::Valid => continue,
                other => bail!("a name cannot be proven any more: its authorization is {other:?}"),
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.context("the authority does not offer tls-alpn-01")?;
            let Identifier::Dns(name) = challenge.identifier().identifier else {
                bail!("the authority asks for the proof of something else than a name");
            };
            let (certificate, key) = answer(name, challenge.key_authorization().digest().as_ref())?;
            self.tls.begin_challenge(name, vec![certificate], key)?;
            challenge.set_ready().await?;
        }
        match order.poll_ready(&PATIENCE).await? {
            OrderStatus::Ready | OrderStatus::Valid => {}
            other => bail!("the names were not proven to the authority: the order is {other:?}"),
        }
        let key = order.finalize().await.context("the authority does not issue")?;
        let chain = order.poll_certificate(&PATIENCE).await.context("the authority does not issue")?;
        write(&certificate_file(&self.dir), &format!("{key}{chain}")).context("the certificate cannot be kept")?;
        self.tls.renew();
        Ok(())
    }

    /// The account, made at the first use and kept from then on.
    async fn account(&self) -> anyhow::Result<Account> {
        let builder = || match &self.settings.ca_file {
            Some(file) => Account::builder_with_root(file),
            None => Account::builder(),
        };
        let file = self.dir.join("account.json");
        match fs::read(&file) {
            Ok(text) => {
                let known: AccountCredentials =
                    serde_json::from_slice(&text).with_context(|| format!("{} is no account", file.display()))?;
                return Ok(builder()?.from_credentials(known).await?);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let directory = self.settings.directory_url.clone();
        let (account, credentials) =
            builder()?.create(&asked, directory, None).await.context("the authority makes no account")?;
        write(&file, &serde_json::to_string(&credentials)?).context("the account cannot be kept")?;
        Ok(account)
    }
}

/// The certificate by which a listener shows that it is `name`'s, RFC 8737 §3.
fn answer(name: &str, digest: &[u8]) -> anyhow::Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    anyhow::ensure!(digest.len() == 32, "a challenge's digest has 32 bytes");
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

/// Writes a secret so that it is there whole or not at all, and for this user alone.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::File::options().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

impl Validity {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let names = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let validity = parsed.validity();
        let (from_s, to_s) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Some(Self { from_s, to_s, names: names.collect() })
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(dir: &Path, domains: &[&str]) -> Keeper {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        let tls = Tls::awaiting(&certificate_file(dir)).unwrap();
        Keeper::new(Acme { domains, ..Acme::default() }, dir.to_owned(), tls)
    }

    fn keep_certificate(dir: &Path, name: &str, years: std::ops::Range<i32>) -> i64 {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        write(&certificate_file(dir), &format!("{}{}", key.serialize_pem(), certificate.pem())).unwrap();
        params.not_after.unix_timestamp()
    }

    #[test]
    fn a_certificate_is_due_when_two_thirds_of_its_life_are_over_or_a_name_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(keeper(dir.path(), &["a.example"]).due_s(), None, "there is none");
        let end = keep_certificate(dir.path(), "a.example", 2030..2033);
        let left = end - keeper(dir.path(), &["a.example"]).due_s().unwrap();
        assert_eq!(left / 86_400, 365);
        assert_eq!(keeper(dir.path(), &["a.example", "b.example"]).due_s(), None);
        fs::write(certificate_file(dir.path()), "no certificate").unwrap();
        assert_eq!(keeper(dir.path(), &["a.example"]).due_s(), None);
    }

    /// Whoever reads the key has the name.
    #[test]
    fn what_is_kept_is_for_this_user_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        keep_certificate(dir.path(), "a.example", 2030..2031);
        let mode = fs::metadata(certificate_file(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
