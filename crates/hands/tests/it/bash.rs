use std::{fs, time::Instant};

use serde_json::json;
use uuid::Uuid;

use crate::harness::{Bench, failure, success, until};

#[tokio::test]
async fn the_shell_keeps_its_state_from_call_to_call() {
    let bench = Bench::new().await;
    assert_eq!(
        bench
            .ok("mkdir -p a && cd a && export X=1; y=2; f() { echo in f; }")
            .await,
        "(no output)"
    );
    assert_eq!(
        bench.ok("echo $PWD $X $y; f").await,
        format!("{} 1 2\nin f", bench.path("a").display())
    );
    bench.ok("sleep 1000 & echo $! > pid").await;
    assert_eq!(bench.ok("kill -0 $(cat pid) && jobs -r | wc -l").await, "1");
}

#[tokio::test]
async fn each_thread_has_a_shell_of_its_own_on_the_same_files() {
    let mut bench = Bench::new().await;
    bench.ok("x=1; echo shared > file").await;
    bench.shell = Uuid::now_v7();
    assert_eq!(bench.ok("echo \"[$x]\"; cat file").await, "[]\nshared");
}

#[tokio::test]
async fn output_and_status_become_results() {
    let bench = Bench::new().await;
    assert_eq!(bench.ok("echo out; echo err >&2").await, "out\nerr");
    assert_eq!(bench.ok("true").await, "(no output)");
    assert_eq!(bench.ok("printf 'a\\n\\n\\n'").await, "a");
    assert_eq!(bench.ok("printf '\\033[31mred\\033[0m'").await, "red");
    assert_eq!(bench.ok("echo $TERM").await, "dumb");
    assert_eq!(
        bench.ok("cat; read x; echo \"stdin: [$x]\"").await,
        "stdin: []"
    );
    assert_eq!(bench.ok("printf 'a\\0b\\xff' ").await, "a\0b\u{fffd}");
    assert_eq!(failure(bench.bash("echo oops; false").await), "oops");
    assert_eq!(failure(bench.bash("(exit 7)").await), "exit code 7");
    assert!(failure(bench.bash("no-such-program").await).contains("command not found"));
    assert_eq!(
        failure(bench.run("bash", json!({})).await),
        "bash: command is required"
    );
    assert!(
        failure(bench.run("bash", json!({ "command": 1 })).await)
            .starts_with("bash: invalid input")
    );
    assert_eq!(
        failure(bench.run("dance", json!({})).await),
        "dance: no such tool"
    );
    // Unknown keys are nobody's business.
    assert_eq!(
        success(
            bench
                .run("bash", json!({ "command": "echo x", "why": "?" }))
                .await
        ),
        "x"
    );
}

#[tokio::test]
async fn nothing_that_a_command_says_looks_like_its_end() {
    let bench = Bench::new().await;
    for (command, says) in [
        ("echo 'unterminated", "unexpected EOF"),
        ("echo \"unterminated", "unexpected EOF"),
        ("if true; then", "syntax error"),
        ("}", "syntax error"),
        ("done; done", "syntax error"),
        ("$(", "unexpected EOF"),
    ] {
        let text = failure(bench.bash(command).await);
        assert!(text.contains(says), "{command}: {text}");
    }
    // A here-document without end is only warned of.
    assert!(bench.ok("cat <<END\nx").await.contains('x'));
    for command in [
        "exec >/dev/null",
        "exec 1>&- 2>&-",
        "exec 200>&- 201>&- 202>&- 203>&- 204>&- 205>&- 206>&- 207>&-",
        "set -x",
        "set -v",
        "set -u",
        "IFS=0123456789",
        "trap 'echo trapped' DEBUG ERR",
        "read() { return 1; }; printf() { echo mine; }; eval() { echo mine; }",
        "unset $(compgen -v)",
    ] {
        let _ = bench.bash(command).await;
        let text = bench.ok("echo alive").await;
        assert!(text.contains("alive"), "{command}: {text}");
        assert!(!text.contains("_hands"), "{command}: {text}");
        assert!(!text.contains("new bash session"), "{command}: {text}");
        bench.run("bash", json!({ "restart": true })).await;
    }
    // One that goes out of its way harms itself only.
    bench
        .bash("for fd in /proc/$$/fd/*; do echo ' 0' > $fd; done 2>/dev/null")
        .await;
    // What it forged late may still end the next call early; a fresh shell knows nothing of it.
    bench.run("bash", json!({ "restart": true })).await;
    assert!(bench.ok("echo alive").await.contains("alive"));
    bench
        .bash("for fd in /proc/$$/fd/*; do (sleep 0.1; yes ' 0' > $fd) & done 2>/dev/null")
        .await;
    bench.run("bash", json!({ "restart": true })).await;
    assert_eq!(bench.ok("echo alive").await, "alive");
}

