//! Stands in for the hands where only the backend is tested: `connect` is a shell, so that a test
//! can look around inside, and `serve` waits. Compiled by the tests themselves.

use std::{os::unix::process::CommandExt, process::Command};

const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";

fn main() {
    let mut shell = Command::new("/bin/sh");
    let error = match std::env::args().nth(1).as_deref() {
        Some("serve") => shell.args(["-c", WAIT]).exec(),
        _ => shell.exec(),
    };
    eprintln!("{error}");
}
