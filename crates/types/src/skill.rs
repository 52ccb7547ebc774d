//! Skills and their versions, in both generations of the API: the present one, and the one that clients
//! ask for by `anthropic-beta: skills-2025-10-02`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

pub use crate::agent::SkillSource;
use crate::{ApiError, LegacySkillVersionId, SkillId, SkillVersionId, Timestamp, check, wire};

wire::literals! {
    SkillType = "skill";
    SkillVersionType = "skill_version";
    SkillDeletedType = "skill_deleted";
    SkillVersionDeletedType = "skill_version_deleted";
}

/// The name that asks for the older generation.
pub const LEGACY_SKILLS_BETA: &str = "skills-2025-10-02";
const MAX_DISPLAY_NAME: usize = 255;
const MAX_KEY: usize = 64;

/// Which shapes a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    Current,
    Legacy,
}

// Names of skills and versions -------------------------------------------------------------------

/// A text names no skill, or no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a skill or version")]
pub struct InvalidSkillKey;

/// How a skill is named: by its id, or, when the operator registered it for all workspaces, by a short
/// name such as `xlsx`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SkillKey {
    Id(SkillId),
    Short(String),
}

impl SkillKey {
    #[must_use]
    pub fn source(&self) -> SkillSource {
        match self {
            Self::Id(_) => SkillSource::Custom,
            Self::Short(_) => SkillSource::Anthropic,
        }
    }
}

impl FromStr for SkillKey {
    type Err = InvalidSkillKey;

    fn from_str(text: &str) -> Result<Self, InvalidSkillKey> {
        if text.starts_with("skill_") {
            return text.parse().map(Self::Id).map_err(|_| InvalidSkillKey);
        }
        let fits = (1..=MAX_KEY).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if fits {
            Ok(Self::Short(text.to_owned()))
        } else {
            Err(InvalidSkillKey)
        }
    }
}

impl fmt::Display for SkillKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Short(name) => f.write_str(name),
        }
    }
}

/// How a version is asked for: by id in either generation's form, by number (microseconds, or the date of
/// a registered skill), or as the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionKey {
    Latest,
    Id(SkillVersionId),
    Number(i64),
}

impl FromStr for VersionKey {
    type Err = InvalidSkillKey;

    fn from_str(text: &str) -> Result<Self, InvalidSkillKey> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if let Ok(id) = text.parse::<LegacySkillVersionId>() {
            return Ok(Self::Id(SkillVersionId(id.0)));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(number) = text.parse()
        {
            return Ok(Self::Number(number));
        }
        Err(InvalidSkillKey)
    }
}

macro_rules! from_text {
    ($($name:ident)+) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
from_text! { SkillKey VersionKey }

// What is stored ---------------------------------------------------------------------------------

/// A version's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRef {
    pub id: SkillVersionId,
    /// Grows from version to version of a skill.
    pub number: i64,
}

impl VersionRef {
    /// The one name by which a version is shown and pinned: that of a registered skill is its date.
    #[must_use]
    pub fn shown(self, source: SkillSource) -> String {
        match source {
            SkillSource::Custom => self.id.to_string(),
            SkillSource::Anthropic => self.number.to_string(),
        }
    }
}

/// A skill, free of any generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillRecord {
    pub key: SkillKey,
    /// Of every version.
    pub name: String,
    pub display_name: String,
    /// Only the older generation knows skills without versions.
    pub latest: Option<VersionRef>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A version of a skill, free of any generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillVersionRecord {
    pub version: VersionRef,
    pub skill: SkillKey,
    pub name: String,
    pub description: String,
    pub created_at: Timestamp,
}

// What is shown ----------------------------------------------------------------------------------

/// Who wrote a skill: `custom` is this workspace, `anthropic` whoever operates the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct SkillOrigin {
    pub r#type: SkillSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Skill {
    #[schema(inline)]
    pub r#type: SkillType,
    pub id: String,
    pub display_name: String,
    pub latest_version_id: String,
    pub source: SkillOrigin,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SkillVersion {
    #[schema(inline)]
    pub r#type: SkillVersionType,
    #[schema(pattern = "^(skver_[0-9A-Za-z]+|[0-9]+)$")]
    pub id: String,
    pub skill_id: String,
    pub name: String,
    pub description: String,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LegacySkill {
    #[schema(inline)]
    pub r#type: SkillType,
    pub id: String,
    #[schema(required)]
    pub display_title: Option<String>,
    #[schema(required)]
    pub latest_version: Option<String>,
    pub source: SkillSource,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LegacySkillVersion {
    #[schema(inline)]
    pub r#type: SkillVersionType,
    #[schema(pattern = "^skillver_[0-9A-Za-z]+$")]
    pub id: String,
    pub skill_id: String,
    pub version: String,
    pub name: String,
    pub description: String,
    pub directory: String,
    pub created_at: Timestamp,
}

/// A skill in the shape that the client understands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum SkillView {
    Current(Skill),
    Legacy(LegacySkill),
}

/// A version in the shape that the client understands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum SkillVersionView {
    Current(SkillVersion),
    Legacy(LegacySkillVersion),
}

