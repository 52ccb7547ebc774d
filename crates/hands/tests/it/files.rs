use std::{fs, os::unix::fs::PermissionsExt};

use base64::{Engine, prelude::BASE64_STANDARD};
use selfsame_sandbox::{CallResult, Content};
use serde_json::{Value, json};

use crate::harness::{Bench, failure, success};

async fn read(bench: &Bench, input: Value) -> CallResult {
    bench.run("read", input).await
}

#[tokio::test]
async fn text_is_read_verbatim() {
    let bench = Bench::new().await;
    bench.put("a.txt", "one\r\n\ttwo\nthree ü\n\n");
    assert_eq!(
        success(read(&bench, json!({ "file_path": "a.txt" })).await),
        "one\r\n\ttwo\nthree ü\n\n"
    );
    let absolute = bench.path("a.txt");
    assert_eq!(
        success(
            read(
                &bench,
                json!({ "file_path": absolute, "view_range": [2, 2] })
            )
            .await
        ),
        "\ttwo"
    );
    for (range, text) in [
        (json!([1, 2]), "one\r\n\ttwo"),
        (json!([3, -1]), "three ü\n\n"),
        (json!([3, 0]), "three ü\n\n"),
        (json!([0, 1]), "one\r"),
        (json!([4, 9]), "\n"),
        (json!([9, 20]), "(no output)"),
        (json!([3, 2]), "(no output)"),
        (json!(null), "one\r\n\ttwo\nthree ü\n\n"),
    ] {
        let result = read(&bench, json!({ "file_path": "a.txt", "view_range": range })).await;
        assert_eq!(success(result), text, "{range}");
    }
    bench.put("empty", "");
    assert_eq!(
        success(read(&bench, json!({ "file_path": "empty" })).await),
        "(no output)"
    );
}

#[tokio::test]
async fn large_files_need_a_range() {
    let bench = Bench::new().await;
    let line = format!("{}\n", "x".repeat(999));
    bench.put("big", line.repeat(300));
    let text = failure(read(&bench, json!({ "file_path": "big" })).await);
    assert!(
        text.contains("300000 bytes, exceeds the 262144-byte limit") && text.contains("view_range"),
        "{text}"
    );
    let text = success(
        read(
            &bench,
            json!({ "file_path": "big", "view_range": [299, 300] }),
        )
        .await,
    );
    assert_eq!(text, line.repeat(2).trim_end());
    let text = failure(
        read(
            &bench,
            json!({ "file_path": "big", "view_range": [1, 290] }),
        )
        .await,
    );
    assert!(text.contains("select fewer lines"), "{text}");
    // Readable, but too long for the model.
    let text = success(
        read(
            &bench,
            json!({ "file_path": "big", "view_range": [1, 200] }),
        )
        .await,
    );
    assert!(
        text.starts_with("[output truncated]\nThe output has 199999 characters; all of it is in "),
        "{text}"
    );
}

#[tokio::test]
async fn images_and_documents_become_blocks() {
    let bench = Bench::new().await;
    let bytes = b"\x89PNG\r\n\x1a\n\xff\x00data";
    for (name, expected) in [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.jpeg", "image/jpeg"),
        ("a.gif", "image/gif"),
        ("a.webp", "image/webp"),
    ] {
        bench.put(name, bytes);
        let result = read(&bench, json!({ "file_path": name })).await;
        let [
            Content::Image {
                media_type,
                data_base64,
            },
        ] = result.content.as_slice()
        else {
            panic!("{name}: {result:?}");
        };
        assert_eq!(media_type, expected);
        assert_eq!(BASE64_STANDARD.decode(data_base64).unwrap(), bytes);
    }
    bench.put("a.pdf", b"%PDF-1.7");
    let result = read(&bench, json!({ "file_path": "a.pdf" })).await;
    assert!(
        matches!(result.content.as_slice(), [Content::Document { media_type, .. }] if media_type == "application/pdf")
    );

    let text = failure(
        read(
            &bench,
            json!({ "file_path": "a.pdf", "view_range": [1, 2] }),
        )
        .await,
    );
    assert_eq!(
        text,
        "read: view_range is not supported for image/PDF files"
    );
    bench.put("a.bin", [0xff, 0xfe]);
    assert!(
        failure(read(&bench, json!({ "file_path": "a.bin" })).await).contains("not valid UTF-8")
    );

    // The largest ones that are allowed cross the stream; one byte more does not.
    bench.put("max.pdf", vec![0; 20 << 20]);
    assert!(
        !read(&bench, json!({ "file_path": "max.pdf" }))
            .await
            .is_error
    );
    bench.put("over.pdf", vec![0; (20 << 20) + 1]);
    assert!(
        failure(read(&bench, json!({ "file_path": "over.pdf" })).await)
            .contains("exceeds the 20971520-byte limit")
    );
    bench.put("max.png", vec![0; 3_932_160]);
    assert!(
        !read(&bench, json!({ "file_path": "max.png" }))
            .await
            .is_error
    );
    bench.put("over.png", vec![0; 3_932_161]);
    assert!(failure(read(&bench, json!({ "file_path": "over.png" })).await).contains("exceeds"));
}

