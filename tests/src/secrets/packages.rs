//! Programs that an environment's packages bring, and what they find in their image.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{SECRET, bash, credential, session, site::Site, vault};
use crate::{
    docker::docker,
    world::{Server, World},
};

/// The host of these programs' requests.
pub const HOST: &str = super::LISTED;

#[rustfmt::skip]
const PROGRAMS: &[(&str, &str)] = &[
    ("requests", "python3 -c 'import os, requests; requests.post(\"https://api.example.test/\", headers={\"Authorization\": \"Bearer \" + os.environ[\"TOKEN\"]}, json={\"t\": os.environ[\"TOKEN\"]})'"),
    ("httpx", "python3 -c 'import os, httpx; httpx.post(\"https://api.example.test/\", headers={\"Authorization\": \"Bearer \" + os.environ[\"TOKEN\"]}, json={\"t\": os.environ[\"TOKEN\"]})'"),
    ("aiohttp", "python3 -c '\nimport aiohttp, asyncio, os\nasync def main():\n  token = os.environ[\"TOKEN\"]\n  async with aiohttp.ClientSession() as s:\n    async with s.post(\"https://api.example.test/\", headers={\"Authorization\": \"Bearer \" + token}, json={\"t\": token}) as r: await r.text()\nasyncio.run(main())'"),
    ("Go", r#"mkdir -p /tmp/secrets && cd /tmp/secrets && cat > main.go <<'PROGRAM'
package main

import ("net/http"; "os"; "strings")

func main() {
	token := os.Getenv("TOKEN")
	request, _ := http.NewRequest("POST", "https://api.example.test/", strings.NewReader(`{"t": "` + token + `"}`))
	request.Header.Set("Authorization", "Bearer " + token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil { panic(err) }
	answer.Body.Close()
}
PROGRAM
go run main.go"#),
];

/// Another session on an environment with packages, this one with a vault.
pub async fn use_secrets(
    world: &World,
    server: &Server,
    environment: &str,
    image: &str,
    site: &Site,
) -> Result<()> {
    let client = server.client();
    let vault = vault(&client).await?;
    credential(&client, &vault, json!({})).await?;
    let session = session(&client, environment, &[&vault]).await?;
    for (name, command) in PROGRAMS {
        let (said, _) = bash(world, server, &session, command).await?;
        let seen = site.take_seen();
        let context = || format!("{name}\n{said}\n{seen:#?}");
        let last = seen.last().with_context(context)?;
        ensure!(
            last.header("authorization") == Some(&*format!("Bearer {SECRET}")),
            context()
        );
        let body: Value = serde_json::from_str(&last.body).with_context(context)?;
        ensure!(body["t"] == SECRET, context());
    }
    // The image, which is for all sessions, has neither the variable nor the door's authority.
    let look = "env; cat /etc/ssl/certs/ca-certificates.crt | \
        python3 -c 'import sys; print(sys.stdin.read())'; ls /usr/local/share/ca-certificates";
    let inside = docker(&[
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=bash",
        image,
        "-c",
        look,
    ])
    .await?;
    ensure!(
        inside.contains("PATH=") && inside.contains("BEGIN CERTIFICATE"),
        "{inside}"
    );
    ensure!(
        !inside.contains("TOKEN") && !inside.contains("placeholder_"),
        "{inside}"
    );
    let (with, _) = bash(
        world,
        server,
        &session,
        "awk '/Added by Selfsame: begin/,/Added by Selfsame: end/' /etc/ssl/certs/ca-certificates.crt",
    )
    .await?;
    let doors = with
        .split("-----BEGIN CERTIFICATE-----")
        .last()
        .unwrap_or_default();
    let line = doors.lines().nth(2).context("a certificate")?;
    ensure!(!inside.contains(line), "the image trusts the door");
    Ok(())
}
