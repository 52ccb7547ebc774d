//! What stands for a secret inside a sandbox.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use selfsame_types::{CredentialId, SessionId};
use sha2::Sha256;

/// How every placeholder begins. It says what it is to whoever looks at it, a model among them, and has
/// no character that any encoding of requests would write differently.
pub(super) const PREFIX: &[u8] = b"selfsame_placeholder_";
/// Lower-case hexadecimal digits behind it: 128 bits.
pub(super) const DIGITS: usize = 32;
/// Of a whole placeholder.
pub(super) const LENGTH: usize = PREFIX.len() + DIGITS;

/// Makes placeholders. They are computed and stored nowhere: every server of a deployment, at any time,
/// makes the same one for a session's credential, and without the deployment's key nobody can tell which
/// it is.
#[derive(Clone)]
pub(crate) struct Placeholders(Hmac<Sha256>);

impl fmt::Debug for Placeholders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placeholders").finish_non_exhaustive()
    }
}

impl Placeholders {
    /// From a secret that is the deployment's and never changes.
    pub(in crate::door) fn new(secret: &SecretString) -> Self {
        let mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes());
        let mut mac = mac.expect("a key of any length will do");
        // The key has another use, which this keeps apart.
        mac.update(b"placeholder of a session's credential\0");
        Self(mac)
    }

    pub(super) fn of(&self, session: SessionId, credential: CredentialId) -> String {
        use fmt::Write as _;
        let mut mac = self.0.clone();
        mac.update(session.0.as_bytes());
        mac.update(credential.0.as_bytes());
        let mut text = String::from_utf8_lossy(PREFIX).into_owned();
        for byte in &mac.finalize().into_bytes()[..DIGITS / 2] {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// Whether these bytes can follow [`PREFIX`].
pub(super) fn are_digits(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_the_sessions_the_credentials_and_the_deployments() {
        let (one, other) = (
            Placeholders::new(&"one".into()),
            Placeholders::new(&"other".into()),
        );
        let (session, credential) = (SessionId::new(), CredentialId::new());
        let text = one.of(session, credential);
        assert_eq!(text.len(), LENGTH);
        assert!(text.as_bytes().starts_with(PREFIX));
        assert!(are_digits(&text.as_bytes()[PREFIX.len()..]));
        let again = Placeholders::new(&"one".into());
        assert_eq!(again.of(session, credential), text);
        for different in [
            one.of(SessionId::new(), credential),
            one.of(session, CredentialId::new()),
            other.of(session, credential),
        ] {
            assert_ne!(different, text);
        }
        // What it consists of is written the same in URLs, forms, JSON and shells.
        assert!(
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        );
        assert!(!format!("{one:?}").contains("one\""));
    }
}
