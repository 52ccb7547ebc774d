//! Figures of the door: a bulk download through it, and a tool call beside one.

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    Bench, bash,
    client::Client,
    listen,
    report::{Figure, Sample},
    tap::{Seen, Tap},
};

/// What a program downloads, by `GET /<bytes>`.
const BULK: u64 = 1 << 30;
/// Rules of the scripted model use it.
pub(crate) const ALONE: &str =
    "curl -sf -o /dev/null -w '%{speed_download}' http://bulk.test/1073741824";
pub(crate) const BESIDE: &str =
    "nohup curl -s -m 120 -o /dev/null http://bulk.test/1099511627776 >/dev/null 2>&1 & echo begun";

pub(crate) async fn door(bench: &mut Bench) -> Result<()> {
    if bench.docker.is_none() {
        // A plain process has no door.
        return Ok(());
    }
    let listener = TcpListener::bind("127.77.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(send(stream));
        }
    });
    let hosts = format!("[{{name = \"bulk.test\", address = \"127.77.0.1:{port}\"}}]");
    let settings = [
        ("SELFSAME__NET__HOSTS", hosts.as_str()),
        ("SELFSAME__NET__ALLOWED_RANGES", "[\"127.77.0.0/16\"]"),
    ];
    let server = bench.server(&settings).await?;
    let client = server.client();
    let session = client.session(bash()).await?;
    let mut tap = listen(&client, &session).await?;

    // Once to warm up.
    say(&client, &session, &mut tap, "bulk alone").await?;
    let (_, texts) = say(&client, &session, &mut tap, "bulk alone").await?;
    let through = texts.first().context("a speed")?.trim().parse::<f64>()? / 1e6;
    let direct = Command::new("curl")
        .args(["-sf", "-o", "/dev/null", "-w", "%{speed_download}"])
        .arg(format!("http://127.77.0.1:{port}/{BULK}"))
        .output()
        .await
        .context("curl")?;
    let direct: f64 = String::from_utf8_lossy(&direct.stdout).trim().parse()?;
    bench.report.add(
        Figure::rate("11 a download through the door", through.round(), "MB/s").note(format!(
            "the same without sandbox and server: {:.0} MB/s",
            direct / 1e6
        )),
    );

    let (times, _) = say(&client, &session, &mut tap, "bulk beside").await?;
    let sample = Sample::new(times[10..].to_vec());
    bench.report.add(
        Figure::p50("12 bash true, beside a download through the door", &sample)
            .floor("commit", bench.commit.p50()),
    );
    Ok(())
}

/// One turn: how long each call took, and what it printed.
async fn say(
    client: &Client,
    session: &str,
    tap: &mut Tap,
    text: &str,
) -> Result<(Vec<Duration>, Vec<String>)> {
    client.say(session, text).await?;
    let (mut times, mut texts) = (Vec::new(), Vec::new());
    let mut called = None::<Instant>;
    loop {
        let seen: Seen = tap.next().await?;
        if seen.is("agent.tool_use") {
            called = Some(seen.at);
        } else if seen.is("agent.tool_result") {
            let result = seen.data()?;
            ensure!(result["is_error"] != true, "{result}");
            times.push(seen.at - called.take().context("a call")?);
            let text = result["content"][0]["text"].as_str();
            texts.push(text.unwrap_or_default().to_owned());
        } else if seen.is("session.status_idle") {
            return Ok((times, texts));
        }
    }
}

/// Answers one request with as many bytes as its path says.
async fn send(mut stream: TcpStream) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let size = head
        .strip_prefix("GET /")
        .and_then(|rest| rest.split(' ').next());
    let mut left: u64 = size.context("a size")?.parse()?;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await?;
    let block = vec![7_u8; 256 << 10];
    while left > 0 {
        let count = left.min(block.len() as u64);
        stream.write_all(&block[..usize::try_from(count)?]).await?;
        left -= count;
    }
    stream.shutdown().await?;
    Ok(())
}
