use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};
use selfsame_types::ApiError;
use serde::{
    Deserialize,
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess,
        SeqAccess, Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use crate::{app::App, error::Error};

/// Query parameters, in the encodings that clients use.
///
/// A list is `a[]=1&a[]=2` or `a=1&a=2`, percent-encoded or not; a range is `at[gte]=...` and fills a
/// struct in field `at`. A parameter that `T` does not name is refused with 400; `beta` is ignored.
///
/// `T` is a plain struct: `Option` for what may be absent, `Vec` with `#[serde(default)]` for a list.
/// A field may also be *named* `ids[]` or `at[gte]` (by `#[serde(rename)]`), which is how these names
/// reach the OpenAPI document.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

/// For operations that have no query parameters: refuses any.
#[derive(Debug, Clone, Copy)]
pub struct NoQuery;

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Error> {
        Ok(Self(parse(parts.uri.query().unwrap_or(""))?))
    }
}

impl FromRequestParts<Arc<App>> for NoQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Nothing {}
        let Nothing {} = parse(parts.uri.query().unwrap_or(""))?;
        Ok(Self)
    }
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let mut pairs = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name == "beta" {
            continue;
        }
        // Postgres cannot hold it, and no parameter can mean it.
        if value.contains('\0') || name.contains('\0') {
            let name = name.replace('\0', "\\0");
            return Err(ApiError::invalid(format!(
                "{name}: a query parameter must not contain U+0000"
            )));
        }
        pairs.push((name.into_owned(), value.into_owned()));
    }
    T::deserialize(Root(pairs)).map_err(|Refused(message)| ApiError::invalid(message))
}

/// A message for the client.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<M: std::fmt::Display>(message: M) -> Self {
        Self(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("{field}: this query parameter is required"))
    }
}

type Pairs = Vec<(String, String)>;

/// The whole query.
struct Root(Pairs);

impl<'de> Deserializer<'de> for Root {
    type Error = Refused;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_map(Fields::sort(self.0, "", fields)?)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        Err(Refused("query parameters need a struct".to_owned()))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Parameters by the field they belong to, in order of first appearance.
struct Fields {
    prefix: String,
    rest: std::vec::IntoIter<(&'static str, Given)>,
    value: Option<(&'static str, Given)>,
}

/// What was given for one field.
#[derive(Debug, Default)]
struct Given {
    /// `name=..` and `name[]=..`
    plain: Vec<String>,
    /// Whether one of them was `name[]=..`, which only a list may be.
    bracketed: bool,
    /// `name[key]=..`
    keyed: Pairs,
}

impl Fields {
    fn sort(pairs: Pairs, prefix: &str, fields: &'static [&'static str]) -> Result<Self, Refused> {
        let mut sorted: Vec<(&'static str, Given)> = Vec::new();
        for (name, value) in pairs {
            let Some((field, key)) = find(&name, fields) else {
                return Err(Refused(format!(
                    "{}: unknown query parameter",
                    full_name(prefix, &name)
                )));
            };
            let index = sorted
                .iter()
                .position(|(known, _)| *known == field)
                .unwrap_or_else(|| {
                    sorted.push((field, Given::default()));
                    sorted.len() - 1
                });
            let given = &mut sorted[index].1;
            match key {
                Some("") => {
                    given.bracketed = true;
                    given.plain.push(value);
                }
                Some(key) => given.keyed.push((key.to_owned(), value)),
                None => given.plain.push(value),
            }
        }
        Ok(Self {
            prefix: prefix.to_owned(),
            rest: sorted.into_iter(),
            value: None,
        })
    }
}

/// The field that a parameter belongs to, and what stands in brackets behind it.
fn find<'n>(
    name: &'n str,
    fields: &'static [&'static str],
) -> Option<(&'static str, Option<&'n str>)> {
    let field = |wanted: &str| fields.iter().copied().find(|field| *field == wanted);
    if let Some(field) = field(name) {
        return Some((field, None));
    }
    let Some((stem, key)) = name.strip_suffix(']').and_then(|rest| rest.split_once('[')) else {
        // `ids=` for a field that is named `ids[]`
        return fields
            .iter()
            .copied()
            .find(|field| field.strip_suffix("[]") == Some(name))
            .map(|field| (field, None));
    };
    field(stem).map(|field| (field, Some(key)))
}

fn full_name(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}[{name}]")
    }
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Refused> {
        let Some((field, given)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some((field, given));
        let name: StrDeserializer<'_, Refused> = field.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        let (field, given) = self
            .value
            .take()
            .ok_or_else(|| Refused("a value was asked for before its key".to_owned()))?;
        let name = full_name(&self.prefix, field);
        seed.deserialize(Value { name: &name, given })
            .map_err(|Refused(message)| {
                if message.starts_with(&name) {
                    Refused(message)
                } else {
                    Refused(format!("{name}: {message}"))
                }
            })
    }
}

/// The value of one field.
struct Value<'a> {
    name: &'a str,
    given: Given,
}

