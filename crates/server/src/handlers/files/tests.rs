use std::{io, path::Path, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request},
};
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use selfsame_store::{Blobs, Inserted, NewFile, NewKind, Scope};
use selfsame_types::{FileId, SessionId};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::*;
use crate::testing::{TestApp, TestResponse};

mod uploads;

const END: &str = "--XX--\r\n";

fn file(name: &str, content: &str) -> String {
    format!(
        "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: text/csv\r\n\r\n{content}\r\n"
    )
}

fn field(name: &str, value: &str) -> String {
    format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

fn request(app: &TestApp, method: Method, path: &str) -> axum::http::request::Builder {
    let token = app.token.as_deref().unwrap_or("");
    Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
}

fn form(app: &TestApp, body: impl Into<Body>) -> Request<Body> {
    request(app, Method::POST, "/v1/files")
        .header("content-type", "multipart/form-data; boundary=XX")
        .body(body.into())
        .unwrap()
}

async fn post(app: &TestApp, body: impl Into<Body>) -> TestResponse {
    app.raw(form(app, body)).await
}

/// Without the header of the managed agents, as clients of this part of the API do.
async fn get(app: &TestApp, path: &str) -> TestResponse {
    let request = request(app, Method::GET, path).body(Body::empty());
    app.raw(request.unwrap()).await
}

async fn get_legacy(app: &TestApp, path: &str) -> TestResponse {
    let request = request(app, Method::GET, path)
        .header("anthropic-beta", "x, files-api-2025-04-14")
        .body(Body::empty());
    app.raw(request.unwrap()).await
}

async fn upload(app: &TestApp, content: &str) -> Value {
    let response = post(app, file("data.csv", content) + END).await;
    assert_eq!(response.status, 200, "{response}");
    response.body
}

fn path(file: &Value) -> String {
    format!("/v1/files/{}", file["id"].as_str().unwrap())
}

fn ids(list: &TestResponse) -> Vec<Value> {
    let data = list.body["data"].as_array();
    let data = data.unwrap_or_else(|| panic!("{list}"));
    data.iter().map(|file| file["id"].clone()).collect()
}

#[track_caller]
fn assert_error(response: &TestResponse, status: u16, kind: &str, part: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    let (name, message) = response.error();
    assert_eq!(name, kind, "{response}");
    assert!(message.contains(part), "{response}");
}

#[track_caller]
fn assert_code(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status.as_u16(), status, "{response}");
    assert_eq!(response.body["error"]["details"]["error_code"], code);
}

/// Every file below a directory.
fn files_in(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_in(&path) } else { 1 })
        .sum()
}