#[tokio::test]
async fn a_shell_that_ends_is_followed_by_a_new_one_that_says_so() {
    let bench = Bench::new().await;
    bench.ok("x=1").await;
    assert_eq!(failure(bench.bash("echo bye; exit 3").await), "bye");
    let text = bench.ok("echo \"[$x]\"").await;
    assert_eq!(
        text,
        "[new bash session: the previous shell ended with exit code 3; its state is lost]\n[]"
    );
    assert_eq!(bench.ok("echo again").await, "again");

    assert_eq!(success(bench.bash("exec echo replaced").await), "replaced");
    assert!(bench.ok("true").await.starts_with("[new bash session"));
    assert_eq!(failure(bench.bash("kill -9 $$").await), "signal 9");
    assert!(bench.ok("true").await.starts_with("[new bash session"));
    // In POSIX mode a syntax error ends a shell.
    assert!(failure(bench.bash("set -o posix; eval '('").await).contains("syntax error"));
    assert!(bench.ok("true").await.starts_with("[new bash session"));
    bench.ok("set -e").await;
    assert_eq!(failure(bench.bash("false").await), "exit code 1");
    assert!(bench.ok("true").await.starts_with("[new bash session"));
}

#[tokio::test]
async fn restart_ends_everything_that_the_shell_started() {
    let bench = Bench::new().await;
    bench
        .ok("x=1; setsid sleep 1000 & echo $! > pid; wait $! & disown -a; cat pid")
        .await;
    let pid = fs::read_to_string(bench.path("pid"))
        .unwrap()
        .trim()
        .to_owned();
    assert_eq!(
        success(bench.run("bash", json!({ "restart": true })).await),
        "bash session restarted"
    );
    until("the sleep ended", || !alive(&pid)).await;
    assert_eq!(bench.ok("echo \"[$x]\"").await, "[]");
    // A shell that has not been used can be restarted, too.
    assert_eq!(
        success(
            bench
                .run("bash", json!({ "restart": true, "command": "x" }))
                .await
        ),
        "bash session restarted"
    );
}

fn alive(pid: &str) -> bool {
    selfsame_hands::procs::Stat::read(pid.parse().unwrap()).is_some_and(|stat| !stat.dead)
}

#[tokio::test]
async fn a_time_limit_kills_the_group_and_those_who_left_it() {
    let bench = Bench::new().await;
    let command = "
        setsid sleep 1000 & echo $! > setsid
        (trap '' TERM; sleep 1000 & echo $! > stubborn; wait; wait) &
        set -m; sleep 1000 & echo $! > monitor; set +m
        until [ -s stubborn ]; do :; done
        echo started
        sleep 1000";
    let started = Instant::now();
    let result = bench
        .run("bash", json!({ "command": command, "timeout_ms": 500 }))
        .await;
    let text = failure(result);
    assert!(text.starts_with("started\n"), "{text}");
    assert!(
        text.ends_with("\n\nbash: command timed out after 0.5s and was killed"),
        "{text}"
    );
    assert!(started.elapsed().as_secs() < 5);
    for name in ["setsid", "stubborn", "monitor"] {
        let pid = fs::read_to_string(bench.path(name))
            .unwrap()
            .trim()
            .to_owned();
        assert!(!alive(&pid), "{name} lives");
    }
    let text = bench.ok("echo next").await;
    assert!(
        text.starts_with("[new bash session: the previous command timed out"),
        "{text}"
    );
    assert!(text.ends_with("\nnext"));
}

#[tokio::test]
async fn a_detached_server_of_an_earlier_command_survives_a_time_limit() {
    let bench = Bench::new().await;
    bench
        .ok("setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > pid")
        .await;
    bench
        .ok("until [ \"$(ps -o sid= -p $(cat pid))\" -eq \"$(cat pid)\" ]; do :; done")
        .await;
    let result = bench
        .run("bash", json!({ "command": "sleep 1000", "timeout_ms": 50 }))
        .await;
    assert_eq!(
        failure(result),
        "bash: command timed out after 0.05s and was killed"
    );
    assert_eq!(
        bench
            .ok("kill -0 $(cat pid) && echo alive")
            .await
            .lines()
            .last(),
        Some("alive")
    );
}

#[tokio::test]
async fn a_background_process_that_holds_the_output_delays_nobody() {
    let bench = Bench::new().await;
    let started = Instant::now();
    assert_eq!(bench.ok("sleep 1000 & echo started").await, "started");
    // Here the shell itself ends, and only the end of its output would tell that all has come.
    assert_eq!(bench.ok("sleep 1000 & echo bye; exit 0").await, "bye");
    assert!(started.elapsed().as_secs() < 5);
}

