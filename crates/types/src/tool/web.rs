//! Settings of `web_fetch` and `web_search`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::PermissionPolicy;
use crate::{ApiError, check, wire};

wire::literals! {
    WebFetchType = "web_fetch";
    WebSearchType = "web_search";
    UserLocationType = "approximate";
    ToolReferenceType = "tool_reference";
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WebFetchConfig {
    #[schema(inline)]
    pub r#type: WebFetchType,
    #[schema(inline)]
    pub name: WebFetchType,
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
    #[schema(required)]
    pub allowed_domains: Option<Vec<String>>,
    #[schema(required)]
    pub blocked_domains: Option<Vec<String>>,
    #[schema(required)]
    pub max_content_tokens: Option<i64>,
    #[schema(required)]
    pub url_sources: Option<UrlSources>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WebSearchConfig {
    #[schema(inline)]
    pub r#type: WebSearchType,
    #[schema(inline)]
    pub name: WebSearchType,
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
    #[schema(required)]
    pub allowed_domains: Option<Vec<String>>,
    #[schema(required)]
    pub blocked_domains: Option<Vec<String>>,
    #[schema(required)]
    pub user_location: Option<UserLocation>,
}

/// Where the person asking roughly is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserLocation {
    #[schema(inline)]
    pub r#type: UserLocationType,
    #[schema(max_length = 255)]
    pub city: Option<String>,
    /// ISO 3166-1 alpha-2, upper case.
    #[schema(min_length = 2, max_length = 2)]
    pub country: Option<String>,
    #[schema(max_length = 255)]
    pub region: Option<String>,
    /// A name of the IANA time zone database.
    pub timezone: Option<String>,
}

/// ISO 3166-1 alpha-2.
const COUNTRIES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ \
BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ \
DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT \
GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY \
KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX \
MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS \
RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN \
TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

impl UserLocation {
    pub(super) fn validate(&self, at: &str) -> Result<(), ApiError> {
        for (key, value) in [("city", &self.city), ("region", &self.region)] {
            if let Some(value) = value {
                check::text(format_args!("{at}.{key}"), value, 1..=255)?;
            }
        }
        if let Some(country) = &self.country
            && !COUNTRIES.split(' ').any(|code| code == country)
        {
            return Err(ApiError::invalid(format!(
                "{at}.country: `{}` is not an ISO 3166-1 alpha-2 code in upper case, such as \"DE\"",
                check::excerpt(country)
            )));
        }
        if let Some(timezone) = &self.timezone
            && !is_timezone(timezone)
        {
            return Err(ApiError::invalid(format!(
                "{at}.timezone: `{}` is not an IANA time zone, such as \"Europe/Berlin\"",
                check::excerpt(timezone)
            )));
        }
        Ok(())
    }
}

fn is_timezone(name: &str) -> bool {
    let database = jiff::tz::db();
    if database.is_definitively_empty() {
        // A machine without time zone data: the form is all that can be checked.
        let part = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-+".contains(&byte))
        };
        return name.split('/').count() <= 3 && name.split('/').all(part);
    }
    database.get(name).is_ok()
}

// URL sources ------------------------------------------------------------------------------------

/// Which URLs `web_fetch` may take. A source that is `null` is not limited.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlSourcesParams {
    pub user_input: Option<UrlSourceParams>,
    pub client_tool_results: Option<UrlSourceParams>,
    pub server_tool_results: Option<UrlSourceParams>,
}

