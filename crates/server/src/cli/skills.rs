//! `selfsame skills`: skills that the operator provides to every workspace under short names.
//!
//! They are registered in the database, and not found in a directory by each server: so all servers have
//! the same ones, a version never changes under the sessions that pinned it, and the audit knows of it.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;
use futures_util::stream;
use selfsame_engine::skills::archive::{self, Part};
use selfsame_store::{Actor, NewSkillVersion, Registered, Store};
use selfsame_types::skill::SkillKey;

use super::{
    Context,
    database::{Database, make_data_dir},
};
use crate::assembly;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Registers a zip as the latest version of a skill of type `anthropic`
    Register {
        /// What agents name it by, as `xlsx`
        #[arg(value_parser = short_name)]
        short_name: String,
        /// A folder with a SKILL.md, packed
        zip: PathBuf,
        /// The version, a date as in 20251013; today's when absent
        #[arg(long, value_name = "DATE", value_parser = date)]
        as_version: Option<i64>,
    },
    /// Lists what is registered
    List,
    /// Removes a skill or one version. Sessions keep what they have
    Remove {
        #[arg(value_parser = short_name)]
        short_name: String,
        #[arg(long, value_name = "DATE", value_parser = date)]
        only_version: Option<i64>,
    },
}

fn short_name(text: &str) -> Result<String, &'static str> {
    match text.parse() {
        Ok(SkillKey::Short(name)) => Ok(name),
        _ => Err("at most 64 lower-case letters, digits and hyphens"),
    }
}

fn date(text: &str) -> Result<i64, &'static str> {
    let is_date = text.len() == 8
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && jiff::civil::Date::strptime("%Y%m%d", text).is_ok();
    match text.parse() {
        Ok(number) if is_date => Ok(number),
        _ => Err("a date as in 20251013"),
    }
}

