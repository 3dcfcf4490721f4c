//! TLS of every connection to the outside, set up once in a process.
//!
//! Who is trusted is what the machine trusts. Reading that takes longer than the rest of a start
//! together, so it is read once, when the first server shows its certificate; until then setting up
//! clients costs nothing. No certificate and no name goes unchecked.

use std::sync::{Arc, LazyLock, OnceLock};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tracing::error;

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(crypto::aws_lc_rs::default_provider()));

static CONFIG: LazyLock<ClientConfig> = LazyLock::new(|| trusting(Vec::new()));

/// What this machine trusts: `SSL_CERT_FILE` and `SSL_CERT_DIR`, or where its system keeps it.
static ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        error!("no trusted certificates were found; set SSL_CERT_FILE");
    }
    roots
});

/// For clients of whoever the machine trusts. They share the sessions that can be resumed.
#[must_use]
pub fn client_config() -> ClientConfig {
    CONFIG.clone()
}

/// The same, where these certificates may have signed the server's as well.
#[must_use]
pub(crate) fn trusting(further: Vec<CertificateDer<'static>>) -> ClientConfig {
    let verifier = Verifier {
        further,
        inner: OnceLock::new(),
    };
    ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        // Cannot fail: the provider has the suites of both versions.
        .expect("TLS 1.2 and 1.3 have suites")
        // It is rustls's own verifier, made late.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth()
}

/// Rustls's verifier over the machine's roots, which are read when it is first asked.
#[derive(Debug)]
struct Verifier {
    further: Vec<CertificateDer<'static>>,
    inner: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl Verifier {
    /// None where nobody is trusted.
    fn inner(&self) -> Option<&Arc<WebPkiServerVerifier>> {
        let inner = self.inner.get_or_init(|| {
            let mut roots = ROOTS.clone();
            roots.add_parsable_certificates(self.further.iter().cloned());
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER))
                .build()
                .ok()
        });
        inner.as_ref()
    }

    fn algorithms() -> &'static WebPkiSupportedAlgorithms {
        &PROVIDER.signature_verification_algorithms
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = self.inner() else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, cert, signed, Self::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, cert, signed, Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    /// Certificates that sign, and that nobody has signed.
    fn strangers() -> Vec<CertificateDer<'static>> {
        let pem = include_bytes!("../../infra/certs/rds-ca.pem");
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        read.unwrap()
    }

    fn verify(further: Vec<CertificateDer<'static>>) -> Result<ServerCertVerified, Error> {
        let verifier = Verifier {
            further,
            inner: OnceLock::new(),
        };
        let name = ServerName::try_from("db.example").unwrap();
        let shown = &strangers()[0];
        verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now())
    }

    #[test]
    fn whom_nobody_vouches_for_is_refused() {
        assert!(matches!(
            verify(Vec::new()),
            Err(Error::InvalidCertificate(_))
        ));
    }

    #[test]
    fn a_further_root_vouches_for_servers_and_is_none_itself() {
        assert!(matches!(
            verify(strangers()),
            Err(Error::InvalidCertificate(_))
        ));
    }

    #[test]
    fn what_is_read_of_the_machine_is_read_once() {
        let (one, other) = (client_config(), client_config());
        assert!(Arc::ptr_eq(one.crypto_provider(), other.crypto_provider()));
        assert!(!ROOTS.is_empty());
    }
}