/// A server whose contents can be looked at from outside.
async fn on_disk(app: &TestApp) -> (TestApp, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let App {
        config,
        store,
        engine,
        deployment,
        shutdown,
        ..
    } = &*app.app;
    let blobs = Blobs::local(directory.path().to_owned(), deployment.id).unwrap();
    let app_on_disk = App::new(
        config.clone(),
        store.clone().with_blobs(blobs),
        engine.clone(),
        deployment.clone(),
        shutdown.clone(),
    );
    (app.with_app(app_on_disk), directory)
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_file_comes_goes_and_is_described(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let created = upload(&app, "a,b\r\n1,2\r\n").await;
    let id = created["id"].as_str().unwrap();
    assert!(id.starts_with("file_01"), "{id}");
    let mut expected = json!({
        "type": "file", "filename": "data.csv", "mime_type": "text/csv", "size_bytes": 10,
        "downloadable": false, "expires_at": null, "scope": null,
    });
    expected["id"] = created["id"].clone();
    expected["created_at"] = created["created_at"].clone();
    assert_eq!(created, expected);
    assert_eq!(get(&app, &path(&created)).await.body, created);
    let list = get(&app, "/v1/files").await;
    assert_eq!(list.body, json!({"data": [created], "next_page": null}));
    let list = get_legacy(&app, "/v1/files?beta=true").await;
    let legacy = json!({"data": [created], "has_more": false, "first_id": id, "last_id": id});
    assert_eq!(list.body, legacy);
    assert_eq!(get_legacy(&app, &path(&created)).await.body, created);

    let content = get(&app, &format!("{}/content", path(&created))).await;
    assert_code(&content, 400, "file_not_downloadable");
    let deleted = app.delete(&path(&created)).await;
    assert_eq!(deleted.body, json!({"id": id, "type": "file_deleted"}));
    for response in [
        get(&app, &path(&created)).await,
        get(&app, &format!("{}/content", path(&created))).await,
        app.delete(&path(&created)).await,
    ] {
        assert_error(&response, 404, "not_found_error", id);
    }
    let empty = get_legacy(&app, "/v1/files").await;
    let none = json!({"data": [], "has_more": false, "first_id": null, "last_id": null});
    assert_eq!(empty.body, none);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn who_may_do_what(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let file_body = || file("f", "x") + END;
    let created = upload(&app, "x").await;
    let reader = app.with_scope(Scope::ReadOnly).await;
    assert_eq!(get(&reader, &path(&created)).await.body, created);
    assert_eq!(get(&reader, "/v1/files").await.status, 200);
    let response = post(&reader, file_body()).await;
    assert_error(&response, 403, "permission_error", "only read");
    let response = reader.delete(&path(&created)).await;
    assert_error(&response, 403, "permission_error", "only read");
    let standard = app.with_scope(Scope::Standard).await;
    assert_eq!(post(&standard, file_body()).await.status, 200);
    let nobody = app.with_token(Some("sk-wrong"));
    let response = post(&nobody, file_body()).await;
    assert_error(&response, 401, "authentication_error", "");

    let other = app.other_workspace().await;
    for response in [
        get(&other, &path(&created)).await,
        get(&other, &format!("{}/content", path(&created))).await,
        other.delete(&path(&created)).await,
    ] {
        assert_error(&response, 404, "not_found_error", "");
    }
    assert_eq!(ids(&get(&other, "/v1/files").await), Vec::<Value>::new());
    let list = format!("/v1/files?ids[]={}", created["id"].as_str().unwrap());
    assert_eq!(ids(&get(&other, &list).await), Vec::<Value>::new());
    assert_eq!(ids(&get(&app, &list).await), [created["id"].clone()]);
    for unknown in ["file_x", "sesn_01", "%ff", "..%2f..%2fetc"] {
        let response = get(&app, &format!("/v1/files/{unknown}")).await;
        assert_error(&response, 404, "not_found_error", "");
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn lists_in_both_generations(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let mut all = Vec::new();
    for number in 0..5 {
        all.insert(0, upload(&app, &number.to_string()).await["id"].clone());
    }
    let first = get(&app, "/v1/files?limit=2").await;
    assert_eq!(ids(&first), all[..2]);
    let page = first.body["next_page"].as_str().unwrap();
    let second = get(&app, &format!("/v1/files?limit=2&page={page}")).await;
    assert_eq!(ids(&second), all[2..4]);
    let page = second.body["next_page"].as_str().unwrap();
    // A cursor is good when its file is gone.
    app.delete(&format!("/v1/files/{}", all[3].as_str().unwrap()))
        .await;
    let last = get(&app, &format!("/v1/files?limit=2&page={page}")).await;
    assert_eq!(ids(&last), all[4..]);
    assert_eq!(last.body["next_page"], Value::Null);
    let deleted = all.remove(3);

    let at = |index: usize| all[index].as_str().unwrap();
    let list = get_legacy(&app, &format!("/v1/files?limit=2&after_id={}", at(0))).await;
    assert_eq!(ids(&list), all[1..3]);
    assert_eq!(list.body["has_more"], true);
    assert_eq!(
        (&list.body["first_id"], &list.body["last_id"]),
        (&all[1], &all[2])
    );
    let list = get_legacy(
        &app,
        &format!("/v1/files?after_id={}", deleted.as_str().unwrap()),
    )
    .await;
    assert_eq!(
        (ids(&list), &list.body["has_more"]),
        (all[3..].to_vec(), &json!(false))
    );
    let list = get_legacy(&app, &format!("/v1/files?limit=2&before_id={}", at(3))).await;
    assert_eq!(
        (ids(&list), &list.body["has_more"]),
        (all[1..3].to_vec(), &json!(true))
    );
    let list = get_legacy(&app, &format!("/v1/files?limit=2&before_id={}", at(1))).await;
    assert_eq!(
        (ids(&list), &list.body["has_more"]),
        (all[..1].to_vec(), &json!(false))
    );
    // Each generation takes the other's parameters.
    let list = get(&app, &format!("/v1/files?before_id={}", at(2))).await;
    assert_eq!(ids(&list), all[..2]);
    let page = list.body["next_page"].as_str().unwrap();
    let list = get_legacy(&app, &format!("/v1/files?page={page}")).await;
    assert_eq!(ids(&list), all[2..]);

    let some = format!("ids[]={}&ids%5B%5D={}&ids={}", at(3), at(1), FileId::new());
    let list = get(&app, &format!("/v1/files?{some}&ids[]={}", at(1))).await;
    assert_eq!(
        (ids(&list), &list.body["next_page"]),
        (vec![all[1].clone(), all[3].clone()], &Value::Null)
    );
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn list_parameters_that_make_no_sense(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let id = FileId::new();
    let environments = selfsame_types::Position::NEWEST.cursor("environments");
    let many: String = (0..101)
        .map(|_| format!("ids[]={}&", FileId::new()))
        .collect();
    for query in [
        "limit=0".to_owned(),
        "limit=1001".to_owned(),
        "limit=x".to_owned(),
        "page=x".to_owned(),
        format!("page={environments}"),
        "after_id=x".to_owned(),
        "before_id=sesn_01".to_owned(),
        format!("after_id={id}&before_id={id}"),
        format!("ids[]={id}&limit=5"),
        format!("ids[]={id}&page=x"),
        format!("ids[]={id}&after_id={id}"),
        "ids[]=x".to_owned(),
        many,
        "scope_id=x".to_owned(),
        format!("scope_id={id}"),
        "order=asc".to_owned(),
    ] {
        for response in [
            get(&app, &format!("/v1/files?{query}")).await,
            get_legacy(&app, &format!("/v1/files?{query}")).await,
        ] {
            assert_error(&response, 400, "invalid_request_error", "");
        }
    }
    let unknown = get(&app, &format!("/v1/files?scope_id={}", SessionId::new())).await;
    assert_eq!(ids(&unknown), Vec::<Value>::new());
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn downloads_where_they_are_allowed(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.files.download_uploads = true).await;
    let body = file("größe, \u{2028}100%.csv", "a\0b\r\n") + END;
    let created = post(&app, body).await.body;
    let path = format!("{}/content", path(&created));
    let content = get(&app, &path).await;
    assert_eq!(
        (content.status.as_u16(), content.text.as_str()),
        (200, "a\0b\r\n")
    );
    assert_eq!(content.header("content-type"), "text/csv");
    assert_eq!(content.header("content-length"), "5");
    assert_eq!(content.header("x-content-type-options"), "nosniff");
    assert_eq!(
        content.header("content-disposition"),
        "attachment; filename=\"gr__e, _100_.csv\"; \
         filename*=UTF-8''gr%C3%B6%C3%9Fe%2C%20%E2%80%A8100%25.csv"
    );
    let head = request(&app, Method::HEAD, &path).body(Body::empty());
    let head = app.raw(head.unwrap()).await;
    assert_eq!(
        (head.header("content-length"), head.text.as_str()),
        ("5", "")
    );
    // A row without its object is our fault, and no reason to hang.
    let id: FileId = created["id"].as_str().unwrap().parse().unwrap();
    let record = app
        .app
        .store
        .file_get(app.workspace, id)
        .await
        .unwrap()
        .unwrap();
    app.app
        .store
        .blobs()
        .delete(record.blob.unwrap())
        .await
        .unwrap();
    assert_error(&get(&app, &path).await, 500, "api_error", "");
}

#[test]
fn no_name_breaks_out_of_its_header() {
    for (name, header) in [
        ("plain.txt", "attachment; filename=\"plain.txt\""),
        ("a b.txt", "attachment; filename=\"a b.txt\""),
        (
            "x\"; filename=y",
            "attachment; filename=\"x_; filename=y\"; filename*=UTF-8''x%22%3B%20filename%3Dy",
        ),
        (
            "x\r\nset-cookie: a\0",
            "attachment; filename=\"x__set-cookie: a_\"; \
             filename*=UTF-8''x%0D%0Aset-cookie%3A%20a%00",
        ),
    ] {
        assert_eq!(attachment(name), header);
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn expired_and_over_quota(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| {
        config.files.quota_bytes = Some(10);
    })
    .await;
    let (app, directory) = on_disk(&app).await;
    let body = file("f", "12345") + &field("expires_in_seconds", "3600") + END;
    let created = post(&app, body).await.body;
    let refused = post(&app, file("f", "123456") + END).await;
    assert_code(&refused, 400, "storage_quota_exceeded");
    assert_eq!(files_in(directory.path()), 1);
    upload(&app, "12345").await;

    app.delete(&path(&created)).await;
    // No client can ask for so short a time.
    let content = stream::iter([Ok(bytes::Bytes::from_static(b"x"))]);
    let new = NewFile {
        workspace: app.workspace,
        kind: NewKind::Upload {
            expires_in: Some(Duration::ZERO),
        },
        filename: "f".to_owned(),
        mime_type: "text/plain".to_owned(),
        blob: app.app.store.blobs().put(content, 1).await.unwrap(),
    };
    let Inserted::New(record) = app.app.store.file_insert(new).await.unwrap() else {
        panic!("it fits");
    };
    let created = json!({"id": record.file.id});
    let content = get(&app, &format!("{}/content", path(&created))).await;
    assert_code(&content, 404, "file_expired");
    assert_eq!(get(&app, &path(&created)).await.status, 200);
    assert_eq!(ids(&get(&app, "/v1/files").await).len(), 2);
    assert_eq!(app.delete(&path(&created)).await.status, 200);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_session_takes_its_files_with_it(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let environment = app
        .post("/v1/environments", json!({"name": "e"}))
        .await
        .body;
    let agent = json!({"name": "a", "model": "claude-opus-4-8"});
    let agent = app.post("/v1/agents", agent).await.body;
    let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
    let session = app.post("/v1/sessions", body).await.body;
    let id: SessionId = session["id"].as_str().unwrap().parse().unwrap();
    let original = upload(&app, "x").await;
    let file: FileId = original["id"].as_str().unwrap().parse().unwrap();
    let store = &app.app.store;
    let copy = store.file_copy_for_session(app.workspace, file, id).await;
    let copy = copy.unwrap().unwrap().file;
    let list = format!("/v1/files?scope_id={id}");
    let listed = get(&app, &list).await;
    assert_eq!(ids(&listed), [json!(copy.id)]);
    assert_eq!(
        listed.body["data"][0]["scope"],
        json!({"type": "session", "id": id})
    );

    let path = format!("/v1/sessions/{id}");
    assert_eq!(app.post_empty(&format!("{path}/archive")).await.status, 200);
    assert_eq!(ids(&get(&app, &list).await), [json!(copy.id)]);
    assert_eq!(app.delete(&path).await.status, 200);
    assert_eq!(ids(&get(&app, &list).await), Vec::<Value>::new());
    let gone = get(&app, &format!("/v1/files/{}", copy.id)).await;
    assert_error(&gone, 404, "not_found_error", "");
    assert_eq!(get(&app, &self::path(&original)).await.body, original);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn files_have_a_rate_of_their_own(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.limits.files_per_minute = Some(1)).await;
    assert_eq!(get(&app, "/v1/files").await.status, 200);
    let refused = get(&app, "/v1/files").await;
    assert_error(&refused, 429, "rate_limit_error", "");
    assert_eq!(get(&app, "/v1/models").await.status, 200);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_download_comes_in_pieces(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.files.download_uploads = true).await;
    let (app, _directory) = on_disk(&app).await;
    let created = upload(&app, &"0123456789".repeat(500_000)).await;
    let request = request(&app, Method::GET, &format!("{}/content", path(&created)));
    let mut body = app
        .open(request.body(Body::empty()).unwrap())
        .await
        .into_body();
    let (mut total, mut largest) = (0, 0);
    while let Some(frame) = body.frame().await {
        let length = frame.unwrap().into_data().unwrap().len();
        (total, largest) = (total + length, largest.max(length));
    }
    assert_eq!(total, 5_000_000);
    assert!(largest <= 256 * 1024, "{largest}");
}