impl Value<'_> {
    fn one(self) -> Result<String, Refused> {
        if let Some((key, _)) = self.given.keyed.first() {
            return Err(Refused(format!("[{key}] is unknown here")));
        }
        if self.given.bracketed {
            return Err(Refused("takes one value, not a list".to_owned()));
        }
        let [value] = <[String; 1]>::try_from(self.given.plain)
            .map_err(|_| Refused("may be given only once".to_owned()))?;
        Ok(value)
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            let text = self.one()?;
            // `parse` also takes a leading `+`, which decoding makes of no honest client's input.
            match text.parse::<$type>() {
                Ok(number) if !text.starts_with('+') => visitor.$visit(number),
                _ => Err(Refused(format!("`{text}` is not a number that fits here"))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_string(self.one()?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.one()?.as_str() {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            other => Err(Refused(format!("`{other}` is neither `true` nor `false`"))),
        }
    }

    numbers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_f32 visit_f32 f32,
        deserialize_f64 visit_f64 f64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let text: de::value::StringDeserializer<Refused> = self.one()?.into_deserializer();
        text.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        if let Some((key, _)) = self.given.keyed.first() {
            return Err(Refused(format!("[{key}] is unknown here")));
        }
        visitor.visit_seq(Items {
            name: self.name,
            rest: self.given.plain.into_iter(),
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        if !self.given.plain.is_empty() {
            return Err(Refused(format!(
                "needs a key: {}",
                fields
                    .iter()
                    .map(|field| full_name(self.name, field))
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        visitor.visit_map(Fields::sort(self.given.keyed, self.name, fields)?)
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier
        ignored_any
    }
}

/// The values of a list.
struct Items<'a> {
    name: &'a str,
    rest: std::vec::IntoIter<String>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Refused> {
        let Some(value) = self.rest.next() else {
            return Ok(None);
        };
        let given = Given {
            plain: vec![value],
            ..Given::default()
        };
        seed.deserialize(Value {
            name: self.name,
            given,
        })
        .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use selfsame_types::{AgentId, Order, Timestamp};

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Range {
        gt: Option<Timestamp>,
        gte: Option<Timestamp>,
        lt: Option<Timestamp>,
        lte: Option<Timestamp>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct List {
        limit: Option<u32>,
        page: Option<String>,
        order: Option<Order>,
        #[serde(default)]
        statuses: Vec<String>,
        #[serde(default)]
        created_at: Range,
        #[serde(default)]
        include_archived: bool,
        agent_id: Option<AgentId>,
        #[serde(default, rename = "ids[]")]
        ids: Vec<u8>,
        #[serde(rename = "updated_at[gte]")]
        updated_at_gte: Option<Timestamp>,
    }

    fn message(query: &str) -> String {
        parse::<List>(query).unwrap_err().message.into_owned()
    }

    #[test]
    fn lists_ranges_and_scalars_in_every_encoding() {
        let agent = AgentId::new();
        let list: List = parse(&format!(
            "beta=true&limit=5&statuses%5B%5D=idle&statuses[]=running&statuses=a+b&order=asc\
             &created_at%5Bgte%5D=2026-01-01T00:00:00Z&created_at[lt]=2026-01-02T00:00:00%2B02:00\
             &include_archived=true&agent_id={agent}&ids[]=1&ids%5B%5D=2&ids=3\
             &updated_at[gte]=2026-01-01T00:00:00Z&page=page_%C3%A4",
        ))
        .unwrap();
        assert_eq!(list.limit, Some(5));
        assert_eq!(list.order, Some(Order::Asc));
        assert_eq!(list.statuses, ["idle", "running", "a b"]);
        let at = |text: &str| Some(text.parse().unwrap());
        assert_eq!(list.created_at.gte, at("2026-01-01T00:00:00Z"));
        assert_eq!(list.created_at.lt, at("2026-01-01T22:00:00Z"));
        assert_eq!((list.created_at.gt, list.created_at.lte), (None, None));
        assert!(list.include_archived);
        assert_eq!(list.agent_id, Some(agent));
        assert_eq!(list.ids, [1, 2, 3]);
        assert_eq!(list.updated_at_gte, at("2026-01-01T00:00:00Z"));
        assert_eq!(list.page.as_deref(), Some("page_ä"));
    }

    #[test]
    fn refusals_name_the_parameter() {
        insta::assert_snapshot!(message("after_id=x"), @"after_id: unknown query parameter");
        insta::assert_snapshot!(message("created_at[eq]=x"), @"created_at[eq]: unknown query parameter");
        insta::assert_snapshot!(message("created_at=x"), @"created_at: needs a key: created_at[gt], created_at[gte], created_at[lt], created_at[lte]");
        insta::assert_snapshot!(message("limit=x"), @"limit: `x` is not a number that fits here");
        insta::assert_snapshot!(message("limit=-1"), @"limit: `-1` is not a number that fits here");
        insta::assert_snapshot!(message("limit=1&limit=2"), @"limit: may be given only once");
        insta::assert_snapshot!(message("limit[x]=1"), @"limit: [x] is unknown here");
        insta::assert_snapshot!(message("include_archived=1"), @"include_archived: `1` is neither `true` nor `false`");
        insta::assert_snapshot!(message("order=up"), @"order: unknown variant `up`, expected `asc` or `desc`");
        insta::assert_snapshot!(message("agent_id=up"), @"agent_id: not a valid id: expected `agent_01` followed by 22 base58 characters");
        insta::assert_snapshot!(message("page=%00"), @"page: a query parameter must not contain U+0000");
        insta::assert_snapshot!(message("limit[]=5"), @"limit: takes one value, not a list");
        insta::assert_snapshot!(message("statuses[x]=1"), @"statuses: [x] is unknown here");
        assert!(message("created_at[gte]=yesterday").starts_with("created_at[gte]: "));
    }
}
