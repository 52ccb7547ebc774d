//! What uploads may look like, and what becomes of those that do not.

use super::*;

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn names_and_types_and_expiry_in_any_order(pool: PgPool) {
    let app = TestApp::new(pool).await;
    let expires = field("expires_in_seconds", "3600");
    let file = file("../../etc/passwd", "x");
    for body in [
        format!("{expires}{file}{END}"),
        format!("{file}{expires}{END}"),
    ] {
        let response = post(&app, body).await;
        assert_eq!(response.status, 200, "{response}");
        assert_eq!(response.body["filename"], "passwd");
        let at = |key: &str| {
            let text = response.body[key].as_str().unwrap();
            text.parse::<selfsame_types::Timestamp>().unwrap()
        };
        let after = at("expires_at").seconds_since(at("created_at"));
        assert!((after - 3600.0).abs() < 1e-3, "{response}");
    }
    let bare = "--XX\r\nContent-Disposition: form-data; name=file\r\n\r\n\r\n";
    let response = post(&app, format!("{bare}{END}")).await;
    assert_eq!(response.body["filename"], "unnamed.bin", "{response}");
    assert_eq!(response.body["mime_type"], "application/octet-stream");
    assert_eq!(response.body["size_bytes"], 0);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn bad_forms_are_refused_and_leave_nothing(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.files.max_bytes = 100_000).await;
    let (app, directory) = on_disk(&app).await;
    let file = |name: &str| file(name, "content");
    let (good, fine) = (file("f"), field("expires_in_seconds", "3600"));
    let long = file(&"x".repeat(256));
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "well-formed"),
        (END.to_owned(), "file: this field is required"),
        (format!("{fine}{END}"), "file: this field is required"),
        (format!("{good}{good}{END}"), "file: may be given only once"),
        (format!("{fine}{good}{fine}{END}"), "may be given only once"),
        (
            format!("{good}{}{END}", field("purpose", "x")),
            "purpose: unknown field",
        ),
        (
            format!("{}{good}{END}", field("expires_in_seconds", "3599")),
            "3600 to 7776000",
        ),
        (
            format!("{good}{}{END}", field("expires_in_seconds", "7776001")),
            "3600 to 7776000",
        ),
        (
            format!("{good}{}{END}", field("expires_in_seconds", "1h")),
            "3600 to 7776000",
        ),
        (
            format!(
                "{good}{}{END}",
                field("expires_in_seconds", &"1".repeat(99))
            ),
            "at most 32",
        ),
        (format!("{}{END}", file("..")), "must not be `.` or `..`"),
        (format!("{}{END}", file("a\\b")), "must not contain"),
        (format!("{}{END}", file("a\u{1}b")), "must not contain"),
        (format!("{long}{END}"), "1 to 255 characters"),
        (good.clone(), "well-formed"),
        (good[..good.len() - 4].to_owned(), "well-formed"),
        (format!("{good}--YY--"), "well-formed"),
        (
            format!("--XX\r\nX: {}\r\n\r\n", "y".repeat(50_000)),
            "too long",
        ),
        (good.replace("text/csv", "text"), "media type"),
    ];
    for (body, part) in cases {
        let shown: String = body.chars().take(200).collect();
        let response = post(&app, body).await;
        assert_eq!(response.status, 400, "{shown}: {response}");
        assert!(response.error().1.contains(part), "{shown}: {response}");
        assert_eq!(files_in(directory.path()), 0, "{shown}");
    }
    for content_type in ["application/json", "multipart/form-data"] {
        let request = request(&app, Method::POST, "/v1/files")
            .header("content-type", content_type)
            .body(Body::from("{}"));
        let response = app.raw(request.unwrap()).await;
        assert_error(&response, 400, "invalid_request_error", "multipart");
    }
    let other = request(&app, Method::POST, "/v1/files?purpose=x");
    let response = app.raw(other.body(Body::empty()).unwrap()).await;
    assert_error(&response, 400, "invalid_request_error", "purpose");
    assert_eq!(ids(&get(&app, "/v1/files").await), Vec::<Value>::new());
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn sizes_are_the_files_own(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| {
        config.files.max_bytes = 3_000_000;
        // The limit of other bodies.
        config.server.max_body_bytes = 1000;
    })
    .await;
    let (app, directory) = on_disk(&app).await;
    let exactly = "x".repeat(3_000_000);
    assert_eq!(upload(&app, &exactly).await["size_bytes"], 3_000_000);
    assert_eq!(files_in(directory.path()), 1);
    let response = post(&app, file("f", &(exactly.clone() + "x")) + END).await;
    assert_error(&response, 413, "request_too_large", "3000000 bytes");
    // Far larger, and says so; and one that does not say.
    let huge = file("f", &exactly.repeat(2)) + END;
    let announced = Request::from_parts(form(&app, "").into_parts().0, Body::from(huge.clone()));
    let (mut head, body) = announced.into_parts();
    head.headers.insert("content-length", huge.len().into());
    let response = app.raw(Request::from_parts(head, body)).await;
    assert_error(&response, 413, "request_too_large", "larger than");
    let pieces = huge
        .into_bytes()
        .chunks(10_000)
        .map(|p| Ok::<_, io::Error>(p.to_vec()))
        .collect::<Vec<_>>();
    let response = post(&app, Body::from_stream(stream::iter(pieces))).await;
    assert_error(&response, 413, "request_too_large", "3000000 bytes");
    assert_eq!(files_in(directory.path()), 1);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_client_that_goes_away_leaves_nothing(pool: PgPool) {
    let (app, directory) = on_disk(&TestApp::new(pool).await).await;
    let large = file("f", &"x".repeat(3_000_000));
    let (content, cut) = (large.clone(), large[..2_500_000].to_owned());
    // In the middle of the content; after the content and before the end of the form.
    for begun in [cut, content] {
        let body = |rest| {
            let begun = stream::iter([Ok::<_, io::Error>(begun.clone().into_bytes())]);
            Body::from_stream(begun.chain(rest))
        };
        let silent = body(stream::pending().boxed());
        let gone = app.open(form(&app, silent));
        let seen = async {
            while files_in(directory.path()) == 0 {
                tokio::task::yield_now().await;
            }
        };
        // The server drops the request, as when its connection ends.
        tokio::select! {
            response = gone => panic!("{}", response.status()),
            () = seen => {}
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while files_in(directory.path()) > 0 {
            assert!(tokio::time::Instant::now() < deadline, "something stays");
            tokio::task::yield_now().await;
        }
        // Or it hears of it while it reads.
        let broken = stream::iter([Err(io::Error::other("gone"))]);
        let response = post(&app, body(broken.boxed())).await;
        assert_error(&response, 400, "invalid_request_error", "could not be read");
        assert_eq!(files_in(directory.path()), 0);
    }
    assert_eq!(ids(&get(&app, "/v1/files").await), Vec::<Value>::new());
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_silent_client_is_given_up(pool: PgPool) {
    let app = TestApp::with_config(pool, |config| config.server.body_timeout_seconds = 1).await;
    let silent = stream::iter([Ok::<_, io::Error>(file("f", "abc"))]).chain(stream::pending());
    let response = post(&app, Body::from_stream(silent)).await;
    assert_error(&response, 408, "timeout_error", "stopped arriving");
}
