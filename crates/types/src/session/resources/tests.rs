use serde_json::{Value, json};

use super::*;
use crate::ErrorKind;

const FILE: &str = "file_011111111111111111111111";

fn check(resources: Value) -> Result<Vec<NewResource>, ApiError> {
    check_resources(serde_json::from_value(resources).unwrap())
}

fn file(path: &str) -> Result<NewFile, ApiError> {
    let mut checked = check(json!([{"type": "file", "file_id": FILE, "mount_path": path}]))?;
    match checked.remove(0) {
        NewResource::File(file) => Ok(file),
        NewResource::Repository(_) => panic!("asked for a file"),
    }
}

fn repository_with(change: Value) -> Result<NewRepository, ApiError> {
    let mut resource = json!({"type": "github_repository", "url": "https://github.com/acme/tool"});
    for (key, value) in change.as_object().unwrap() {
        resource[key] = value.clone();
    }
    match check(json!([resource]))?.remove(0) {
        NewResource::Repository(repository) => Ok(repository),
        NewResource::File(_) => panic!("asked for a repository"),
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert!(error.message.contains(part), "{}", error.message);
}

#[test]
fn all_three_generations_of_mount_paths_lead_to_the_uploads() {
    for (given, mount, alias) in [
        ("data.csv", "/mnt/session/uploads/data.csv", None),
        ("a/b c.csv", "/mnt/session/uploads/a/b c.csv", None),
        (
            "/data.csv",
            "/mnt/session/uploads/data.csv",
            Some("/data.csv"),
        ),
        (
            "/workspace//in/data.csv",
            "/mnt/session/uploads/workspace/in/data.csv",
            Some("/workspace/in/data.csv"),
        ),
        ("/uploads/data.csv", "/mnt/session/uploads/data.csv", None),
        ("/mnt/session/uploads/x/y", "/mnt/session/uploads/x/y", None),
        (
            "uploads/data.csv",
            "/mnt/session/uploads/uploads/data.csv",
            None,
        ),
        ("..data", "/mnt/session/uploads/..data", None),
    ] {
        let file = file(given).unwrap();
        assert_eq!(file.mount_path, mount, "{given}");
        assert_eq!(file.alias_path.as_deref(), alias, "{given}");
    }
    let plain = check(json!([{"type": "file", "file_id": FILE}])).unwrap();
    assert_eq!(
        plain[0].mount_path(),
        format!("/mnt/session/uploads/{FILE}")
    );
}

#[test]
fn paths_lead_nowhere_else() {
    for (path, part) in [
        ("", "1 to 4096"),
        ("../etc/passwd", "`.` or `..`"),
        ("/a/../../etc/passwd", "`.` or `..`"),
        ("a/./b", "`.` or `..`"),
        ("/mnt/session/uploads/../x", "`.` or `..`"),
        ("a\nb", "control"),
        ("a\0b", "U+0000"),
        ("/", "must name a file"),
        ("/uploads", "must name a file"),
        ("/mnt/session/uploads/", "must name a file"),
        ("dir/", "must name a file"),
    ] {
        refused(file(path), part);
    }
    refused(file(&"n".repeat(256)), "longer than 255");
    refused(file(&"n/".repeat(2100)), "1 to 4096");
    for path in [
        "/etc",
        "/workspace",
        "/",
        "..",
        "/workspace/../etc",
        "/mnt/session/uploads/r",
    ] {
        refused(repository_with(json!({"mount_path": path})), "mount_path");
    }
    refused(
        repository_with(json!({"mount_path": "/workspace/skills/mine"})),
        "skills",
    );
    refused(
        repository_with(json!({"url": "https://github.com/acme/skills"})),
        "skills",
    );
}

#[test]
fn a_repository_is_named_in_one_way() {
    let plain = repository_with(json!({})).unwrap();
    assert_eq!(
        (
            &*plain.host,
            &*plain.owner,
            &*plain.name,
            &*plain.mount_path
        ),
        ("github.com", "acme", "tool", "/workspace/tool")
    );
    for (path, mount) in [
        ("/workspace/src/tool", "/workspace/src/tool"),
        ("src", "/workspace/src"),
    ] {
        let repository = repository_with(json!({"mount_path": path})).unwrap();
        assert_eq!(repository.mount_path, mount);
    }
    for url in [
        "http://github.com/acme/tool",
        "https://github.com/acme/tool.git",
        "https://github.com/acme/tool.GIT",
        "https://github.com/acme/tool/",
        "https://github.com/acme",
        "https://github.com//tool",
        "https://github.com/acme/tool/tree/main",
        "https://github.com/acme/..",
        "https://github.com/acme/-x",
        "https://user:secret@github.com/acme/tool",
        "https://github.com:443/acme/tool",
        "https://github.com/acme/tool?x=1",
        "https://github.com/acme/tool#x",
        "https://github.com/acme/to ol",
        "https://github.com/acme/%2e%2e",
        "git@github.com:acme/tool",
        "ssh://git@github.com/acme/tool",
        "file:///etc/passwd",
    ] {
        refused(
            repository_with(json!({"url": url})),
            "resources[0].url: must be exactly",
        );
    }
    for name in ["main", "feature/x-1", "v1.2"] {
        let checkout = json!({"checkout": {"type": "branch", "name": name}});
        assert!(repository_with(checkout).is_ok(), "{name}");
    }
    for name in [
        "-x", "a..b", "a b", "a~1", "x.lock", "/a", "a/", "@", ".a", "a\\b", "a@{1}",
    ] {
        let checkout = json!({"checkout": {"type": "branch", "name": name}});
        refused(repository_with(checkout), "cannot be the name of a branch");
    }
    let commit = |sha: &str| json!({"checkout": {"type": "commit", "sha": sha}});
    assert!(repository_with(commit("0123abC")).is_ok());
    for sha in ["012345", "--upload-pack=x", &"0".repeat(65), "g123456"] {
        refused(repository_with(commit(sha)), "checkout.sha");
    }
    refused(
        repository_with(json!({"authorization_token": "a b"})),
        "visible ASCII",
    );
    refused(
        repository_with(json!({"authorization_token": "a\r\nX: y"})),
        "visible ASCII",
    );
}

#[test]
fn no_two_resources_are_in_each_others_way() {
    let files = |a: &str, b: &str| {
        check(json!([
            {"type": "file", "file_id": FILE, "mount_path": a},
            {"type": "file", "file_id": FILE, "mount_path": b},
        ]))
    };
    assert!(files("a", "b").is_ok());
    assert!(files("a", "ab").is_ok());
    for (a, b) in [
        ("a", "a"),
        ("/a", "a"),
        ("a/b", "a"),
        ("a", "a/b"),
        ("a", "/uploads/a"),
    ] {
        refused(files(a, b), "resources[1].mount_path");
    }
    let twice = json!([
        {"type": "github_repository", "url": "https://github.com/acme/tool"},
        {"type": "github_repository", "url": "https://github.com/other/tool"},
    ]);
    refused(check(twice), "resources[1].mount_path");
    let many: Vec<_> = (0..501)
        .map(|n| json!({"type": "file", "file_id": FILE, "mount_path": format!("f{n}")}))
        .collect();
    refused(check(json!(many)), "at most 500");
}

#[test]
fn only_files_are_added_later() {
    let add = |value: Value| {
        serde_json::from_value::<AddResource>(value)
            .unwrap()
            .check()
    };
    assert!(add(json!({"type": "file", "file_id": FILE})).is_ok());
    let error = add(json!({"type": "file", "file_id": "x"})).unwrap_err();
    assert!(
        error.message.starts_with("file_id: there is no file `x`"),
        "{}",
        error.message
    );
    refused(
        add(json!({"type": "github_repository", "url": "https://github.com/acme/tool"})),
        "only `file`",
    );
}

#[test]
fn tokens_are_not_printed() {
    let params: ResourceParams = serde_json::from_value(json!({
        "type": "github_repository", "url": "https://github.com/a/b", "authorization_token": "s3cret",
    }))
    .unwrap();
    assert!(!format!("{params:?}").contains("s3cret"));
    assert!(!format!("{:?}", check_resources(vec![params]).unwrap()).contains("s3cret"));
    let update: UpdateResource =
        serde_json::from_value(json!({"authorization_token": "s3cret"})).unwrap();
    assert!(!format!("{update:?}").contains("s3cret"));
}
