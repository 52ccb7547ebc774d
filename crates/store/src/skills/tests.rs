use std::collections::HashSet;

use selfsame_types::{
    AgentId, EnvironmentId, SessionId, ThreadId, Timestamp, agent::CreateAgent, agent::SkillRef,
    environment::CreateEnvironment, multiagent::Members, skill::Generation,
};
use serde_json::json;
use sqlx::PgPool;

use super::*;
use crate::{AddError, FirstState, NewSession};

async fn workspace(store: &Store) -> WorkspaceId {
    let workspace = store.workspace_create("w", &Actor::default()).await;
    workspace.unwrap().id
}

fn upload(name: &str, content: u8) -> NewSkillVersion {
    NewSkillVersion {
        name: name.to_owned(),
        description: format!("Version {content}."),
        blob: Blob {
            id: BlobId::new(),
            size: u64::from(content) + 100,
            sha256: [content; 32],
        },
    }
}

async fn create(store: &Store, workspace: WorkspaceId, name: &str) -> SkillRecord {
    let skill = store.skill_create(workspace, None, &upload(name, 0)).await;
    skill.unwrap()
}

async fn add(store: &Store, workspace: WorkspaceId, key: &SkillKey, content: u8) -> VersionRef {
    let name = store.skill_get(workspace, key).await.unwrap().unwrap().name;
    let made = store
        .skill_version_create(workspace, key, &upload(&name, content))
        .await;
    made.unwrap().unwrap().version
}

async fn register(store: &Store, name: &str, content: u8, number: Option<i64>) -> Registered {
    let new = upload("tables", content);
    let done = store
        .skill_register(name, &new, number, &Actor::default())
        .await;
    done.unwrap()
}

fn all(limit: usize) -> SkillFilter {
    SkillFilter {
        source: None,
        empty: false,
        after: Position::NEWEST,
        limit,
    }
}

