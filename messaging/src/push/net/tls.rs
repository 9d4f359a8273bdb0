//! Whom TLS believes: the certificates of the operating system, and those the operator adds.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(in crate::push) enum TlsError {
    #[error("{path}: {reason}")]
    Authorities { path: String, reason: String },
    #[error("no TLS: {0}")]
    Provider(rustls::Error),
}

/// TLS for requests, which believes the system's authorities and those in `authorities`.
pub(in crate::push) fn client_config(authorities: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        warn!(%error, "certificates of the system cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = authorities {
        let failed = |reason: &dyn ToString| TlsError::Authorities {
            path: path.display().to_string(),
            reason: reason.to_string(),
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
            let certificate = certificate.map_err(|error| failed(&error))?;
            roots.add(certificate).map_err(|error| failed(&error))?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
