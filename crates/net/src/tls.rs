//! TLS over a connection that somebody else has made.

use std::sync::Arc;

use rustls_platform_verifier::Verifier;
use tokio_rustls::rustls::{
    self, ClientConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use crate::{NetError, policy::Policy};

/// A client's side of TLS that believes what the clients of this crate believe: the system's authorities
/// and those that the operator adds, verified by the same verifier. It speaks HTTP/1.1 and nothing else.
///
/// # Errors
/// When there are no authorities.
pub fn tls_client(policy: &Policy) -> Result<ClientConfig, NetError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = policy.extra_roots().iter().cloned();
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        // The verifier is the strict one; rustls calls every choice of one dangerous.
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions of one host belong to different workspaces: nothing ties their connections together.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The certificates in PEM files.
pub(crate) fn roots(pems: &[Vec<u8>]) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let all = pems
        .iter()
        .flat_map(|pem| CertificateDer::pem_slice_iter(pem));
    all.collect::<Result<_, _>>().map_err(NetError::Pem)
}