#[tokio::test]
async fn a_background_process_never_blocks_on_output_that_nobody_asked_for() {
    let bench = Bench::new().await;
    // More than any pipe holds, printed while no command runs.
    bench
        .ok("(until [ -e go ]; do sleep 0.01; done; seq 100000; touch written) &")
        .await;
    bench.put("go", "");
    until("everything was written", || bench.path("written").exists()).await;
    let text = bench.ok("echo now").await;
    assert!(
        text.ends_with("100000\nnow"),
        "{}",
        &text[text.len().saturating_sub(200)..]
    );
    assert!(text.len() < 40 << 10);
}

#[tokio::test]
async fn long_output_is_kept_in_a_file_and_shown_in_part() {
    let bench = Bench::new().await;
    let call = bench.make("bash", json!({ "command": "seq 1000000; echo end" }));
    let text = success(bench.sandbox.call(&call).await.unwrap());
    let path = bench
        .place("/mnt/session/tool-outputs")
        .join(format!("{}.txt", call.spill_name));
    assert!(
        text.starts_with("[output truncated]\nThe output has 6888900 characters; all of it is in ")
    );
    assert!(text.contains(&path.display().to_string()));
    assert!(text.contains("\n\n1\n2\n3\n") && text.ends_with("1000000\nend"));
    let file = fs::read_to_string(path).unwrap();
    assert!(file.starts_with("1\n2\n") && file.ends_with("1000000\nend\n"));

    // Just below the limit everything is returned.
    let text = bench.ok("head -c 100000 /dev/zero | tr '\\0' x").await;
    assert_eq!(text.len(), 100_000);
    let text = bench.ok("head -c 100001 /dev/zero | tr '\\0' x").await;
    assert!(text.starts_with("[output truncated]"));
}

#[tokio::test]
async fn a_flood_costs_no_memory() {
    let bench = Bench::new().await;
    let text = bench
        .ok("head -c 100000000 /dev/zero | tr '\\0' '\\n'; echo $PPID")
        .await;
    let hands: i32 = text.lines().last().unwrap().parse().unwrap();
    let status = fs::read_to_string(format!("/proc/{hands}/status")).unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let peak: u64 = peak
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(peak < 40 << 10, "{peak} KiB");
}

#[tokio::test]
async fn the_servers_secrets_never_reach_a_shell() {
    let bench = Bench::with_env(&[
        ("ANTHROPIC_API_KEY", "canary"),
        ("SELFSAME_MASTER_KEY", "canary"),
        ("GREETING", "hello"),
    ])
    .await;
    let text = bench.ok("env; cat /proc/self/environ").await;
    // The control: what should be there is.
    assert!(text.contains("GREETING=hello"));
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn large_commands_arrive_whole() {
    let bench = Bench::new().await;
    let data = "ä".repeat(500_000);
    let text = bench
        .ok(&format!("cat > big <<'EOF'\n{data}\nEOF\nwc -c < big"))
        .await;
    assert_eq!(text, (data.len() + 1).to_string());
    let result = bench.bash("echo a\0b").await;
    assert_eq!(failure(result), "bash: command contains a NUL character");
}

#[tokio::test]
async fn commands_of_one_shell_wait_for_each_other() {
    let bench = Bench::new().await;
    let calls: Vec<_> = (0..20)
        .map(|n| {
            bench.make(
                "bash",
                json!({ "command": format!("x={n}; echo {n} >> order; [ $x = {n} ]") }),
            )
        })
        .collect();
    let results = calls.iter().map(|call| bench.sandbox.call(call));
    for result in futures_util::future::join_all(results).await {
        success(result.unwrap());
    }
    assert_eq!(
        fs::read_to_string(bench.path("order"))
            .unwrap()
            .lines()
            .count(),
        20
    );
}

#[tokio::test]
async fn orphans_are_reaped_and_no_status_is_stolen() {
    let bench = Bench::new().await;
    let hands: i32 = bench.ok("echo $PPID").await.parse().unwrap();
    for status in 0..20 {
        let orphans = "for i in 1 2 3 4 5; do (setsid true &); done";
        let result = bench.bash(&format!("{orphans}; exit {status}")).await;
        assert_eq!(result.is_error, status != 0, "{result:?}");
    }
    until("nobody waits to be reaped", || {
        let children = fs::read_to_string(format!("/proc/{hands}/task/{hands}/children")).unwrap();
        children.split_whitespace().all(alive)
    })
    .await;
}
