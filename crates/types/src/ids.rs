//! Typed, prefixed, sortable ids.
//!
//! An id is a UUIDv7 inside and `prefix_01` + 22 base58 digits outside. The digits are of fixed
//! width and their alphabet is in ASCII order, so ids sort by creation time as text, too.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// Base58 digits in ASCII order.
const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// 58^22 > 2^128 > 58^21: every 128-bit value fits.
const WIDTH: usize = 22;

/// A text is not an id of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid id: expected `{prefix}_01` followed by 22 base58 characters")]
pub struct InvalidId {
    pub prefix: &'static str,
}

fn encode(prefix: &str, id: Uuid) -> String {
    let mut digits = [b'1'; WIDTH];
    let mut rest = id.as_u128();
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 58) as usize];
        rest /= 58;
    }
    let mut text = String::with_capacity(prefix.len() + 3 + WIDTH);
    text.push_str(prefix);
    text.push_str("_01");
    text.extend(digits.iter().map(|d| char::from(*d)));
    text
}

fn decode(prefix: &'static str, text: &str) -> Result<Uuid, InvalidId> {
    let invalid = InvalidId { prefix };
    let digits = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix("_01"))
        .ok_or(invalid)?;
    if digits.len() != WIDTH {
        return Err(invalid);
    }
    let mut value: u128 = 0;
    for byte in digits.bytes() {
        let digit = ALPHABET.iter().position(|d| *d == byte).ok_or(invalid)?;
        value = value
            .checked_mul(58)
            .and_then(|v| v.checked_add(digit as u128))
            .ok_or(invalid)?;
    }
    Ok(Uuid::from_u128(value))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new id, later than every id this process made before.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "a fresh id is not a default value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode(Self::PREFIX, self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                decode(Self::PREFIX, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    )*};
}

ids! {
    WorkspaceId = "wrkspc";
    OrganizationId = "org";
    RequestId = "req";
    /// A credential of any kind: API key, environment key, work token.
    KeyId = "apikey";
    AgentId = "agent";
    EnvironmentId = "env";
    SessionId = "sesn";
    ThreadId = "sthr";
    EventId = "sevt";
    ResourceId = "sesrsc";
    OutcomeId = "outc";
    FileId = "file";
    /// The content of files and the like. Never part of the public API.
    BlobId = "blob";
    SkillId = "skill";
    SkillVersionId = "skver";
    /// The same id as the older generation of the skills API writes it.
    LegacySkillVersionId = "skillver";
    VaultId = "vlt";
    CredentialId = "vcrd";
    MemoryStoreId = "memstore";
    WebhookEndpointId = "whep";
    /// What happened, once: the same for every endpoint that hears of it, and on every attempt.
    WebhookEventId = "whe";
    /// One server process. Never part of the public API.
    ServerId = "server";
    /// One sandbox. Never part of the public API.
    SandboxId = "sandbox";
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_value_survives_and_keeps_its_order(a: u128, b: u128) {
            let (a, b) = (EventId(Uuid::from_u128(a)), EventId(Uuid::from_u128(b)));
            proptest::prop_assert_eq!(a.to_string().parse::<EventId>(), Ok(a));
            proptest::prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<SessionId>();
        }
    }

    #[test]
    fn foreign_prefixes_widths_and_overflow_are_refused() {
        let id = AgentId::new().to_string();
        assert!(id.starts_with("agent_01") && id.len() == "agent_01".len() + 22);
        assert!(id.parse::<SessionId>().is_err());
        assert!(id[..id.len() - 1].parse::<AgentId>().is_err());
        assert!("agent_01zzzzzzzzzzzzzzzzzzzzzz".parse::<AgentId>().is_err());
    }
}