/// `"all"`, `"none"`, or an object.
#[derive(Debug, Clone, PartialEq, ToSchema)]
#[serde(untagged)]
pub enum UrlSourceParams {
    Shorthand(UrlSourceKind),
    Object(UrlSource),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UrlSourceKind {
    All,
    None,
    /// Results of the named `tools` alone.
    Only,
    /// Results of every tool but the named `tools`.
    Except,
}

/// One source of URLs. `tools` belongs to `only` and `except`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlSource {
    pub r#type: UrlSourceKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_items = 1, max_items = 128)]
    pub tools: Option<Vec<ToolReference>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolReference {
    #[schema(inline)]
    pub r#type: ToolReferenceType,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UrlSources {
    #[schema(required)]
    pub user_input: Option<UrlSource>,
    #[schema(required)]
    pub client_tool_results: Option<UrlSource>,
    #[schema(required)]
    pub server_tool_results: Option<UrlSource>,
}

impl<'de> Deserialize<'de> for UrlSourceParams {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            kind @ Value::String(_) => wire::from_value(kind).map(Self::Shorthand),
            object @ Value::Object(_) => wire::from_value(object).map(Self::Object),
            _ => Err(serde::de::Error::custom(
                "must be \"all\", \"none\" or an object with a `type`",
            )),
        }
    }
}

impl UrlSourcesParams {
    pub(super) fn resolve(self, at: &str, custom_names: &[String]) -> Result<UrlSources, ApiError> {
        let at = format!("{at}.url_sources");
        let resolve = |source: Option<UrlSourceParams>, key: &str, names: Names<'_>| {
            source
                .map(|source| source.resolve(&format!("{at}.{key}"), names))
                .transpose()
        };
        let custom: Vec<&str> = custom_names.iter().map(String::as_str).collect();
        let sources = UrlSources {
            user_input: resolve(self.user_input, "user_input", Names::NotOffered)?,
            client_tool_results: resolve(
                self.client_tool_results,
                "client_tool_results",
                Names::OneOf(&custom, "a custom tool of this agent"),
            )?,
            server_tool_results: resolve(
                self.server_tool_results,
                "server_tool_results",
                Names::OneOf(&["web_search", "web_fetch"], "`web_search` or `web_fetch`"),
            )?,
        };
        let none = |source: &Option<UrlSource>| {
            source
                .as_ref()
                .is_some_and(|source| source.r#type == UrlSourceKind::None)
        };
        if none(&sources.user_input)
            && none(&sources.client_tool_results)
            && none(&sources.server_tool_results)
        {
            return Err(ApiError::invalid(format!(
                "{at}: all three sources are `none`, so nothing could be fetched; allow one, or \
                 disable web_fetch"
            )));
        }
        Ok(sources)
    }
}

/// The tools a source may name.
enum Names<'a> {
    NotOffered,
    OneOf(&'a [&'a str], &'static str),
}

impl UrlSourceParams {
    fn resolve(self, at: &str, names: Names<'_>) -> Result<UrlSource, ApiError> {
        let refuse = |reason: String| Err(ApiError::invalid(format!("{at}{reason}")));
        let source = match self {
            Self::Shorthand(kind @ (UrlSourceKind::All | UrlSourceKind::None)) => UrlSource {
                r#type: kind,
                tools: None,
            },
            Self::Shorthand(_) => {
                return refuse(
                    ": the short forms are \"all\" and \"none\"; use an object to name tools"
                        .to_owned(),
                );
            }
            Self::Object(source) => source,
        };
        let tools = match (source.r#type, &source.tools) {
            (UrlSourceKind::All | UrlSourceKind::None, None) => return Ok(source),
            (UrlSourceKind::All | UrlSourceKind::None, Some(_)) => {
                return refuse(".tools: belongs to `only` and `except`".to_owned());
            }
            (_, None) => return refuse(".tools: is required with `only` and `except`".to_owned()),
            (_, Some(tools)) => tools,
        };
        let Names::OneOf(known, what) = names else {
            return refuse(".type: must be `all` or `none` here".to_owned());
        };
        check::count(format_args!("{at}.tools"), tools.len(), 1..=128)?;
        for (index, tool) in tools.iter().enumerate() {
            if !known.contains(&tool.name.as_str()) {
                return refuse(format!(".tools[{index}].name: must be {what}"));
            }
            if tools[..index].iter().any(|other| other.name == tool.name) {
                return refuse(format!(
                    ".tools[{index}].name: `{}` is named twice",
                    tool.name
                ));
            }
        }
        Ok(source)
    }
}