pub(super) async fn run(context: Context, command: Command) -> anyhow::Result<()> {
    let data_dir = &context.config.data_dir;
    make_data_dir(data_dir)?;
    let database = Database::visit(&context).await?;
    let done = match database.bootstrap(data_dir, &context).await {
        Ok(deployment) => match assembly::blobs(&context.config, &deployment) {
            Ok(blobs) => {
                let store = database.store.clone().with_blobs(blobs);
                execute(&store, command).await
            }
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    database.close().await;
    print!("{}", done?);
    Ok(())
}

/// Does it, and answers what to print.
async fn execute(store: &Store, command: Command) -> anyhow::Result<String> {
    let operator = Actor::default();
    match command {
        Command::Register {
            short_name,
            zip,
            as_version,
        } => register(store, &short_name, zip, as_version).await,
        Command::List => {
            let mut rows = vec![["SKILL", "NAME", "VERSIONS", "UPDATED"].map(str::to_owned)];
            rows.extend(store.skill_registered().await?.into_iter().map(|skill| {
                let versions: Vec<_> = skill.versions.iter().map(ToString::to_string).collect();
                [
                    skill.key.to_string(),
                    skill.name,
                    versions.join(","),
                    skill.updated_at.to_string(),
                ]
            }));
            Ok(super::align(&rows))
        }
        Command::Remove {
            short_name,
            only_version,
        } => {
            match store
                .skill_unregister(&short_name, only_version, &operator)
                .await?
            {
                0 => anyhow::bail!("nothing like this is registered"),
                1 => Ok("removed 1 version\n".to_owned()),
                count => Ok(format!("removed {count} versions\n")),
            }
        }
    }
}

async fn register(
    store: &Store,
    short_name: &str,
    zip: PathBuf,
    number: Option<i64>,
) -> anyhow::Result<String> {
    let packed = tokio::task::spawn_blocking(move || read(&zip)).await??;
    let size = packed.archive.len() as u64;
    let content = stream::iter([Ok(packed.archive)]);
    let new = NewSkillVersion {
        name: packed.name,
        description: packed.description,
        blob: store.blobs().put(content, size).await?,
    };
    let done = store
        .skill_register(short_name, &new, number, &Actor::default())
        .await?;
    if !matches!(done, Registered::Done(_)) {
        store.blobs().discard(new.blob.id).await;
    }
    match done {
        Registered::Done(version) => Ok(format!("registered {short_name} {}\n", version.number)),
        Registered::Unchanged(version) => Ok(format!(
            "{short_name} {} has this content already\n",
            version.number
        )),
        Registered::Taken(number) => anyhow::bail!(
            "{short_name} has a version {number} with other content, and versions do not change; choose \
             another with --as-version"
        ),
        Registered::OtherName(name) => anyhow::bail!(
            "{short_name} is registered for the skill named {name}, and this one is named {}",
            new.name
        ),
    }
}

/// A zip of the operator's, checked like any other.
fn read(zip: &Path) -> anyhow::Result<archive::Packed> {
    let mut data = Vec::new();
    let limit = archive::MAX_BYTES + 1;
    File::open(zip)
        .and_then(|file| file.take(limit).read_to_end(&mut data))
        .with_context(|| format!("cannot read {}", zip.display()))?;
    if data.len() as u64 == limit {
        anyhow::bail!("{} is too large for a skill", zip.display());
    }
    let part = Part {
        path: "skill.zip".to_owned(),
        data: data.into(),
    };
    archive::pack(vec![part]).with_context(|| format!("cannot use {}", zip.display()))
}

#[cfg(test)]
mod tests {
    use selfsame_store::Blobs;
    use sqlx::PgPool;

    use super::*;

    #[test]
    fn arguments_are_checked() {
        assert!(short_name("xlsx").is_ok() && short_name("my-tables-2").is_ok());
        for bad in ["", "XLSX", "a b", "skill_01", "../x"] {
            assert!(short_name(bad).is_err(), "{bad}");
        }
        assert_eq!(date("20251013"), Ok(20_251_013));
        for bad in [
            "",
            "2025",
            "20251345",
            "2025-10-13",
            "+2025101",
            "99999999999999999999",
        ] {
            assert!(date(bad).is_err(), "{bad}");
        }
    }

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn skills_are_registered_listed_and_removed(pool: PgPool) {
        let store = Store::from_pool(pool).with_blobs(Blobs::memory());
        let directory = tempfile::tempdir().unwrap();
        let zip = |name: &str, description: &str| {
            let text = format!("---\nname: {name}\ndescription: {description}\n---\n");
            let part = Part {
                path: "SKILL.md".to_owned(),
                data: text.into(),
            };
            let path = directory.path().join(format!("{description}.zip"));
            std::fs::write(&path, archive::pack(vec![part]).unwrap().archive).unwrap();
            path
        };
        let register = async |zip: PathBuf, as_version| {
            let command = Command::Register {
                short_name: "xlsx".to_owned(),
                zip,
                as_version,
            };
            execute(&store, command)
                .await
                .map_err(|error| format!("{error:#}"))
        };
        let one = zip("tables", "one");
        let done = register(one.clone(), Some(20_251_013)).await;
        assert_eq!(done.unwrap(), "registered xlsx 20251013\n");
        let again = register(one.clone(), Some(20_251_013)).await;
        assert_eq!(again.unwrap(), "xlsx 20251013 has this content already\n");
        let two = zip("tables", "two");
        let taken = register(two.clone(), Some(20_251_013)).await.unwrap_err();
        assert!(taken.contains("--as-version"), "{taken}");
        assert!(
            register(two, None)
                .await
                .unwrap()
                .starts_with("registered xlsx 20")
        );
        let other = register(zip("charts", "three"), None).await.unwrap_err();
        assert!(
            other.contains("tables") && other.contains("charts"),
            "{other}"
        );
        let nowhere = register(directory.path().join("none"), None).await;
        assert!(nowhere.unwrap_err().contains("cannot read"));
        std::fs::write(&one, "no zip").unwrap();
        assert!(
            register(one, None)
                .await
                .unwrap_err()
                .contains("cannot use")
        );

        let list = async || execute(&store, Command::List).await.unwrap();
        let listed = list().await;
        let line = listed.lines().nth(1).unwrap();
        assert!(
            line.starts_with("xlsx   tables  20") && line.contains(",20251013"),
            "{listed}"
        );
        let remove = async |only_version| {
            let command = Command::Remove {
                short_name: "xlsx".to_owned(),
                only_version,
            };
            execute(&store, command).await
        };
        assert!(remove(Some(20_251_014)).await.is_err());
        assert_eq!(
            remove(Some(20_251_013)).await.unwrap(),
            "removed 1 version\n"
        );
        assert_eq!(remove(None).await.unwrap(), "removed 1 version\n");
        assert!(remove(None).await.is_err());
        assert_eq!(list().await.lines().count(), 1);
    }
}
