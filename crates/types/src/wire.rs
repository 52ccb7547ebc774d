//! Shapes of the API that serde's derive cannot say together: a closed struct, told from its siblings
//! by `type`, whose errors name the place.
//!
//! Every object of a union carries its own `type` field, so that its OpenAPI schema is whole and
//! closed. Reading looks at `type` first and then reads exactly one struct: the error is about that
//! struct, not "no variant matched".

use serde::de::{DeserializeOwned, Error};
use serde_json::Value;

/// Reads a JSON value as `T`; an error says where inside the value.
pub(crate) fn from_value<T: DeserializeOwned, E: Error>(value: Value) -> Result<T, E> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        if path == "." {
            E::custom(error.inner())
        } else {
            E::custom(format_args!("{path}: {}", error.inner()))
        }
    })
}

/// The `type` of an object.
pub(crate) fn tag<E: Error>(value: &Value) -> Result<String, E> {
    match value.as_object().map(|object| object.get("type")) {
        Some(Some(Value::String(tag))) => Ok(tag.clone()),
        Some(Some(_)) => Err(E::custom("type: must be a string")),
        Some(None) => Err(E::missing_field("type")),
        None => Err(E::custom("must be an object with a `type`")),
    }
}

/// Refuses a `type` (or name) that is none of `known`.
pub(crate) fn unknown_tag<E: Error>(tag: &str, known: &[&str]) -> E {
    E::custom(format_args!(
        "type: `{}` is not known here; expected `{}`",
        crate::check::excerpt(tag),
        known.join("`, `")
    ))
}

/// `Deserialize` for an enum whose variants each hold one struct with its own `type` field.
macro_rules! tagged_union {
    ($name:ident: $($($tag:literal)|+ => $variant:ident,)+) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(deserializer)?;
                match crate::wire::tag::<D::Error>(&value)?.as_str() {
                    $($($tag)|+ => crate::wire::from_value(value).map(Self::$variant),)+
                    other => Err(crate::wire::unknown_tag(other, &[$($($tag),+),+])),
                }
            }
        }
    };
}
pub(crate) use tagged_union;

/// Unit types that are one fixed string on the wire: the `type` of an object.
macro_rules! literals {
    ($($name:ident = $text:literal;)+) => {$(
        #[doc = concat!("The string `", $text, "`.")]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name;

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($text)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                if text == $text {
                    Ok(Self)
                } else {
                    Err(serde::de::Error::unknown_variant(&text, &[$text]))
                }
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some([$text]))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    )+};
}
pub(crate) use literals;
