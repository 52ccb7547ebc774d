//! A secret is nowhere inside a sandbox that uses it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::{PATIENCE, SECRET, Setting, site::Seen};

/// Looks for a text wherever a program inside could find it, memories of processes among them. Prints where it
/// was found, never the text itself.
const SEARCH: &str = r#"
python3 - "$half" "$rest" <<'PROGRAM'
import os, sys
needle = (sys.argv[1] + sys.argv[2]).encode()
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid(): continue
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for line in maps:
                at, end = (int(part, 16) for part in line.split()[0].split("-"))
                if line.split()[1][0] != "r" or end - at > 1 << 28: continue
                try:
                    memory.seek(at)
                    if needle in memory.read(end - at): print("memory", open(f"/proc/{pid}/comm").read().strip())
                except (OSError, ValueError, OverflowError): pass
    except OSError: pass
PROGRAM
needle="$half$rest"
grep -rlsaF --exclude-dir=proc --exclude-dir=sys "$needle" / 2>/dev/null | sed 's/^/file /'
for process in /proc/[0-9]*; do
  grep -qsaF "$needle" $process/environ && echo "environment $process"
  grep -qsaF "$needle" $process/cmdline && echo "command line $process"
done
true
"#;

/// Where `text` is inside a session's sandbox. It comes in by halves, so that the search does not find itself.
async fn search(setting: &Setting, session: &str, text: &str) -> Result<String> {
    let (half, rest) = text.split_at(text.len() / 2);
    let command = format!("half={half}; rest={rest}\n{SEARCH}");
    let (found, _) = setting.bash(session, &command).await?;
    Ok(found.replace("(no output)", "").trim().to_owned())
}

#[tokio::test]
async fn a_secret_is_nowhere_inside() -> Result<()> {
    let setting = Setting::new().await?;
    let vault = setting.vault().await?;
    setting.credential(&vault, json!({})).await?;
    let session = setting
        .session(&[&vault], json!({"type": "unrestricted"}))
        .await?;
    // A program that has used it and stays.
    let stays = "node -e 'fetch(\"https://api.example.test/\", {method: \"POST\", body: process.env.TOKEN, \
        headers: {authorization: process.env.TOKEN}}).then(() => setInterval(() => 0, 1000))' >/dev/null 2>&1 & \
        while [ ! -e /tmp/seen ]; do curl -sS -H \"Authorization: $TOKEN\" https://api.example.test/ && touch /tmp/seen; done";
    setting.bash(&session, stays).await?;
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !seen.iter().any(|seen: &Seen| seen.body == SECRET) {
        ensure!(
            Instant::now() < deadline,
            "Node's request never came: {seen:#?}"
        );
        seen.extend(setting.site.take_seen());
        sleep(Duration::from_millis(20)).await;
    }
    let found = search(&setting, &session, SECRET).await?;
    ensure!(found.is_empty(), "{found}");
    // The search is not blind.
    let (half, rest) = SECRET.split_at(9);
    let plant = format!(
        "printf '%s%s' {half} {rest} > /workspace/planted; \
         node -e 'const kept = Buffer.from(process.argv[1] + process.argv[2]); setInterval(() => kept, 1000)' {half} {rest} \
         >/dev/null 2>&1 & sleep 0; until pgrep -f {half} >/dev/null; do :; done; \
         env PLANTED=$(printf %s%s {half} {rest}) tail -f /dev/null >/dev/null 2>&1 &"
    );
    setting.bash(&session, &plant).await?;
    let found = search(&setting, &session, SECRET).await?;
    for kind in ["file /workspace/planted", "environment /proc/", "memory "] {
        ensure!(
            found.contains(kind),
            "the search does not see {kind}: {found}"
        );
    }
    // Nor is it in what the session tells, or in the server's log.
    let events = setting.client().list(&session).await?;
    let told: Vec<String> = events.iter().map(Value::to_string).collect();
    let told = told.iter().filter(|event| event.contains(SECRET)).count();
    ensure!(told == 0, "{told} events have it");
    ensure!(
        !setting.server.whole_log().contains(SECRET),
        "the log has it"
    );
    Ok(())
}
