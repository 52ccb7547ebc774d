use axum::{
    body::Body,
    http::{Method, Request},
};
use bytes::Bytes;
use selfsame_engine::skills::archive::{self, Part};
use selfsame_store::{Actor, NewSkillVersion, Scope};
use selfsame_types::{LegacySkillVersionId, SkillId, SkillVersionId};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::testing::{TestApp, TestResponse};

const BOUNDARY: &str = "----selfsame";

/// A part of a form: field, file name if it is a file, content.
type FormPart<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(parts: &[FormPart<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, filename, content) in parts {
        let name = filename.map_or(String::new(), |name| format!("; filename=\"{name}\""));
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{field}\"{name}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// Whether a request is of the older generation.
#[derive(Clone, Copy, PartialEq)]
enum As {
    Now,
    Then,
}

async fn send(
    app: &TestApp,
    way: As,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> TestResponse {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = &app.token {
        request = request.header("x-api-key", token);
    }
    if way == As::Then {
        request = request.header("anthropic-beta", "foo, skills-2025-10-02");
    }
    let body = match body {
        None => Body::empty(),
        Some(body) => {
            let kind = format!("multipart/form-data; boundary={BOUNDARY}");
            request = request.header("content-type", kind);
            Body::from(body)
        }
    };
    app.raw(request.body(body).unwrap()).await
}

async fn get(app: &TestApp, way: As, path: &str) -> TestResponse {
    send(app, way, Method::GET, path, None).await
}

async fn delete(app: &TestApp, way: As, path: &str) -> TestResponse {
    send(app, way, Method::DELETE, path, None).await
}

async fn upload(app: &TestApp, way: As, path: &str, parts: &[FormPart<'_>]) -> TestResponse {
    send(app, way, Method::POST, path, Some(form(parts))).await
}

fn text(name: &str, description: &str) -> String {
    format!("---\nname: {name}\ndescription: {description}\n---\n")
}

/// A skill of one file.
async fn create(app: &TestApp, way: As, name: &str) -> Value {
    let text = text(name, "First.");
    let path = format!("{name}/SKILL.md");
    let parts: &[FormPart<'_>] = &[("files[]", Some(&path), text.as_bytes())];
    let response = upload(app, way, "/v1/skills", parts).await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

/// A further version of it.
async fn add(app: &TestApp, way: As, skill: &Value, name: &str) -> Value {
    let text = text(name, "Further.");
    let path = format!("{}/versions", at(skill));
    let response = upload(
        app,
        way,
        &path,
        &[("files", Some("SKILL.md"), text.as_bytes())],
    )
    .await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn at(skill: &Value) -> String {
    format!("/v1/skills/{}", string(&skill["id"]))
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, part: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    assert!(response.error().1.contains(part), "{part}: {response}");
}

/// As `selfsame skills register` does.
async fn register(app: &TestApp, short_name: &str, number: i64) {
    let part = Part {
        path: "SKILL.md".to_owned(),
        data: text("tables", &number.to_string()).into(),
    };
    let packed = archive::pack(vec![part]).unwrap();
    let store = &app.app.store;
    let size = packed.archive.len() as u64;
    let content = futures_util::stream::iter([Ok(packed.archive)]);
    let new = NewSkillVersion {
        name: packed.name,
        description: packed.description,
        blob: store.blobs().put(content, size).await.unwrap(),
    };
    let actor = Actor::default();
    store
        .skill_register(short_name, &new, Some(number), &actor)
        .await
        .unwrap();
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_skill_lives(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let script = b"#!/bin/sh\n";
    let parts: &[FormPart<'_>] = &[
        ("display_name", None, b"My tables"),
        (
            "files[]",
            Some("tables/SKILL.md"),
            b"---\nname: tables\ndescription: Reads.\n---\n",
        ),
        ("files[]", Some("tables/run.sh"), script),
    ];
    let response = upload(&app, As::Now, "/v1/skills", parts).await;
    assert_eq!(response.status, 200, "{response}");
    let skill = response.body;
    insta::assert_json_snapshot!(skill, {
        ".id" => "[id]", ".latest_version_id" => "[version]", ".created_at" => "[time]", ".updated_at" => "[time]",
    }, @r#"
    {
      "type": "skill",
      "id": "[id]",
      "display_name": "My tables",
      "latest_version_id": "[version]",
      "source": {
        "type": "custom"
      },
      "created_at": "[time]",
      "updated_at": "[time]"
    }
    "#);
    assert!(string(&skill["id"]).parse::<SkillId>().is_ok());
    assert_eq!(get(&app, As::Now, &at(&skill)).await.body, skill);

    let first = get(&app, As::Now, &format!("{}/versions/latest", at(&skill)))
        .await
        .body;
    assert_eq!(first["id"], skill["latest_version_id"]);
    insta::assert_json_snapshot!(first, {
        ".id" => "[id]", ".skill_id" => "[skill]", ".created_at" => "[time]",
    }, @r#"
    {
      "type": "skill_version",
      "id": "[id]",
      "skill_id": "[skill]",
      "name": "tables",
      "description": "Reads.",
      "created_at": "[time]"
    }
    "#);
    let second = add(&app, As::Now, &skill, "tables").await;
    let now = get(&app, As::Now, &at(&skill)).await.body;
    assert_eq!(now["latest_version_id"], second["id"]);
    assert_ne!(now["updated_at"], skill["updated_at"]);
    let versions = get(&app, As::Now, &format!("{}/versions", at(&skill))).await;
    assert_eq!(
        versions.body,
        json!({"data": [second, first], "next_page": null})
    );

    let content = format!("{}/versions/{}/content", at(&skill), string(&first["id"]));
    let download = get(&app, As::Now, &content).await;
    assert_eq!(download.header("content-type"), "application/zip");
    assert_eq!(
        download.header("content-disposition"),
        "attachment; filename=\"tables.zip\""
    );
    let zip = raw(&app, &content).await;
    assert_eq!(download.header("content-length"), zip.len().to_string());
    let files = archive::entries(&zip).unwrap();
    let listed: Vec<_> = files.iter().map(|file| (&*file.path, file.mode)).collect();
    assert_eq!(listed, [("SKILL.md", 0o644), ("run.sh", 0o755)]);
    assert_eq!(files[1].data, script[..]);

    let version = format!("{}/versions/{}", at(&skill), string(&first["id"]));
    let gone = delete(&app, As::Now, &version).await;
    assert_eq!(
        gone.body,
        json!({"id": first["id"], "type": "skill_version_deleted"})
    );
    assert_error(&delete(&app, As::Now, &version).await, 404, "was not found");
    assert_error(&get(&app, As::Now, &content).await, 404, "was not found");
    let last = format!("{}/versions/{}", at(&skill), string(&second["id"]));
    assert_error(
        &delete(&app, As::Now, &last).await,
        400,
        "delete the skill instead",
    );
    let latest = format!("{}/versions/latest", at(&skill));
    assert_error(&delete(&app, As::Now, &latest).await, 400, "by its id");
    let gone = delete(&app, As::Now, &at(&skill)).await;
    assert_eq!(
        gone.body,
        json!({"id": skill["id"], "type": "skill_deleted"})
    );
    for path in [at(&skill), latest, format!("{}/versions", at(&skill))] {
        assert_error(&get(&app, As::Now, &path).await, 404, "was not found");
    }
}

/// A download's exact bytes.
async fn raw(app: &TestApp, path: &str) -> Bytes {
    use http_body_util::BodyExt as _;
    let token = app.token.as_deref().unwrap();
    let request = Request::get(path).header("x-api-key", token);
    let response = app.open(request.body(Body::empty()).unwrap()).await;
    response.into_body().collect().await.unwrap().to_bytes()
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_skill_lives_in_the_older_generation(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let parts: &[FormPart<'_>] = &[
        (
            "files[]",
            Some("tables/SKILL.md"),
            b"---\nname: tables\ndescription: Reads.\n---\n",
        ),
        ("display_title", None, b"My tables"),
    ];
    let skill = upload(&app, As::Then, "/v1/skills", parts).await.body;
    insta::assert_json_snapshot!(skill, {
        ".id" => "[id]", ".latest_version" => "[version]", ".created_at" => "[time]", ".updated_at" => "[time]",
    }, @r#"
    {
      "type": "skill",
      "id": "[id]",
      "display_title": "My tables",
      "latest_version": "[version]",
      "source": "custom",
      "created_at": "[time]",
      "updated_at": "[time]"
    }
    "#);
    assert_eq!(get(&app, As::Then, &at(&skill)).await.body, skill);
    let number = string(&skill["latest_version"]);
    assert!(
        number
            .parse::<i64>()
            .is_ok_and(|micros| micros > 1_700_000_000_000_000)
    );
    let version = format!("{}/versions/{number}", at(&skill));
    let first = get(&app, As::Then, &version).await.body;
    insta::assert_json_snapshot!(first, {
        ".id" => "[id]", ".skill_id" => "[skill]", ".version" => "[version]", ".created_at" => "[time]",
    }, @r#"
    {
      "type": "skill_version",
      "id": "[id]",
      "skill_id": "[skill]",
      "version": "[version]",
      "name": "tables",
      "description": "Reads.",
      "directory": "tables",
      "created_at": "[time]"
    }
    "#);
    let page = json!({"data": [first], "has_more": false, "next_page": null});
    let versions = get(&app, As::Then, &format!("{}/versions", at(&skill))).await;
    assert_eq!(versions.body, page);
    let page = json!({"data": [skill], "has_more": false, "next_page": null});
    assert_eq!(get(&app, As::Then, "/v1/skills").await.body, page);

    let refused = delete(&app, As::Then, &at(&skill)).await;
    assert_error(&refused, 400, "delete them first");
    let gone = delete(&app, As::Then, &version).await;
    assert_eq!(
        gone.body,
        json!({"id": number, "type": "skill_version_deleted"})
    );
    // Without a version, which the present generation does not know.
    let empty = get(&app, As::Then, &at(&skill)).await.body;
    assert_eq!(empty["latest_version"], Value::Null);
    assert_eq!(
        get(&app, As::Then, "/v1/skills").await.body["data"],
        json!([empty])
    );
    assert_eq!(
        get(&app, As::Now, "/v1/skills").await.body["data"],
        json!([])
    );
    assert_error(&get(&app, As::Now, &at(&skill)).await, 404, "was not found");
    add(&app, As::Then, &skill, "tables").await;
    assert_eq!(get(&app, As::Now, &at(&skill)).await.status, 200);
    let latest = get(&app, As::Then, &format!("{}/versions/latest", at(&skill))).await;
    let version = format!("{}/versions/{}", at(&skill), string(&latest.body["id"]));
    assert_eq!(delete(&app, As::Then, &version).await.status, 200);
    let gone = delete(&app, As::Then, &at(&skill)).await;
    assert_eq!(
        gone.body,
        json!({"id": skill["id"], "type": "skill_deleted"})
    );
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_version_has_its_names_in_both_generations(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let skill = create(&app, As::Now, "tables").await;
    let id: SkillVersionId = string(&skill["latest_version_id"]).parse().unwrap();
    let legacy = get(&app, As::Then, &at(&skill)).await.body;
    let names = [
        id.to_string(),
        LegacySkillVersionId(id.0).to_string(),
        string(&legacy["latest_version"]).to_owned(),
        "latest".to_owned(),
    ];
    for way in [As::Now, As::Then] {
        for name in &names {
            let version = format!("{}/versions/{name}", at(&skill));
            let found = get(&app, way, &version).await;
            assert_eq!(found.status, 200, "{found}");
            let shown = if way == As::Now { &names[0] } else { &names[1] };
            assert_eq!(found.body["id"], **shown);
            assert_eq!(
                get(&app, way, &format!("{version}/content")).await.status,
                200
            );
        }
    }
    for name in [
        "newest",
        "1",
        "-1",
        &SkillVersionId::new().to_string(),
        "%00",
        "a%2fb",
    ] {
        let found = get(&app, As::Now, &format!("{}/versions/{name}", at(&skill))).await;
        assert_error(&found, 404, "was not found");
    }
    for name in ["xlsx", "skill_x", "A%20b", &SkillId::new().to_string()] {
        let found = get(&app, As::Now, &format!("/v1/skills/{name}")).await;
        assert_error(&found, 404, "was not found");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn lists_go_by_pages(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let skill = create(&app, As::Now, &format!("s{number}")).await;
        ids.insert(0, string(&skill["id"]).to_owned());
    }
    register(&app, "xlsx", 20_251_013).await;
    ids.insert(0, "xlsx".to_owned());
    for (way, source, wanted) in [
        (As::Now, "", &ids[..]),
        (As::Then, "&source=custom", &ids[1..]),
        (As::Now, "&source=anthropic", &ids[..1]),
    ] {
        let mut seen = Vec::new();
        let mut page = String::new();
        loop {
            let path = format!("/v1/skills?limit=2{source}{page}");
            let response = get(&app, way, &path).await;
            assert_eq!(response.status, 200, "{response}");
            let data = response.body["data"].as_array().unwrap();
            seen.extend(data.iter().map(|skill| string(&skill["id"]).to_owned()));
            let next = &response.body["next_page"];
            if way == As::Then {
                assert_eq!(response.body["has_more"], !next.is_null());
            }
            let Some(next) = next.as_str() else { break };
            page = format!("&page={next}");
        }
        assert_eq!(seen, wanted);
    }
    let skill = get(&app, As::Now, &format!("/v1/skills/{}", ids[1]))
        .await
        .body;
    for _ in 0..4 {
        add(&app, As::Now, &skill, "s4").await;
    }
    let versions = format!("{}/versions", at(&skill));
    let all = get(&app, As::Now, &versions).await.body;
    let first = get(&app, As::Now, &format!("{versions}?limit=3"))
        .await
        .body;
    let next = string(&first["next_page"]);
    let second = get(&app, As::Now, &format!("{versions}?limit=3&page={next}"))
        .await
        .body;
    assert_eq!(second["next_page"], Value::Null);
    let both = [&first, &second].map(|page| page["data"].as_array().unwrap().clone());
    assert_eq!(json!(both.concat()), all["data"]);

    for bad in [
        "?limit=0",
        "?limit=1001",
        "?page=x",
        "?source=plugin",
        "?after_id=x",
    ] {
        let response = get(&app, As::Now, &format!("/v1/skills{bad}")).await;
        assert_eq!(response.status, 400, "{response}");
    }
    for bad in ["?limit=0", "?page=page_e30", "?source=custom"] {
        let response = get(&app, As::Now, &format!("{versions}{bad}")).await;
        assert_eq!(response.status, 400, "{response}");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn bad_uploads_are_refused(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.server.max_body_bytes = 100_000).await;
    let good: FormPart<'_> = (
        "files[]",
        Some("SKILL.md"),
        b"---\nname: a\ndescription: b\n---\n",
    );
    let long = "n".repeat(256);
    for (parts, part) in [
        (&[][..], "this field is required"),
        (
            &[("display_name", None, &b"x"[..])],
            "this field is required",
        ),
        (
            &[("files[]", None, b"x")],
            "files[]: the path `` has an empty name",
        ),
        (
            &[("files[]", Some("../SKILL.md"), b"x")],
            "files[]: the path",
        ),
        (
            &[("files[]", Some("a.zip"), b"PK")],
            "files[]: the zip archive",
        ),
        (&[good, good], "files[]: `SKILL.md` is there twice"),
        (&[good, ("file", Some("b"), b"x")], "file: unknown field"),
        (
            &[good, ("display_name", None, b"a\nb")],
            "display_name: must be a single line",
        ),
        (
            &[good, ("display_name", None, long.as_bytes())],
            "display_name: must have",
        ),
        (
            &[good, ("display_name", None, b"\xff")],
            "display_name: is not UTF-8",
        ),
        (
            &[
                good,
                ("display_name", None, b"a"),
                ("display_title", None, b"b"),
            ],
            "display_title: may be given only once",
        ),
    ] {
        let response = upload(&app, As::Now, "/v1/skills", parts).await;
        assert_error(&response, 400, part);
    }
    let large = vec![0; 100_001];
    let response = upload(
        &app,
        As::Now,
        "/v1/skills",
        &[good, ("files[]", Some("x"), &large)],
    )
    .await;
    assert_error(&response, 413, "larger than 100000 bytes");
    // The same without its length in the head.
    let pieces = form(&[good, ("files[]", Some("x"), &large)]);
    let pieces: Vec<_> = pieces
        .chunks(10_000)
        .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()))
        .collect();
    let request = Request::post("/v1/skills")
        .header("x-api-key", app.token.as_deref().unwrap())
        .header(
            "content-type",
            format!("multipart/form-data; boundary={BOUNDARY}"),
        );
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let response = app.raw(request.body(body).unwrap()).await;
    assert_error(&response, 413, "larger than 100000 bytes");
    let cut = form(&[good]);
    let cut = cut[..cut.len() - 20].to_vec();
    let response = send(&app, As::Now, Method::POST, "/v1/skills", Some(cut)).await;
    assert_error(&response, 400, "multipart body is not well-formed");
    let response = app.post("/v1/skills", json!({})).await;
    assert_error(&response, 400, "multipart/form-data");
    let response = upload(&app, As::Now, "/v1/skills?dry_run=1", &[good]).await;
    assert_error(&response, 400, "dry_run");

    let skill = create(&app, As::Now, "tables").await;
    let versions = format!("{}/versions", at(&skill));
    assert_error(
        &upload(&app, As::Now, &versions, &[good]).await,
        400,
        "must have its name, `tables`",
    );
    let named: &[FormPart<'_>] = &[good, ("display_name", None, b"x")];
    assert_error(
        &upload(&app, As::Now, &versions, named).await,
        400,
        "display_name: unknown field",
    );
    // A name that the data of the form leaves empty is none.
    let empty: &[FormPart<'_>] = &[good, ("display_name", None, b"")];
    let made = upload(&app, As::Now, "/v1/skills", empty).await;
    assert_eq!(made.body["display_name"], "a", "{made}");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn who_may_do_what(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let skill = create(&app, As::Now, "tables").await;
    register(&app, "xlsx", 20_251_013).await;
    let (path, versions) = (at(&skill), format!("{}/versions", at(&skill)));
    let version = format!("{versions}/{}", string(&skill["latest_version_id"]));
    let good: &[FormPart<'_>] = &[(
        "files[]",
        Some("SKILL.md"),
        b"---\nname: tables\ndescription: b\n---\n",
    )];

    let other = app.other_workspace().await;
    for path in [&path, &versions, &version, &format!("{version}/content")] {
        assert_error(&get(&other, As::Now, path).await, 404, "was not found");
    }
    for path in [&path, &version] {
        assert_error(&delete(&other, As::Now, path).await, 404, "was not found");
    }
    assert_error(
        &upload(&other, As::Now, &versions, good).await,
        404,
        "was not found",
    );
    let listed = get(&other, As::Now, "/v1/skills").await.body;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);

    let reader = app.with_scope(Scope::ReadOnly).await;
    for path in [&path, &versions, &version, &format!("{version}/content")] {
        assert_eq!(get(&reader, As::Now, path).await.status, 200);
    }
    for path in [&path, &version] {
        assert_error(&delete(&reader, As::Now, path).await, 403, "may only read");
    }
    assert_error(
        &upload(&reader, As::Now, "/v1/skills", good).await,
        403,
        "may only read",
    );
    assert_error(
        &upload(&reader, As::Now, &versions, good).await,
        403,
        "may only read",
    );
    let nobody = app.with_token(None);
    assert_eq!(get(&nobody, As::Now, &path).await.status, 401);

    // What the operator provides is everybody's to read.
    let shared = get(&other, As::Now, "/v1/skills/xlsx").await.body;
    insta::assert_json_snapshot!(shared, { ".created_at" => "[time]", ".updated_at" => "[time]" }, @r#"
    {
      "type": "skill",
      "id": "xlsx",
      "display_name": "tables",
      "latest_version_id": "20251013",
      "source": {
        "type": "anthropic"
      },
      "created_at": "[time]",
      "updated_at": "[time]"
    }
    "#);
    let latest = get(&other, As::Now, "/v1/skills/xlsx/versions/latest")
        .await
        .body;
    assert_eq!(
        (&latest["id"], &latest["skill_id"]),
        (&json!("20251013"), &json!("xlsx"))
    );
    let latest = get(&other, As::Then, "/v1/skills/xlsx/versions/20251013")
        .await
        .body;
    assert_eq!(latest["version"], "20251013");
    let content = get(&other, As::Now, "/v1/skills/xlsx/versions/20251013/content").await;
    assert_eq!(content.status, 200);
    let provided = "provided by the operator";
    assert_error(
        &delete(&app, As::Now, "/v1/skills/xlsx").await,
        403,
        provided,
    );
    assert_error(
        &delete(&app, As::Now, "/v1/skills/xlsx/versions/20251013").await,
        403,
        provided,
    );
    assert_error(
        &upload(&app, As::Now, "/v1/skills/xlsx/versions", good).await,
        403,
        provided,
    );
}

fn agent(skills: Value) -> Value {
    json!({"name": "n", "model": "m", "tools": [{"type": "agent_toolset_20260401"}], "skills": skills})
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn agents_name_skills_that_exist(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let skill = create(&app, As::Now, "tables").await;
    register(&app, "xlsx", 20_251_013).await;
    let (id, version) = (string(&skill["id"]), string(&skill["latest_version_id"]));
    let made = app
        .post(
            "/v1/agents",
            agent(json!([
                {"type": "custom", "skill_id": id},
                {"type": "custom", "skill_id": id, "version": version},
                {"type": "anthropic", "skill_id": "xlsx", "version": "20251013"},
            ])),
        )
        .await;
    assert_eq!(made.status, 200, "{made}");
    assert_eq!(
        made.body["skills"],
        json!([
            {"type": "custom", "skill_id": id, "version": "latest"},
            {"type": "custom", "skill_id": id, "version": version},
            {"type": "anthropic", "skill_id": "xlsx", "version": "20251013"},
        ])
    );
    let path = format!("/v1/agents/{}", string(&made.body["id"]));
    let other = SkillId::new().to_string();
    for (bad, part) in [
        (
            json!({"type": "custom", "skill_id": other}),
            "there is no skill",
        ),
        (
            json!({"type": "custom", "skill_id": id, "version": "1"}),
            "with a version `1`",
        ),
        (
            json!({"type": "anthropic", "skill_id": "docx"}),
            "has registered no skill `docx`",
        ),
        (
            json!({"type": "anthropic", "skill_id": "xlsx", "version": "20251014"}),
            "`20251014`",
        ),
        (
            json!({"type": "anthropic", "skill_id": id}),
            "has registered no skill",
        ),
        (
            json!({"type": "custom", "skill_id": "xlsx"}),
            "there is no skill `xlsx`",
        ),
    ] {
        let skills = json!([{"type": "custom", "skill_id": id}, bad]);
        for path in ["/v1/agents", &path] {
            let body = if path == "/v1/agents" {
                agent(skills.clone())
            } else {
                json!({"skills": skills})
            };
            let refused = app.post(path, body).await;
            assert_error(&refused, 400, part);
            assert!(refused.error().1.starts_with("skills[1]: "), "{refused}");
            assert_eq!(
                refused.body["error"]["details"]["error_code"],
                "skill_not_found"
            );
        }
    }
    let foreign = app.other_workspace().await;
    let refused = foreign
        .post(
            "/v1/agents",
            agent(json!([{"type": "custom", "skill_id": id}])),
        )
        .await;
    assert_error(&refused, 400, "there is no skill");
    let skills = json!({"skills": [{"type": "custom", "skill_id": other}]});
    assert_error(&foreign.post(&path, skills).await, 404, "was not found");
    let cleared = app.post(&path, json!({"tools": []})).await;
    assert_error(&cleared, 400, "skills: need");
    // What was saved stays, whatever becomes of the skill.
    assert_eq!(delete(&app, As::Now, &at(&skill)).await.status, 200);
    let renamed = app.post(&path, json!({"name": "other"})).await;
    assert_eq!(renamed.status, 200, "{renamed}");
    assert_eq!(renamed.body["skills"], made.body["skills"]);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn sessions_keep_the_versions_they_began_with(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let skill = create(&app, As::Now, "tables").await;
    register(&app, "xlsx", 20_251_013).await;
    let (id, first) = (string(&skill["id"]), string(&skill["latest_version_id"]));
    let second = add(&app, As::Now, &skill, "tables").await;
    let skills = json!([
        {"type": "custom", "skill_id": id},
        {"type": "custom", "skill_id": id, "version": first},
        {"type": "anthropic", "skill_id": "xlsx"},
    ]);
    let agent = app.post("/v1/agents", agent(skills)).await.body;
    let environment = app
        .post("/v1/environments", json!({"name": "e"}))
        .await
        .body;
    let session = async |agent: Value| {
        let body = json!({"agent": agent, "environment_id": environment["id"]});
        app.post("/v1/sessions", body).await
    };
    let made = session(agent["id"].clone()).await;
    assert_eq!(made.status, 200, "{made}");
    let resolved = json!([
        {"type": "custom", "skill_id": id, "version": second["id"]},
        {"type": "custom", "skill_id": id, "version": first},
        {"type": "anthropic", "skill_id": "xlsx", "version": "20251013"},
    ]);
    assert_eq!(made.body["agent"]["skills"], resolved);
    let override_with = |skills: Value| json!({"type": "agent_with_overrides", "id": agent["id"], "skills": skills});
    let other = session(override_with(
        json!([{"type": "anthropic", "skill_id": "xlsx"}]),
    ))
    .await;
    assert_eq!(
        other.body["agent"]["skills"],
        json!([resolved[2]]),
        "{other}"
    );
    let none = session(override_with(Value::Null)).await;
    assert_eq!(none.body["agent"]["skills"], json!([]), "{none}");
    let refused = session(override_with(
        json!([{"type": "anthropic", "skill_id": "docx"}]),
    ))
    .await;
    assert_error(&refused, 400, "agent.skills[0]: the operator");

    assert_eq!(delete(&app, As::Now, &at(&skill)).await.status, 200);
    let refused = session(agent["id"].clone()).await;
    assert_error(&refused, 400, "agent.skills[0]: there is no skill");
    assert_eq!(
        refused.body["error"]["details"]["error_code"],
        "skill_not_found"
    );
    // The session that was there has its copies, and a sweep leaves them.
    let store = &app.app.store;
    store.blob_sweep(std::time::Duration::ZERO).await.unwrap();
    let kept = store
        .session_skills(string(&made.body["id"]).parse().unwrap())
        .await
        .unwrap();
    let names: Vec<_> = kept
        .iter()
        .map(|skill| (&*skill.name, &*skill.description))
        .collect();
    assert_eq!(
        names,
        [
            ("tables", "Further."),
            ("tables", "First."),
            ("tables", "20251013")
        ]
    );
    for skill in &kept {
        let zip = store.blobs().read(skill.blob_id, 1 << 20).await.unwrap();
        assert_eq!(archive::entries(&zip).unwrap()[0].path, "SKILL.md");
    }
    assert_eq!(
        get(
            &app,
            As::Now,
            &format!("/v1/sessions/{}", string(&made.body["id"]))
        )
        .await
        .status,
        404
    );
    let read = app
        .get(&format!("/v1/sessions/{}", string(&made.body["id"])))
        .await;
    assert_eq!(read.body["agent"]["skills"], resolved);
}
