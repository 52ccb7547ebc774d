//! The demo model: directives and its small job.

use serde_json::{Value, json};

use crate::client::{Client, user};

/// Plays a conversation with the demo model: `results` answers its calls, round by round.
async fn converse(client: &Client, text: &str, tools: &[&str], results: &[&str]) -> Vec<Value> {
    let tools: Vec<_> = tools
        .iter()
        .map(|t| json!({"name": t, "input_schema": {"type": "object"}}))
        .collect();
    let mut messages = vec![user(text)];
    let mut answers = Vec::new();
    let mut results = results.iter();
    loop {
        let answer = client
            .ask(json!({"model": "m", "thinking": {"type": "adaptive"}, "tools": tools, "messages": messages}))
            .await;
        let blocks = answer["content"].as_array().unwrap().clone();
        answers.push(answer);
        let calls = blocks.iter().filter(|b| b["type"] == "tool_use");
        let given: Vec<_> = calls
            .map(|call| {
                let result = results.next().expect("a result for every call");
                json!({"type": "tool_result", "tool_use_id": call["id"], "content": result})
            })
            .collect();
        messages.push(json!({"role": "assistant", "content": blocks}));
        if given.is_empty() {
            return answers;
        }
        messages.push(json!({"role": "user", "content": given}));
    }
}

#[tokio::test]
async fn directives_drive_tools() {
    let client = Client::new().await;
    let text = "Please\n!say Running.\n!bash echo hi\n!read /x\n!then\n!tool t {\"a\": 1}";
    let answers = converse(&client, text, &[], &["hi", "contents", "last"]).await;
    assert_eq!(answers.len(), 3);
    let names = |i: usize| -> Vec<_> {
        let blocks = answers[i]["content"].as_array().unwrap();
        blocks.iter().filter_map(|b| b["name"].as_str()).collect()
    };
    assert_eq!(names(0), ["bash", "read"]);
    assert_eq!(names(1), ["t"]);
    assert_eq!(answers[2]["content"][0]["text"], "t returned:\nlast");
    assert_eq!(answers[2]["stop_reason"], "end_turn");
    assert_ne!(
        answers[0]["content"][1]["id"],
        answers[0]["content"][2]["id"]
    );

    let answers = converse(&client, "!say only this", &[], &[]).await;
    assert_eq!(
        answers[0]["content"],
        json!([{"type": "text", "text": "only this"}])
    );
}

#[tokio::test]
async fn the_demo_job() {
    let client = Client::new().await;
    let tools = ["bash", "write"];
    let answers = converse(
        &client,
        "Write a Fibonacci program",
        &tools,
        &["ok", "0 1 1 2"],
    )
    .await;
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["content"][0]["type"], "thinking");
    assert_eq!(
        answers[0]["content"][2]["input"]["file_path"],
        "fibonacci.py"
    );
    assert_eq!(
        answers[1]["content"][1]["input"]["command"],
        "python3 fibonacci.py"
    );
    let last = answers[2]["content"][0]["text"].as_str().unwrap();
    assert!(last.contains("bash returned:\n0 1 1 2"), "{last}");

    let answers = converse(&client, "How are you?", &tools, &[]).await;
    let text = answers[0]["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("You said: How are you?"), "{text}");
}

/// The programs of the demo are Python; here is what they print.
#[test]
fn the_demo_programs_run() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let programs: Vec<String> = runtime.block_on(async {
        let client = Client::new().await;
        let mut programs = Vec::new();
        for text in [
            "write fibonacci",
            "write primes",
            "count \"these\" 'words'\n\\n {x} \u{1f980}",
        ] {
            let answers = converse(&client, text, &["bash", "write"], &["ok", "x"]).await;
            let content = &answers[0]["content"][2]["input"]["content"];
            programs.push(content.as_str().unwrap().to_owned());
        }
        programs
    });
    for (program, line) in programs.iter().zip([
        "0 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987 1597 2584 4181",
        "2 3 5 7 11 13 17 19 23 29 31 37 41 43 47 53 59 61 67 71 73 79 83 89 97",
        "6 words, 30 characters",
    ]) {
        let directory = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("python3")
            .args(["-c", program])
            .current_dir(directory.path())
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(printed.starts_with(line), "{printed}\n{errors}\n{program}");
    }
}
