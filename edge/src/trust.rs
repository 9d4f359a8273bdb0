//! TLS towards origins and other edges: whose word it is that they are who they are.
//!
//! Bytes are checked against blob ids wherever they come from, but the edge's grant goes with each request, and it opens
//! every blob of the origin. Over a network that is not the operator's own it must be shown to nobody else.
//!
//! Promise: over `https` nothing is sent before the other side has shown a certificate for its name that one of the
//! authorities named here has signed.

use std::path::Path;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::EdgeError;

/// Connects by what `tcp` connects by, encrypted to URLs that begin with `https`. Believed are the authorities of
/// `ca_file`, without one those of the operating system; `is_needed` says whether any URL asks for it.
///
/// # Errors
/// [`EdgeError::Authorities`] when there are none, or the file is none.
pub(crate) fn connector(
    tcp: HttpConnector,
    ca_file: Option<&Path>,
    is_needed: bool,
) -> Result<HttpsConnector<HttpConnector>, EdgeError> {
    let refuse = |reason: String| EdgeError::Authorities { reason };
    let roots = match ca_file {
        Some(file) => from_file(file).map_err(|reason| refuse(format!("{}: {reason}", file.display())))?,
        None if is_needed => of_the_system().map_err(refuse)?,
        None => RootCertStore::empty(),
    };
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = tcp;
    // Otherwise it refuses to connect to what is to be encrypted.
    tcp.enforce_http(false);
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp))
}

fn from_file(file: &Path) -> Result<RootCertStore, String> {
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| format!("it is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(roots) }
}

fn of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems carry certificates that nothing takes any more; what is left counts.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(format!("the operating system knows none{why}; name some in `ca_file`"));
    }
    Ok(roots)
}
