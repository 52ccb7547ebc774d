//! Defaults, file, environment and command line, one laid over the other.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{Config, DEFAULTS};

/// Keys that are never shown. `database.url` is shown without its password.
const SECRETS: [&str; 5] = [
    "auth.key",
    "model.api_key",
    "files.secret_access_key",
    "web.search_key",
    "secrets.master_key",
];
const ENV_PREFIX: &str = "SELFSAME__";

/// Everything that has a say.
#[derive(Debug, Default)]
pub struct Sources {
    /// The operator's file.
    pub file: Option<PathBuf>,
    /// All environment variables of the process.
    pub environment: Vec<(String, String)>,
    /// Keys set at the command line: flag, dotted key, text.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// Why the server does not start. Each names the place to look at.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{place}: {message}")]
    Wrong { place: String, message: String },
}

impl ConfigError {
    fn wrong(place: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::Wrong {
            place: place.to_string(),
            message: message.to_string(),
        }
    }
}

/// Reads the configuration.
///
/// # Errors
/// When a source cannot be read, names an unknown key, or holds a value of the wrong kind.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    merge(sources)?.into_config()
}

/// The effective configuration as TOML, without its secrets.
///
/// # Errors
/// As [`load`].
pub fn print(sources: &Sources) -> Result<String, ConfigError> {
    let merged = merge(sources)?;
    let mut table = merged.table.clone();
    merged.into_config()?;
    for key in SECRETS {
        if let Some(Value::String(text)) = find_mut(&mut table, key)
            && !text.is_empty()
        {
            "****************".clone_into(text);
        }
    }
    if let Some(Value::String(url)) = find_mut(&mut table, "database.url") {
        *url = without_password(url);
    }
    toml::to_string(&table).map_err(|error| ConfigError::wrong("configuration", error))
}

/// The merged values, and where each key that is not a default came from.
struct Merged {
    table: Table,
    places: BTreeMap<String, String>,
}

fn merge(sources: &Sources) -> Result<Merged, ConfigError> {
    let mut merged = Merged {
        table: DEFAULTS
            .parse()
            .map_err(|error| ConfigError::wrong("config.default.toml", error))?,
        places: BTreeMap::new(),
    };
    if let Some(path) = &sources.file {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.clone(),
            source,
        })?;
        merged.lay_file(path, &text)?;
    }
    merged.lay_environment(&sources.environment)?;
    for (flag, key, text) in &sources.flags {
        merged.lay_text(key, text, flag)?;
    }
    Ok(merged)
}

impl Merged {
    fn lay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let place = |line: usize| format!("{}:{line}", path.display());
        let line_at = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        let parsed = toml_edit::ImDocument::parse(text);
        let document = parsed.map_err(|error| {
            let at = error.span().map_or(1, |span| line_at(span.start));
            let reason = match error.message() {
                "" => "not valid TOML",
                message => message,
            };
            ConfigError::wrong(place(at), reason)
        })?;
        let table: Table = text
            .parse()
            .map_err(|error| ConfigError::wrong(path.display(), error))?;
        let mut leaves = Vec::new();
        flatten("", table, &mut leaves);
        for (key, leaf) in leaves {
            let place = place(offset_of(document.as_item(), &key).map_or(1, line_at));
            let Some(slot) = find_mut(&mut self.table, &key) else {
                return Err(unknown(place, &key, &self.table));
            };
            match leaf {
                Some(value) => *slot = value,
                None if slot.is_table() => {}
                None => return Err(ConfigError::wrong(place, format!("{key} is no section"))),
            }
            self.places.insert(key, place);
        }
        Ok(())
    }

    fn lay_environment(&mut self, environment: &[(String, String)]) -> Result<(), ConfigError> {
        // The names that other programs know come first, so that ours win over them.
        for (name, key) in [
            ("DATABASE_URL", "database.url"),
            ("ANTHROPIC_API_KEY", "model.api_key"),
        ] {
            if let Some((_, text)) = environment.iter().find(|(known, _)| known == name) {
                self.lay_text(key, text, name)?;
            }
        }
        for (name, text) in environment {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let key = rest.to_lowercase().replace("__", ".");
            self.lay_text(&key, text, name)?;
        }
        Ok(())
    }

    /// Sets a key from text: as it is where the default is text, else as a TOML value.
    fn lay_text(&mut self, key: &str, text: &str, place: &str) -> Result<(), ConfigError> {
        let Some(slot) = find_mut(&mut self.table, key) else {
            return Err(unknown(place, key, &self.table));
        };
        *slot = match slot {
            Value::String(_) => Value::String(text.to_owned()),
            Value::Table(_) => {
                return Err(ConfigError::wrong(
                    place,
                    format!("{key} is a section, not a key"),
                ));
            }
            _ => {
                let line: Table = format!("value = {text}").parse().map_err(|_| {
                    ConfigError::wrong(place, format!("`{text}` is not a TOML value for {key}"))
                })?;
                line.into_iter()
                    .next()
                    .map_or(Value::Boolean(false), |(_, value)| value)
            }
        };
        self.places.insert(key.to_owned(), place.to_owned());
        Ok(())
    }

    fn into_config(self) -> Result<Config, ConfigError> {
        serde_path_to_error::deserialize(self.table).map_err(|error| {
            let path = error.path().to_string();
            // An entry of a list stands where the list stands.
            let key = path.split('[').next().unwrap_or("").to_owned();
            let place = self
                .places
                .get(&key)
                .cloned()
                .unwrap_or_else(|| "configuration".to_owned());
            ConfigError::wrong(place, format!("{path}: {}", error.into_inner().message()))
        })
    }
}

