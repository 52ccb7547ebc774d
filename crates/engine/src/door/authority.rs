//! The certificate authority under whose name the door speaks TLS with programs inside.
//!
//! git trusts it for the hosts of repositories. Other programs trust it in those sessions alone whose
//! vaults have variables. It is made once for a deployment and never changes; its key is sealed in the
//! database.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio_rustls::rustls::{
    self, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};

use super::secrets::Placeholders;

/// Longest common name (RFC 5280). What a leaf is for is in its alternative names.
const MAX_COMMON_NAME: usize = 64;
/// Issuer of every leaf. A stored authority is recognized by it, so it must stay as it is.
const NAME: &str = "Selfsame sandbox authority";

/// The authority of a deployment.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    placeholders: Placeholders,
}

/// It cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("a certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS could not be set up")]
    Tls(#[from] rustls::Error),
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one: its certificate and its key, in PEM.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn make() -> Result<(String, SecretString), AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = authority()?.self_signed(&key)?;
        Ok((certificate.pem(), SecretString::from(key.serialize_pem())))
    }

    /// One that [`Authority::make`] made.
    ///
    /// # Errors
    /// When the key is none.
    pub fn new(certificate: String, key: &SecretString) -> Result<Self, AuthorityError> {
        let placeholders = Placeholders::new(key);
        let key = KeyPair::from_pem(key.expose_secret())?;
        Ok(Self {
            certificate,
            issuer: Issuer::new(authority()?, key),
            placeholders,
        })
    }

    /// What stands for secrets inside: the deployment's, as this is.
    pub(super) fn placeholders(&self) -> Placeholders {
        self.placeholders.clone()
    }

    /// What must be trusted to trust its leaves, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// TLS as `host`, for HTTP/1.1.
    pub(super) fn serve_as(&self, host: &str) -> Result<ServerConfig, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = within(CertificateParams::new(vec![host.to_owned()])?);
        params.distinguished_name = named(match host.len() {
            ..=MAX_COMMON_NAME => host,
            _ => "a host with a long name",
        });
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der());
        let key = key.map_err(|error| rustls::Error::General(error.to_owned()))?;
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
        let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn authority() -> Result<CertificateParams, AuthorityError> {
    let mut params = within(CertificateParams::new(Vec::new())?);
    params.distinguished_name = named(NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Valid whatever the clock inside says: a paused sandbox may live in the past.
fn within(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
