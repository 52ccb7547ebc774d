use std::{fs, time::Duration};

use selfsame_sandbox::{Run, SandboxError};
use uuid::Uuid;

use crate::harness::{Bench, PATIENCE, until};

fn sh(script: &str) -> Run {
    Run {
        id: Uuid::now_v7(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: None,
        timeout: PATIENCE,
        output_limit: 1000,
    }
}

fn alive(pid_file: &std::path::Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    selfsame_hands::procs::Stat::read(pid.trim().parse().unwrap()).is_some_and(|stat| !stat.dead)
}

#[tokio::test]
async fn a_command_of_the_server() {
    let bench = Bench::with_env(&[("FROM_SPEC", "yes")]).await;
    let ran = bench
        .sandbox
        .run(&Run {
            env: vec![("EXTRA".into(), "a b".into())],
            cwd: Some("/mnt/session/outputs".into()),
            ..sh("pwd; echo $EXTRA $FROM_SPEC >&2; cat; exit 3")
        })
        .await
        .unwrap();
    assert_eq!((ran.code, ran.timed_out), (Some(3), false));
    let outputs = bench.place("/mnt/session/outputs");
    assert_eq!(ran.output, format!("{}\na b yes\n", outputs.display()));

    let ran = bench.sandbox.run(&sh("kill -9 $$")).await.unwrap();
    assert_eq!(ran.code, Some(137));
    let long = bench.sandbox.run(&sh("seq 100000")).await.unwrap();
    assert_eq!(long.output.len(), 1000);
    assert!(long.output.ends_with("99999\n100000\n"));

    for (run, what) in [
        (
            Run {
                argv: vec!["no-such-program".into()],
                ..sh("")
            },
            "no such file",
        ),
        (
            Run {
                argv: Vec::new(),
                ..sh("")
            },
            "no command",
        ),
        (
            Run {
                cwd: Some("/nowhere".into()),
                ..sh("")
            },
            "no such file",
        ),
        (
            Run {
                cwd: Some("/../..".into()),
                ..sh("")
            },
            "..",
        ),
        (
            Run {
                argv: vec!["sh".into(), "\0".into()],
                ..sh("")
            },
            "sh: ",
        ),
    ] {
        let error = bench.sandbox.run(&run).await.unwrap_err();
        assert!(
            matches!(&error, SandboxError::Failed(text) if text.contains(what)),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn its_time_limit_ends_all_of_it() {
    let bench = Bench::new().await;
    let ran = bench
        .sandbox
        .run(&Run {
            timeout: Duration::from_millis(300),
            ..sh(
                "echo started; (setsid sleep 1000 & echo $! > pid); trap 'echo asked' TERM; \
                  while :; do sleep 0.01; done",
            )
        })
        .await
        .unwrap();
    assert_eq!((ran.code, ran.timed_out), (None, true));
    // It was asked before it was killed.
    assert!(
        ran.output.starts_with("started\n") && ran.output.contains("asked"),
        "{ran:?}"
    );
    assert!(!alive(&bench.path("pid")));
}

#[tokio::test]
async fn nothing_stays_behind() {
    let bench = Bench::new().await;
    let script = "(setsid sleep 1000 & echo $! > pid); sleep 1000 & echo done";
    let ran = bench.sandbox.run(&sh(script)).await.unwrap();
    assert_eq!((ran.code, ran.output.as_str()), (Some(0), "done\n"));
    assert!(!alive(&bench.path("pid")));

    // Somebody who does not wait any more.
    let run = sh("(setsid sleep 1000 & echo $! > pid2); sleep 1000");
    let waiting = bench.sandbox.run(&run);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), waiting)
            .await
            .is_err()
    );
    until("the command ends", || !alive(&bench.path("pid2"))).await;
}

/// What a dead server began has ended before its successor's first command begins.
#[tokio::test]
async fn servers_do_not_meet() {
    let bench = Bench::new().await;
    let old = bench.sandbox.clone();
    let run = sh("trap '' TERM; echo $$ > pid; while :; do echo x >> log; sleep 0.01; done");
    let waiting = tokio::spawn(async move { old.run(&run).await });
    until("it runs", || bench.path("log").exists()).await;
    let next = bench.attach(2).await.unwrap();
    let ran = next
        .run(&sh("kill -0 $(cat pid) && echo both; wc -l < log"))
        .await
        .unwrap();
    assert!(!ran.output.contains("both"), "{ran:?}");
    assert!(matches!(waiting.await.unwrap(), Err(SandboxError::Lost)));
}