fn unknown(place: impl fmt::Display, key: &str, table: &Table) -> ConfigError {
    let mut message = format!("unknown key `{key}`");
    let section = key.rsplit_once('.').map_or("", |(section, _)| section);
    let known = if section.is_empty() {
        Some(table)
    } else {
        find(table, section).and_then(Value::as_table)
    };
    if let Some(known) = known {
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let _ = write!(message, "; known here: {}", names.join(", "));
    }
    ConfigError::wrong(place, message)
}

fn find<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
    }
}

fn find_mut<'t>(table: &'t mut Table, key: &str) -> Option<&'t mut Value> {
    match key.split_once('.') {
        None => table.get_mut(key),
        Some((section, rest)) => find_mut(table.get_mut(section)?.as_table_mut()?, rest),
    }
}

/// Where a key stands in a file, or else the nearest thing around it that stands somewhere.
fn offset_of(document: &toml_edit::Item, key: &str) -> Option<usize> {
    let mut item = document;
    let mut offset = None;
    for name in key.split('.') {
        let Some((key, inner)) = item
            .as_table_like()
            .and_then(|table| table.get_key_value(name))
        else {
            break;
        };
        let span = key.span().or_else(|| inner.span());
        offset = span.map(|span| span.start).or(offset);
        item = inner;
    }
    offset
}