async fn listed(store: &Store, workspace: WorkspaceId, filter: &SkillFilter) -> Vec<SkillKey> {
    let rows = store.skill_list(workspace, filter).await.unwrap();
    rows.into_iter().map(|(_, skill)| skill.key).collect()
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_skill_is_read_as_it_was_created(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let new = upload("tables", 7);
    let made = store.skill_create(ws, Some("Tables!".to_owned()), &new);
    let made = made.await.unwrap();
    assert_eq!((&*made.name, &*made.display_name), ("tables", "Tables!"));
    assert_eq!(made.created_at, made.updated_at);
    assert_eq!(
        store.skill_get(ws, &made.key).await.unwrap(),
        Some(made.clone())
    );
    let latest = made.latest.unwrap();
    assert_eq!(latest.number, made.created_at.as_micros());
    for version in [
        VersionKey::Latest,
        VersionKey::Id(latest.id),
        VersionKey::Number(latest.number),
    ] {
        let found = store.skill_version_get(ws, &made.key, version);
        let (record, archive) = found.await.unwrap().unwrap();
        assert_eq!(
            (record.version, &*record.description),
            (latest, "Version 7.")
        );
        assert_eq!((archive.blob, archive.size), (new.blob.id, 107));
    }
    for version in [VersionKey::Id(SkillVersionId::new()), VersionKey::Number(1)] {
        let found = store.skill_version_get(ws, &made.key, version);
        assert_eq!(found.await.unwrap(), None);
    }
    assert_eq!(create(&store, ws, "plain").await.display_name, "plain");
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn another_workspace_sees_nothing(pool: PgPool) {
    let store = Store::from_pool(pool);
    let (ws, other) = (workspace(&store).await, workspace(&store).await);
    let key = create(&store, ws, "tables").await.key;
    let nobody = Actor::default();
    assert_eq!(store.skill_get(other, &key).await.unwrap(), None);
    let found = store.skill_version_get(other, &key, VersionKey::Latest);
    assert_eq!(found.await.unwrap(), None);
    let found = store.skill_version_list(other, &key, None, 9);
    assert_eq!(found.await.unwrap(), None);
    assert_eq!(listed(&store, other, &all(9)).await, []);
    let refused = Err(SkillRefusal::NotFound);
    let done = store.skill_delete(other, &key, true, &nobody);
    assert_eq!(done.await.unwrap(), refused);
    let done = store.skill_version_delete(other, &key, VersionKey::Latest, false, &nobody);
    assert_eq!(done.await.unwrap(), Err(SkillRefusal::NotFound));
    let done = store
        .skill_version_create(other, &key, &upload("tables", 1))
        .await;
    assert_eq!(done.unwrap(), Err(SkillRefusal::NotFound));
    let wanted = [reference(&key, "latest")];
    let found = store.skill_versions_for_session(other, &wanted).await;
    assert_eq!(found.unwrap(), [None]);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn versions_follow_each_other(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let made = create(&store, ws, "tables").await;
    let key = &made.key;
    let mut wanted = vec![made.latest.unwrap()];
    // At the same moment, too: no two have one number.
    let uploads: Vec<_> = (1..6).map(|content| upload("tables", content)).collect();
    let both = uploads
        .iter()
        .map(|new| store.skill_version_create(ws, key, new));
    for made in futures_util::future::join_all(both).await {
        wanted.push(made.unwrap().unwrap().version);
    }
    wanted.sort_by_key(|version| -version.number);
    let numbers: HashSet<i64> = wanted.iter().map(|version| version.number).collect();
    assert_eq!(numbers.len(), 6);
    let page = |below, rows| store.skill_version_list(ws, key, below, rows);
    let first = page(None, 4).await.unwrap().unwrap();
    let last = page(Some(first[3].version.number), 4)
        .await
        .unwrap()
        .unwrap();
    let seen: Vec<_> = first.iter().chain(&last).map(|each| each.version).collect();
    assert_eq!(seen, wanted);
    let skill = store.skill_get(ws, key).await.unwrap().unwrap();
    assert_eq!(skill.latest, Some(wanted[0]));
    assert!(skill.updated_at > skill.created_at);
    let other = store
        .skill_version_create(ws, key, &upload("charts", 1))
        .await;
    let refused = SkillRefusal::OtherName("tables".to_owned());
    assert_eq!(other.unwrap(), Err(refused));
    // A clock that was set back: the next one is the latest all the same.
    sqlx::query("UPDATE skill_versions SET number = number + 1000000000000")
        .execute(&store.pool)
        .await
        .unwrap();
    let next = add(&store, ws, key, 9).await;
    assert_eq!(next.number, wanted[0].number + 1_000_000_000_001);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn lists_have_pages_and_sources(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let mut wanted = Vec::new();
    for number in 0..5 {
        wanted.insert(0, create(&store, ws, &format!("s{number}")).await.key);
    }
    register(&store, "xlsx", 1, None).await;
    let short = SkillKey::Short("xlsx".to_owned());
    let source = |source| SkillFilter {
        source: Some(source),
        ..all(100)
    };
    assert_eq!(
        listed(&store, ws, &source(SkillSource::Custom)).await,
        wanted
    );
    let shared = listed(&store, ws, &source(SkillSource::Anthropic)).await;
    assert_eq!(shared, std::slice::from_ref(&short));
    wanted.insert(0, short);
    let mut seen = Vec::new();
    let mut filter = all(2);
    loop {
        let page = store.skill_list(ws, &filter).await.unwrap();
        let Some((id, last)) = page.last().cloned() else {
            break;
        };
        filter.after = Position {
            created_at: last.created_at,
            id,
        };
        seen.extend(page.into_iter().map(|(_, skill)| skill.key));
    }
    assert_eq!(seen, wanted);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn deletions_of_both_generations(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let actor = Actor::default();
    // The present one: never without a version, and gone as a whole.
    let key = create(&store, ws, "tables").await.key;
    let latest = VersionKey::Latest;
    let last = store
        .skill_version_delete(ws, &key, latest, true, &actor)
        .await;
    assert_eq!(last.unwrap(), Err(SkillRefusal::Versions));
    let second = add(&store, ws, &key, 1).await;
    let gone =
        store.skill_version_delete(ws, &key, VersionKey::Number(second.number), true, &actor);
    assert_eq!(gone.await.unwrap(), Ok(second));
    let again = store.skill_version_delete(ws, &key, VersionKey::Id(second.id), true, &actor);
    assert_eq!(again.await.unwrap(), Err(SkillRefusal::NotFound));
    let gone = store.skill_delete(ws, &key, true, &actor).await;
    assert_eq!(gone.unwrap(), Ok(()));
    assert_eq!(store.skill_get(ws, &key).await.unwrap(), None);
    let gone = store.skill_delete(ws, &key, true, &actor).await;
    assert_eq!(gone.unwrap(), Err(SkillRefusal::NotFound));
    // The older one: version by version, and the empty skill at last.
    let key = create(&store, ws, "tables").await.key;
    let early = store.skill_delete(ws, &key, false, &actor).await;
    assert_eq!(early.unwrap(), Err(SkillRefusal::Versions));
    let last = store
        .skill_version_delete(ws, &key, latest, false, &actor)
        .await;
    assert!(last.unwrap().is_ok());
    let empty = store.skill_get(ws, &key).await.unwrap().unwrap();
    assert_eq!(
        (empty.latest, empty.view(Generation::Current)),
        (None, None)
    );
    assert_eq!(listed(&store, ws, &all(9)).await, []);
    let filter = SkillFilter {
        empty: true,
        ..all(9)
    };
    let listed = listed(&store, ws, &filter).await;
    assert_eq!(listed, std::slice::from_ref(&key));
    let versions = store.skill_version_list(ws, &key, None, 9).await;
    assert_eq!(versions.unwrap(), Some(Vec::new()));
    let back = add(&store, ws, &key, 1).await;
    assert!(
        store
            .skill_version_delete(ws, &key, VersionKey::Id(back.id), false, &actor)
            .await
            .unwrap()
            .is_ok()
    );
    let gone = store.skill_delete(ws, &key, false, &actor).await;
    assert_eq!(gone.unwrap(), Ok(()));
    let actions: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit WHERE action LIKE 'skill%' ORDER BY id")
            .fetch_all(&store.pool)
            .await
            .unwrap();
    let wanted = [
        "skill_version.delete",
        "skill.delete",
        "skill_version.delete",
        "skill_version.delete",
        "skill.delete",
    ];
    assert_eq!(actions, wanted);
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn the_operators_skills_are_for_all_and_read_only(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let actor = Actor::default();
    let number = |registered| match registered {
        Registered::Done(version) => version.number,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        number(register(&store, "xlsx", 1, Some(20_251_013)).await),
        20_251_013
    );
    let today = number(register(&store, "xlsx", 2, None).await);
    assert!(today > 20_260_000, "{today}");
    assert_eq!(
        register(&store, "xlsx", 3, None).await,
        Registered::Taken(today)
    );
    let unchanged = register(&store, "xlsx", 2, None).await;
    assert!(matches!(unchanged, Registered::Unchanged(version) if version.number == today));
    let other = store
        .skill_register("xlsx", &upload("charts", 4), Some(20_990_101), &actor)
        .await;
    let refused = Registered::OtherName("tables".to_owned());
    assert_eq!(other.unwrap(), refused);

    let key = SkillKey::Short("xlsx".to_owned());
    let skill = store.skill_get(ws, &key).await.unwrap().unwrap();
    assert_eq!(skill.latest.unwrap().number, today);
    let old = store.skill_version_get(ws, &key, VersionKey::Number(20_251_013));
    assert_eq!(old.await.unwrap().unwrap().0.description, "Version 1.");
    // Its hidden id is none of a workspace's skills.
    let (id, _) = store.skill_list(ws, &all(9)).await.unwrap().remove(0);
    let hidden = SkillKey::Id(SkillId(id));
    assert_eq!(store.skill_get(ws, &hidden).await.unwrap(), None);
    for (key, refused) in [
        (&key, SkillRefusal::ReadOnly),
        (&hidden, SkillRefusal::NotFound),
    ] {
        let done = store.skill_delete(ws, key, true, &actor).await;
        assert_eq!(done.unwrap(), Err(refused.clone()));
        let done = store.skill_version_delete(ws, key, VersionKey::Latest, false, &actor);
        assert_eq!(done.await.unwrap(), Err(refused.clone()));
        let done = store
            .skill_version_create(ws, key, &upload("tables", 9))
            .await;
        assert_eq!(done.unwrap(), Err(refused));
    }

    let registered = store.skill_registered().await.unwrap();
    assert_eq!(registered[0].versions, [today, 20_251_013]);
    assert_eq!(
        (&registered[0].key, &*registered[0].description),
        (&key, "Version 2.")
    );
    let gone = store.skill_unregister("xlsx", Some(today), &actor).await;
    assert_eq!(gone.unwrap(), 1);
    assert_eq!(
        store.skill_registered().await.unwrap()[0].versions,
        [20_251_013]
    );
    let gone = store.skill_unregister("xlsx", None, &actor).await;
    assert_eq!(gone.unwrap(), 1);
    assert_eq!(store.skill_get(ws, &key).await.unwrap(), None);
    let gone = store.skill_unregister("xlsx", None, &actor).await;
    assert_eq!(gone.unwrap(), 0);
}

fn reference(key: &SkillKey, version: &str) -> SkillRef {
    SkillRef {
        r#type: key.source(),
        skill_id: key.to_string(),
        version: version.to_owned(),
    }
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn references_become_versions(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let made = create(&store, ws, "tables").await;
    let first = made.latest.unwrap();
    let key = made.key;
    let second = add(&store, ws, &key, 2).await;
    register(&store, "xlsx", 1, Some(20_251_013)).await;
    register(&store, "xlsx", 2, Some(20_260_101)).await;
    let short = SkillKey::Short("xlsx".to_owned());
    let legacy = selfsame_types::LegacySkillVersionId(first.id.0);
    let wanted = [
        (reference(&key, "latest"), Some(second.id.to_string())),
        (reference(&short, "latest"), Some("20260101".to_owned())),
        (
            reference(&key, &first.id.to_string()),
            Some(first.id.to_string()),
        ),
        (
            reference(&key, &first.number.to_string()),
            Some(first.id.to_string()),
        ),
        (
            reference(&key, &legacy.to_string()),
            Some(first.id.to_string()),
        ),
        (reference(&short, "20251013"), Some("20251013".to_owned())),
        (reference(&short, "20251014"), None),
        (reference(&key, "1"), None),
        (reference(&key, "newest"), None),
        (
            reference(&SkillKey::Short("docx".to_owned()), "latest"),
            None,
        ),
        (
            SkillRef {
                r#type: SkillSource::Anthropic,
                ..reference(&key, "latest")
            },
            None,
        ),
        (
            SkillRef {
                r#type: SkillSource::Custom,
                ..reference(&short, "latest")
            },
            None,
        ),
        (
            SkillRef {
                skill_id: "../x".to_owned(),
                ..reference(&short, "latest")
            },
            None,
        ),
        (reference(&key, "latest"), Some(second.id.to_string())),
    ];
    let references: Vec<SkillRef> = wanted.iter().map(|(skill, _)| skill.clone()).collect();
    let found = store
        .skill_versions_for_session(ws, &references)
        .await
        .unwrap();
    let versions: Vec<_> = found
        .iter()
        .map(|each| each.as_ref().map(|each| each.version.clone()))
        .collect();
    let expected: Vec<_> = wanted.into_iter().map(|(_, version)| version).collect();
    assert_eq!(versions, expected);
    let mount = &found[0].as_ref().unwrap().mount;
    assert_eq!(
        (&*mount.name, &*mount.description),
        ("tables", "Version 2.")
    );
    assert_eq!(store.skill_versions_for_session(ws, &[]).await.unwrap(), []);
}

/// A session with these skills; `None` when there is no such environment.
async fn session(
    store: &Store,
    ws: WorkspaceId,
    skills: Vec<SkillMount>,
) -> Result<SessionId, AddError> {
    let agent: CreateAgent = serde_json::from_value(json!({"name": "a", "model": "m"})).unwrap();
    let id = AgentId::new();
    let agent = store
        .agent_create(ws, id, agent.resolve(id, &Members::default()).unwrap())
        .await
        .unwrap();
    let name = EnvironmentId::new().to_string();
    let environment: CreateEnvironment = serde_json::from_value(json!({"name": name})).unwrap();
    let environment = store
        .environment_create(ws, environment.resolve().unwrap())
        .await
        .unwrap();
    let new = NewSession {
        id: SessionId::new(),
        workspace: ws,
        agent_id: AgentId(agent.id.0),
        agent_version: 1,
        environment_id: environment.id,
        agent: "{}".to_owned(),
        environment: "{}".to_owned(),
        title: None,
        metadata: "{}".to_owned(),
        created_by: None,
        request_id: None,
        created_at: Timestamp::from_micros(1),
        thread: ThreadId::new(),
        thread_agent: "{}".to_owned(),
        equipped: !skills.is_empty(),
        vault_ids: Vec::new(),
        resources: Vec::new(),
        skills,
    };
    let first = FirstState {
        events: Vec::new(),
        status: "idle",
        thread_status: "idle",
        machine: "{}".to_owned(),
        view: "{}".to_owned(),
        thread_view: "{}".to_owned(),
        queued: Vec::new(),
        wake_at: None,
        owner: None,
    };
    let created = store.session_create(new, first).await?;
    Ok(created.expect("the environment is there").record.id)
}

#[sqlx::test(migrator = "crate::MIGRATOR")]
async fn a_session_keeps_its_copies(pool: PgPool) {
    let store = Store::from_pool(pool);
    let ws = workspace(&store).await;
    let keys = [
        create(&store, ws, "b").await.key,
        create(&store, ws, "a").await.key,
    ];
    let references = keys.clone().map(|key| reference(&key, "latest"));
    let found = store
        .skill_versions_for_session(ws, &references)
        .await
        .unwrap();
    let mounts: Vec<_> = found.into_iter().map(|each| each.unwrap().mount).collect();
    let id = session(&store, ws, mounts.clone()).await.unwrap();
    let plain = session(&store, ws, Vec::new()).await.unwrap();
    for key in &keys {
        let gone = store.skill_delete(ws, key, true, &Actor::default()).await;
        assert_eq!(gone.unwrap(), Ok(()));
    }
    assert_eq!(store.session_skills(id).await.unwrap(), mounts);
    assert_eq!(store.session_skills(plain).await.unwrap(), []);
    let equipment = store.session_equipment(id).await.unwrap().unwrap();
    assert_eq!(equipment.skills, mounts);
    // An archive that is gone already cannot become a session's.
    let lost = SkillMount {
        blob_id: BlobId::new(),
        ..mounts[0].clone()
    };
    let refused = session(&store, ws, vec![lost]).await.unwrap_err();
    let AddError::Store(refused) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refused.constraint(), Some(crate::SESSION_SKILL_BLOB_KEY));
}
