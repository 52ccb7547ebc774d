//! Signatures as of Standard Webhooks: HMAC-SHA256 over id, time and body.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use zeroize::Zeroizing;

const PREFIX: &str = "whsec_";

/// A new secret, as its receiver is shown it.
#[must_use]
pub fn new_secret() -> SecretString {
    let key = Zeroizing::new(rand::random::<[u8; 32]>());
    SecretString::from(format!("{PREFIX}{}", STANDARD.encode(*key)))
}

/// The value of `webhook-signature`: one signature by each secret, newest first. `None` when a secret is
/// not one.
pub(super) fn signature(
    secrets: &[SecretString],
    id: &str,
    timestamp: i64,
    body: &str,
) -> Option<String> {
    let mut text = String::new();
    for secret in secrets {
        let key = secret.expose_secret().strip_prefix(PREFIX)?;
        let key = Zeroizing::new(STANDARD.decode(key).ok()?);
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body.as_bytes());
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str("v1,");
        text.push_str(&STANDARD.encode(mac.finalize().into_bytes()));
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that the specification's own libraries are tested with.
    #[test]
    fn the_public_test_vector() {
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let (id, at, body) = (
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        let signed = |secrets: &[SecretString]| signature(secrets, id, at, body);
        let wanted = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(
            signed(std::slice::from_ref(&secret)).as_deref(),
            Some(wanted)
        );

        let both = signed(&[new_secret(), secret]).unwrap();
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!((first.len(), second), (wanted.len(), wanted));
        assert_ne!(first, second);
        assert_eq!(signed(&[]), None);
        assert_eq!(signed(&[SecretString::from("secret")]), None);
    }

    #[test]
    fn a_secret_is_32_random_bytes() {
        let (one, other) = (new_secret(), new_secret());
        let key = one.expose_secret().strip_prefix(PREFIX).unwrap();
        assert_eq!(STANDARD.decode(key).unwrap().len(), 32);
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
