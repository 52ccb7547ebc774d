use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::harness::{Bench, failure, success};

/// Whoever has ripgrep installed tests the hands' own search all the same.
async fn bench() -> Bench {
    Bench::with_env(&[("PATH", "/nonexistent")]).await
}

#[tokio::test]
async fn glob_lists_the_newest_first() {
    let bench = bench().await;
    for (age, name) in [
        (30, "src/old.rs"),
        (10, "src/deep/new.rs"),
        (20, "mid.rs"),
        (0, "note.md"),
    ] {
        bench.put(name, "");
        let file = File::options().write(true).open(bench.path(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age))
            .unwrap();
    }
    let glob = |pattern: &str| bench.run("glob", json!({ "pattern": pattern }));
    let lines = |names: &[&str]| {
        names
            .iter()
            .map(|name| bench.path(name).display().to_string())
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(
        success(glob("**/*.rs").await),
        lines(&["src/deep/new.rs", "mid.rs", "src/old.rs"])
    );
    assert_eq!(success(glob("*").await).lines().count(), 3);
    assert_eq!(
        success(glob("*.{rs,md}").await),
        lines(&["note.md", "mid.rs"])
    );
    assert_eq!(success(glob("*.txt").await), "no matches");
    let input = json!({ "pattern": "*.rs", "path": bench.path("src") });
    assert_eq!(
        success(bench.run("glob", input).await),
        lines(&["src/old.rs"])
    );
    let input = json!({ "pattern": "*.rs", "path": "src/deep" });
    assert_eq!(
        success(bench.run("glob", input).await),
        lines(&["src/deep/new.rs"])
    );

    assert!(failure(glob("../*").await).contains("'..' is not permitted"));
    assert!(failure(glob("/etc/*").await).contains("absolute pattern not permitted"));
    assert_eq!(failure(glob("").await), "glob: pattern is empty");
    let text = failure(
        bench
            .run("glob", json!({ "pattern": "*", "path": "nowhere" }))
            .await,
    );
    assert!(text.ends_with("no such file or directory"), "{text}");

    for n in 0..300 {
        bench.put(&format!("many/{n}"), "");
    }
    assert_eq!(success(glob("many/*").await).lines().count(), 200);
}

#[tokio::test]
async fn grep_finds_lines() {
    let bench = bench().await;
    bench.put("a.txt", "alpha\nbeta\r\nAlpha beta\n");
    bench.put("sub/b.txt", "beta without line end");
    bench.put("sub/binary", b"beta\0beta");
    bench.put(".git/config", "beta");
    bench.put("node_modules/x/index.js", "beta");
    bench.put("long", format!("beta{}\nbeta\n", "x".repeat(3000)));
    std::os::unix::fs::symlink("/", bench.path("root")).unwrap();
    let grep = |pattern: &str| bench.run("grep", json!({ "pattern": pattern }));
    let at = |name: &str| bench.path(name).display().to_string();
    let (a, b, long) = (at("a.txt"), at("sub/b.txt"), at("long"));
    assert_eq!(
        success(grep("beta").await),
        format!("{a}:2:beta\n{a}:3:Alpha beta\n{long}:2:beta\n{b}:1:beta without line end")
    );
    assert_eq!(success(grep("(?i)^alpha$").await), format!("{a}:1:alpha"));
    assert_eq!(success(grep("gamma").await), "no matches");
    assert_eq!(success(grep("--version").await), "no matches");
    let input = json!({ "pattern": "beta$", "path": "a.txt" });
    assert_eq!(
        success(bench.run("grep", input).await),
        format!("{a}:2:beta\n{a}:3:Alpha beta")
    );
    let input = json!({ "pattern": "beta", "path": bench.path("node_modules") });
    assert_eq!(success(bench.run("grep", input).await).lines().count(), 1);
    assert!(failure(grep("(").await).starts_with("grep: invalid regex: "));
    assert!(failure(grep("(((a{1000}){1000}){1000})").await).contains("too large"));
    let text = failure(
        bench
            .run("grep", json!({ "pattern": "x", "path": "nowhere" }))
            .await,
    );
    assert!(
        text.ends_with("nowhere: no such file or directory"),
        "{text}"
    );
}

#[tokio::test]
async fn ripgrep_is_used_where_it_is_installed() {
    // Not ripgrep, but it stands for each of its answers and shows what it was asked.
    let rg = r#"#!/bin/bash
for last; do :; done
case $* in
    *'-e many '*) yes "$last:1:many" ;;
    *'-e none '*) exit 1 ;;
    *'-e broken '*) exit 2 ;;
    *'-e partly '*) echo "$last:1:partly"; exit 2 ;;
    *) echo "$@" ;;
esac
"#;
    let bin = tempfile::tempdir().unwrap();
    fs::write(bin.path().join("rg"), rg).unwrap();
    fs::set_permissions(bin.path().join("rg"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let bench = Bench::with_env(&[("PATH", &path)]).await;
    bench.put("node_modules/x", "");
    let grep = |pattern: &str, path: &str| {
        bench.run(
            "grep",
            json!({ "pattern": pattern, "path": bench.path(path) }),
        )
    };
    let root = bench.path("").display().to_string();
    let asked = success(grep("-x", "").await);
    assert_eq!(
        asked,
        format!(
            "--no-config --line-number --no-heading --with-filename --color=never --no-messages --max-columns=2000 \
             --glob !node_modules -e -x -- {root}"
        )
    );
    assert!(!success(grep("x", "node_modules").await).contains("--glob"));
    assert_eq!(success(grep("none", "").await), "no matches");
    assert!(failure(grep("broken", "").await).starts_with("grep: rg failed"));
    assert_eq!(
        success(grep("partly", "").await),
        format!("{root}:1:partly")
    );
    // Cut, and the endless search is over.
    assert!(success(grep("many", "").await).starts_with("[output truncated]"));
    assert!(failure(grep("(", "").await).starts_with("grep: invalid regex"));
    assert!(failure(grep("x", "nowhere").await).ends_with("no such file or directory"));
}

#[tokio::test]
async fn many_matches_are_cut_with_a_note() {
    let bench = bench().await;
    bench.put("many", "needle in a haystack\n".repeat(10_000));
    let text = success(bench.run("grep", json!({ "pattern": "needle" })).await);
    // More characters than a result may have, so they are in a file besides.
    assert!(text.starts_with("[output truncated]\n") || text.len() <= 100 << 10);
    let spilled: Vec<_> = fs::read_dir(bench.place("/mnt/session/tool-outputs"))
        .unwrap()
        .flatten()
        .collect();
    let full = fs::read_to_string(spilled[0].path()).unwrap();
    assert!(
        full.ends_with("\n[output truncated at 102400 bytes]"),
        "{}",
        &full[full.len() - 100..]
    );
    assert!(
        full.lines()
            .rev()
            .nth(1)
            .unwrap()
            .ends_with("needle in a haystack")
    );
}