/// The answer to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedSkill {
    pub id: String,
    #[schema(inline)]
    pub r#type: SkillDeletedType,
}

/// The answer to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedSkillVersion {
    pub id: String,
    #[schema(inline)]
    pub r#type: SkillVersionDeletedType,
}

/// A page in either generation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SkillPage<T> {
    pub data: Vec<T>,
    /// Only for the older generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub has_more: Option<bool>,
    /// Null on the last page.
    #[schema(required)]
    pub next_page: Option<String>,
}

impl<T> SkillPage<T> {
    #[must_use]
    pub fn new(data: Vec<T>, next_page: Option<String>, generation: Generation) -> Self {
        Self {
            data,
            has_more: (generation == Generation::Legacy).then_some(next_page.is_some()),
            next_page,
        }
    }
}

impl SkillRecord {
    /// `None`: the present generation has no such skill, since it has no version.
    #[must_use]
    pub fn view(self, generation: Generation) -> Option<SkillView> {
        let (id, source) = (self.key.to_string(), self.key.source());
        Some(match generation {
            Generation::Current => SkillView::Current(Skill {
                r#type: SkillType,
                id,
                display_name: self.display_name,
                latest_version_id: self.latest?.shown(source),
                source: SkillOrigin { r#type: source },
                created_at: self.created_at,
                updated_at: self.updated_at,
            }),
            Generation::Legacy => SkillView::Legacy(LegacySkill {
                r#type: SkillType,
                id,
                display_title: Some(self.display_name),
                latest_version: self.latest.map(|version| version.number.to_string()),
                source,
                created_at: self.created_at,
                updated_at: self.updated_at,
            }),
        })
    }
}

impl SkillVersionRecord {
    /// The name that pins this version.
    #[must_use]
    pub fn shown(&self) -> String {
        self.version.shown(self.skill.source())
    }