#[tokio::test]
async fn faults_are_short_phrases() {
    let bench = Bench::new().await;
    bench
        .ok("mkdir dir; mkfifo fifo; ln -s loop loop; echo x > file")
        .await;
    for (path, phrase) in [
        ("nothing", "no such file or directory"),
        ("dir", "is a directory"),
        ("fifo", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("loop", "too many levels of symbolic links"),
        ("file/x", "not a directory"),
    ] {
        let text = failure(read(&bench, json!({ "file_path": path })).await);
        assert_eq!(text, format!("read: {path}: {phrase}"));
        if path != "nothing" {
            let write = bench
                .run("write", json!({ "file_path": path, "content": "x" }))
                .await;
            let text = failure(write);
            assert!(text.starts_with(&format!("write: {path}: ")), "{text}");
        }
    }
    assert!(failure(read(&bench, json!({})).await).contains("missing field `file_path`"));
    assert_eq!(
        failure(read(&bench, json!({ "file_path": "" })).await),
        "read: file_path is empty"
    );
    let text = failure(read(&bench, json!({ "file_path": "file", "view_range": [1] })).await);
    assert_eq!(text, "read: view_range must be [start_line, end_line]");
    let long = "x".repeat(300);
    let text = failure(read(&bench, json!({ "file_path": long })).await);
    assert!(text.ends_with("file name too long"), "{text}");
    // A read-only file system, as a memory mount is one.
    let text = failure(
        bench
            .run(
                "write",
                json!({ "file_path": "/proc/sys/kernel/x", "content": "" }),
            )
            .await,
    );
    assert!(text.starts_with("write: /proc/sys/kernel/x: "), "{text}");
}

#[tokio::test]
async fn write_creates_overwrites_and_keeps_the_mode() {
    let bench = Bench::new().await;
    let result = bench
        .run(
            "write",
            json!({ "file_path": "deep/er/a.sh", "content": "grün\n" }),
        )
        .await;
    assert_eq!(success(result), "wrote 6 bytes to deep/er/a.sh");
    let path = bench.path("deep/er/a.sh");
    assert_eq!(fs::read_to_string(&path).unwrap(), "grün\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    success(
        bench
            .run("write", json!({ "file_path": path, "content": "x" }))
            .await,
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o750
    );
    success(
        bench
            .run("write", json!({ "file_path": "empty", "content": "" }))
            .await,
    );
    assert_eq!(fs::read_to_string(bench.path("empty")).unwrap(), "");
}

#[tokio::test]
async fn edit_replaces_exact_text() {
    let bench = Bench::new().await;
    bench.put("a", "one two two\r\n");
    let edit = |old: &str, new: &str, all: Value| {
        let input =
            json!({ "file_path": "a", "old_string": old, "new_string": new, "replace_all": all });
        bench.run("edit", input)
    };
    assert_eq!(
        failure(edit("three", "", json!(false)).await),
        "edit: old_string not found in a"
    );
    assert_eq!(
        failure(edit("two", "2", json!(null)).await),
        "edit: old_string appears 2 times in a (must be unique)"
    );
    assert_eq!(
        failure(edit("", "2", json!(true)).await),
        "edit: old_string is empty"
    );
    assert_eq!(
        success(edit("two", "$2", json!(true)).await),
        "edited a (2 replacement(s))"
    );
    assert_eq!(
        success(edit("one ", "", json!(false)).await),
        "edited a (1 replacement(s))"
    );
    assert_eq!(fs::read_to_string(bench.path("a")).unwrap(), "$2 $2\r\n");
    bench.put("a", vec![b'x'; 262_145]);
    assert!(failure(edit("x", "y", json!(true)).await).contains("262145 bytes, exceeds"));
    bench.put("a", [0xff]);
    assert!(failure(edit("x", "y", json!(true)).await).contains("not valid UTF-8"));
}