/// Dotted keys with their values, outer ones first; a table has none.
fn flatten(prefix: &str, table: Table, leaves: &mut Vec<(String, Option<Value>)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(inner) => {
                leaves.push((key.clone(), None));
                flatten(&key, inner, leaves);
            }
            value => leaves.push((key, Some(value))),
        }
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let masked = match rest[..end].rsplit_once('@') {
        Some((login, host)) => match login.split_once(':') {
            Some((user, _)) => format!("{scheme}://{user}:********@{host}{}", &rest[end..]),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    };
    match masked.split_once("password=") {
        Some((head, tail)) => {
            let rest = tail.find('&').map_or("", |at| &tail[at..]);
            format!("{head}password=********{rest}")
        }
        None => masked,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn load_with(file: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(file.as_bytes()).unwrap();
        let sources = Sources {
            file: Some(on_disk.path().to_owned()),
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            flags: Vec::new(),
        };
        load(&sources).map_err(|error| {
            error
                .to_string()
                .replace(&on_disk.path().display().to_string(), "FILE")
        })
    }

    #[test]
    fn the_defaults_are_complete() {
        let config = Config::default();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:8787");
        assert_eq!(config.server.max_body_bytes, 32 * 1024 * 1024);
        assert!(config.database.url.is_none() && config.auth.key.is_none());
    }

    #[test]
    fn environment_over_file_over_defaults() {
        let config = load_with(
            "[server]\nlisten = \"127.0.0.1:1\"\ndrain_seconds = 3\n[net]\nallowed_ranges = [\"10.0.0.0/8\"]\n",
            &[
                ("SELFSAME__SERVER__LISTEN", "127.0.0.1:2"),
                ("SELFSAME__SANDBOX__WARM", "7"),
                ("SELFSAME__DATA_DIR", "elsewhere"),
                ("DATABASE_URL", "postgres://theirs"),
                ("SELFSAME__DATABASE__URL", "postgres://ours"),
                ("ANTHROPIC_API_KEY", "sk-1"),
                ("UNRELATED", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.server.listen.port(), 2);
        assert_eq!((config.server.drain_seconds, config.sandbox.warm), (3, 7));
        assert_eq!(config.net.allowed_ranges, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(config.data_dir, Path::new("elsewhere"));
        assert_eq!(
            config.database.url.unwrap().expose_secret(),
            "postgres://ours"
        );
        assert_eq!(config.model.api_key.unwrap().expose_secret(), "sk-1");
        assert_eq!(config.lease.ttl_seconds, 10);
    }

    #[test]
    fn mistakes_name_their_place() {
        let file = |text: &str| load_with(text, &[]).unwrap_err();
        let variable = |name: &str, text: &str| load_with("", &[(name, text)]).unwrap_err();
        insta::assert_snapshot!(file("\n[lease]\nttl_second = 1"), @r#"FILE:3: unknown key `lease.ttl_second`; known here: max_sessions, ttl_seconds"#);
        insta::assert_snapshot!(file("[lease]\n\n[leas]\nttl_seconds = 1").split(';').next().unwrap(), @"FILE:3: unknown key `leas`");
        insta::assert_snapshot!(file("[lease]\nttl_seconds = \"1\""), @r#"FILE:2: lease.ttl_seconds: invalid type: string "1", expected u64"#);
        insta::assert_snapshot!(file("lease = 1"), @"FILE:1: lease: invalid type: integer `1`, expected struct Lease");
        insta::assert_snapshot!(file("[server]\nlisten ="), @r#"FILE:2: not valid TOML"#);
        insta::assert_snapshot!(file("[[model.models]]\nid = \"a\"\nname = 1"), @r#"FILE:1: model.models[0].name: unknown field `name`, expected one of `id`, `display_name`, `created_at`, `max_input_tokens`, `max_tokens`, `thinking`, `efforts`, `fast`"#);
        insta::assert_snapshot!(file("[server.listen]\nx = 1"), @r#"FILE:1: server.listen is no section"#);
        insta::assert_snapshot!(variable("SELFSAME__LEASE__TTL", "1"), @r#"SELFSAME__LEASE__TTL: unknown key `lease.ttl`; known here: max_sessions, ttl_seconds"#);
        insta::assert_snapshot!(variable("SELFSAME__LEASE", "1"), @r#"SELFSAME__LEASE: lease is a section, not a key"#);
        insta::assert_snapshot!(variable("SELFSAME__LEASE__TTL_SECONDS", "ten"), @r#"SELFSAME__LEASE__TTL_SECONDS: `ten` is not a TOML value for lease.ttl_seconds"#);
        insta::assert_snapshot!(variable("SELFSAME__LEASE__TTL_SECONDS", "0"), @r#"SELFSAME__LEASE__TTL_SECONDS: lease.ttl_seconds: must be at least 1"#);
        insta::assert_snapshot!(variable("SELFSAME__SERVER__LISTEN", "nowhere"), @r#"SELFSAME__SERVER__LISTEN: server.listen: invalid socket address syntax"#);
        insta::assert_snapshot!(variable("SELFSAME__AUTH__KEY", "short"), @r#"SELFSAME__AUTH__KEY: auth.key: needs at least 16 characters"#);
    }

    #[test]
    fn printing_hides_secrets_and_reads_back() {
        let sources = Sources {
            environment: [
                (
                    "DATABASE_URL",
                    "postgres://me:pass@host/db?password=too&x=1",
                ),
                ("ANTHROPIC_API_KEY", "sk-very-secret"),
                ("SELFSAME__AUTH__KEY", "a-key-of-more-than-16"),
                ("SELFSAME__WEB__SEARCH_KEY", "search-secret"),
                ("SELFSAME__FILES__SECRET_ACCESS_KEY", "bucket-secret"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
            ..Sources::default()
        };
        let text = print(&sources).unwrap();
        for secret in [
            "pass@",
            "too",
            "sk-very",
            "a-key",
            "search-secret",
            "bucket-secret",
        ] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert!(text.contains("postgres://me:********@host/db?password=********&x=1"));
        toml::from_str::<Config>(&text).unwrap();
    }
}