    #[must_use]
    pub fn view(self, generation: Generation) -> SkillVersionView {
        match generation {
            Generation::Current => SkillVersionView::Current(SkillVersion {
                r#type: SkillVersionType,
                id: self.shown(),
                skill_id: self.skill.to_string(),
                name: self.name,
                description: self.description,
                created_at: self.created_at,
            }),
            Generation::Legacy => SkillVersionView::Legacy(LegacySkillVersion {
                r#type: SkillVersionType,
                id: LegacySkillVersionId(self.version.id.0).to_string(),
                skill_id: self.skill.to_string(),
                version: self.version.number.to_string(),
                directory: self.name.clone(),
                name: self.name,
                description: self.description,
                created_at: self.created_at,
            }),
        }
    }
}

/// The `display_name` of an upload (`display_title` in the older generation): one line. Empty is none.
///
/// # Errors
/// When it is too long or has more than one line.
pub fn check_display_name(field: &str, text: &str) -> Result<Option<String>, ApiError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    check::text(field, text, 1..=MAX_DISPLAY_NAME)?;
    if text.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!(
            "{field}: must be a single line without control characters"
        )));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn skills_and_versions_have_names_in_many_forms() {
        let id = SkillId::new();
        assert_eq!(id.to_string().parse(), Ok(SkillKey::Id(id)));
        assert_eq!("xlsx".parse(), Ok(SkillKey::Short("xlsx".to_owned())));
        for bad in [
            "",
            "skill_",
            "skill_xlsx",
            "Xlsx",
            "a/b",
            "..",
            "a b",
            &"a".repeat(65),
        ] {
            assert_eq!(bad.parse::<SkillKey>(), Err(InvalidSkillKey), "{bad}");
        }
        let id = SkillVersionId::new();
        let legacy = LegacySkillVersionId(id.0);
        assert!(legacy.to_string().starts_with("skillver_01"));
        assert_eq!(id.to_string().parse(), Ok(VersionKey::Id(id)));
        assert_eq!(legacy.to_string().parse(), Ok(VersionKey::Id(id)));
        assert_eq!("latest".parse(), Ok(VersionKey::Latest));
        assert_eq!("20251013".parse(), Ok(VersionKey::Number(20_251_013)));
        assert_eq!(
            "1759178010641129".parse(),
            Ok(VersionKey::Number(1_759_178_010_641_129))
        );
        for bad in [
            "",
            "-1",
            "+1",
            "1.0",
            "Latest",
            "99999999999999999999",
            "skver_",
            "skill_01",
        ] {
            assert_eq!(bad.parse::<VersionKey>(), Err(InvalidSkillKey), "{bad}");
        }
    }

    #[test]
    fn display_names_are_one_line() {
        let check = |text: &str| check_display_name("display_name", text).map_err(|e| e.message);
        assert_eq!(check(" My skill "), Ok(Some("My skill".to_owned())));
        assert_eq!(check("  "), Ok(None));
        assert!(check(&"ä".repeat(255)).is_ok());
        assert!(check(&"ä".repeat(256)).is_err());
        assert!(check("two\nlines").is_err());
        assert!(check("a\0b").is_err());
    }

    #[test]
    fn each_generation_has_its_shape() {
        let at = Timestamp::from_micros(1_759_178_010_641_129);
        let version = VersionRef {
            id: SkillVersionId(Uuid::from_u128(2)),
            number: at.as_micros(),
        };
        let skill = SkillRecord {
            key: SkillKey::Id(SkillId(Uuid::from_u128(1))),
            name: "tables".to_owned(),
            display_name: "Tables".to_owned(),
            latest: Some(version),
            created_at: at,
            updated_at: at,
        };
        let record = SkillVersionRecord {
            version,
            skill: skill.key.clone(),
            name: "tables".to_owned(),
            description: "Reads tables.".to_owned(),
            created_at: at,
        };
        insta::assert_json_snapshot!(skill.clone().view(Generation::Current), @r#"
        {
          "type": "skill",
          "id": "skill_011111111111111111111112",
          "display_name": "Tables",
          "latest_version_id": "skver_011111111111111111111113",
          "source": {
            "type": "custom"
          },
          "created_at": "2025-09-29T20:33:30.641129Z",
          "updated_at": "2025-09-29T20:33:30.641129Z"
        }
        "#);
        insta::assert_json_snapshot!(skill.clone().view(Generation::Legacy), @r#"
        {
          "type": "skill",
          "id": "skill_011111111111111111111112",
          "display_title": "Tables",
          "latest_version": "1759178010641129",
          "source": "custom",
          "created_at": "2025-09-29T20:33:30.641129Z",
          "updated_at": "2025-09-29T20:33:30.641129Z"
        }
        "#);
        insta::assert_json_snapshot!(record.clone().view(Generation::Current), @r#"
        {
          "type": "skill_version",
          "id": "skver_011111111111111111111113",
          "skill_id": "skill_011111111111111111111112",
          "name": "tables",
          "description": "Reads tables.",
          "created_at": "2025-09-29T20:33:30.641129Z"
        }
        "#);
        insta::assert_json_snapshot!(record.clone().view(Generation::Legacy), @r#"
        {
          "type": "skill_version",
          "id": "skillver_011111111111111111111113",
          "skill_id": "skill_011111111111111111111112",
          "version": "1759178010641129",
          "name": "tables",
          "description": "Reads tables.",
          "directory": "tables",
          "created_at": "2025-09-29T20:33:30.641129Z"
        }
        "#);
        let empty = SkillRecord {
            latest: None,
            ..skill
        };
        assert_eq!(empty.clone().view(Generation::Current), None);
        let Some(SkillView::Legacy(empty)) = empty.view(Generation::Legacy) else {
            panic!("it has a view");
        };
        assert_eq!(empty.latest_version, None);
        // A registered one is pinned by its date.
        let registered = SkillVersionRecord {
            skill: SkillKey::Short("xlsx".to_owned()),
            version: VersionRef {
                number: 20_251_013,
                ..version
            },
            ..record
        };
        let SkillVersionView::Current(view) = registered.view(Generation::Current) else {
            panic!("asked for the present one");
        };
        assert_eq!((&*view.id, &*view.skill_id), ("20251013", "xlsx"));
    }
}
