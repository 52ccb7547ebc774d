//! A user's own material: files go in, outputs come back, and nothing else comes along.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, count, settled, shape},
    world::World,
};

const TOOLS: &str = "agent_toolset_20260401";

/// Uploads a file and answers its id.
pub async fn upload(client: &Client, name: &str, content: impl Into<Vec<u8>>) -> Result<String> {
    let mut body = format!(
        "--edge\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend(content.into());
    body.extend(b"\r\n--edge--\r\n");
    let response = client
        .request(Method::POST, "/v1/files")
        .header("content-type", "multipart/form-data; boundary=edge")
        .body(body)
        .send()
        .await?;
    ensure!(response.status().is_success(), "{}", response.text().await?);
    let file: Value = response.json().await?;
    Ok(file["id"].as_str().context("an id")?.to_owned())
}

pub async fn download(client: &Client, id: &str) -> Result<(u16, Vec<u8>)> {
    let path = format!("/v1/files/{id}/content");
    let response = client.request(Method::GET, &path).send().await?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await?.to_vec()))
}

/// A session of a fresh agent with all tools and these resources.
async fn session_with(client: &Client, resources: Value) -> Result<Value> {
    let name = uuid::Uuid::now_v7().to_string();
    let environment = client
        .post("/v1/environments", &json!({"name": name}))
        .await?;
    let agent = json!({"name": "bench", "model": "mock", "tools": [{"type": TOOLS}]});
    let agent = client.post("/v1/agents", &agent).await?;
    let body = json!({
        "agent": agent["id"], "environment_id": environment["id"], "resources": resources,
    });
    client.post("/v1/sessions", &body).await
}

fn id(value: &Value) -> Result<String> {
    Ok(value["id"].as_str().context("an id")?.to_owned())
}

/// The texts of all tool results, in order.
fn results(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .filter(|event| event["type"] == "agent.tool_result")
        .map(|event| {
            event["content"][0]["text"]
                .as_str()
                .unwrap_or("")
                .to_owned()
        })
        .collect()
}

async fn files_of(client: &Client, session: &str) -> Result<Vec<Value>> {
    let page = client
        .get(&format!("/v1/files?scope_id={session}&limit=1000"))
        .await?;
    Ok(page["data"].as_array().context("data")?.clone())
}

#[tokio::test]
async fn a_file_goes_in_and_an_output_comes_back() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let client = server.client();
    let csv = b"name,value\na,1\nb,41\n".to_vec();
    let file = upload(&client, "numbers.csv", csv.clone()).await?;
    let session = session_with(
        &client,
        json!([
            {"type": "file", "file_id": file, "mount_path": "/workspace/numbers.csv"},
            {"type": "file", "file_id": file},
        ]),
    )
    .await?;
    let resources = session["resources"].as_array().context("resources")?;
    ensure!(resources.len() == 2, "{resources:#?}");
    let copy = &resources[0];
    ensure!(copy["mount_path"] == "/mnt/session/uploads/workspace/numbers.csv");
    ensure!(copy["file_id"] != file.as_str(), "the session has a copy");
    ensure!(resources[1]["mount_path"] == format!("/mnt/session/uploads/{file}"));
    let session = id(&session)?;
    let shown = client
        .get(&format!("/v1/sessions/{session}/resources"))
        .await?;
    ensure!(shown["data"] == json!(resources), "{shown:#?}");

    // The original may go: the copy is the session's own.
    client
        .request(Method::DELETE, &format!("/v1/files/{file}"))
        .send()
        .await?;
    client
        .say(
            &session,
            "!bash cat ../mnt/session/uploads/workspace/numbers.csv\n\
             !bash mkdir -p ../mnt/session/outputs/deep && awk -F, 'NR>1{s+=$2}END{print s}' numbers.csv \
             > ../mnt/session/outputs/deep/sum.txt && : > ../mnt/session/outputs/empty\n\
             !write /mnt/session/uploads/workspace/numbers.csv mine",
        )
        .await?;
    let events = settled(&server, &session).await?;
    let said = results(&events);
    ensure!(
        said[0].trim_end() == String::from_utf8_lossy(&csv).trim_end(),
        "{said:?}"
    );
    ensure!(said[2].contains("read-only"), "{said:?}");

    // Complete as soon as the idle event can be seen.
    let files = files_of(&client, &session).await?;
    let named = |name: &str| files.iter().find(|file| file["filename"] == name);
    let sum = named("sum.txt").context("the output")?;
    ensure!(
        sum["downloadable"] == true && sum["scope"]["id"] == session.as_str(),
        "{sum}"
    );
    ensure!(
        sum["mime_type"] == "text/plain" && sum["size_bytes"] == 3,
        "{sum}"
    );
    ensure!(download(&client, &id(sum)?).await? == (200, b"42\n".to_vec()));
    ensure!(named("empty").context("the empty one")?["size_bytes"] == 0);
    let input = named("numbers.csv").context("the input")?;
    ensure!(input["downloadable"] == false);
    ensure!(download(&client, &id(input)?).await?.0 == 400);
    ensure!(files.len() == 4, "{files:#?}");
    Ok(())
}

#[tokio::test]
async fn changed_outputs_replace_and_deleted_ones_stay() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let client = server.client();
    let session = client.session(json!([{"type": TOOLS}])).await?;
    let write = async |command: &str| -> Result<Vec<Value>> {
        client
            .say(
                &session,
                &format!("!bash (cd ../mnt/session/outputs && {command})"),
            )
            .await?;
        settled(&server, &session).await?;
        files_of(&client, &session).await
    };
    let first = write(
        "cd . && printf one > a && mkdir d && printf nested > d/a && ln -s a link && mkfifo pipe",
    )
    .await?;
    ensure!(
        first.len() == 2,
        "links and pipes are no outputs: {first:#?}"
    );
    let second = write("printf changed > a").await?;
    ensure!(second.len() == 2, "{second:#?}");
    let kept = first.iter().filter(|file| second.contains(file)).count();
    ensure!(kept == 1, "what did not change has the same id");
    let third = write("touch a && rm -r d").await?;
    let ids = |files: &[Value]| {
        let mut ids: Vec<_> = files.iter().map(|file| file["id"].to_string()).collect();
        ids.sort();
        ids
    };
    ensure!(ids(&third) == ids(&second), "{third:#?}");
    let mut contents = Vec::new();
    for file in &third {
        contents.push(download(&client, &id(file)?).await?.1);
    }
    contents.sort();
    ensure!(contents == [b"changed".to_vec(), b"nested".to_vec()]);

    // Names that a file may not have outside, and many files.
    let many =
        write("touch 'a:b|c' \"$(printf 'x\\ny')\" && for i in $(seq 300); do echo $i > f$i; done")
            .await?;
    ensure!(many.len() == 304, "{}", many.len());
    ensure!(
        many.iter().any(|file| file["filename"] == "a_b_c"),
        "{many:#?}"
    );

    // With its session everything goes.
    let path = format!("/v1/sessions/{session}");
    client.request(Method::DELETE, &path).send().await?;
    ensure!(download(&client, &id(&third[0])?).await?.0 == 404);
    Ok(())
}

#[tokio::test]
async fn files_come_and_go_while_a_session_lives() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let client = server.client();
    let session = client.session(json!([{"type": TOOLS}])).await?;
    let path = format!("/v1/sessions/{session}/resources");
    client
        .say(&session, "!bash ls ../mnt/session/uploads")
        .await?;
    settled(&server, &session).await?;

    let file = upload(&client, "late.txt", "late").await?;
    let body = json!({"type": "file", "file_id": file, "mount_path": "late.txt"});
    let added = client.post(&path, &body).await?;
    ensure!(
        added["mount_path"] == "/mnt/session/uploads/late.txt",
        "{added}"
    );
    let again = client
        .request(Method::POST, &path)
        .json(&body)
        .send()
        .await?;
    ensure!(again.status() == 400, "the path is taken");
    client
        .say(&session, "!read /mnt/session/uploads/late.txt")
        .await?;
    let events = settled(&server, &session).await?;
    ensure!(results(&events).last().context("a result")? == "late");

    let resource = format!("{path}/{}", id(&added)?);
    ensure!(client.get(&resource).await? == added);
    let deleted = client.request(Method::DELETE, &resource).send().await?;
    let deleted: Value = deleted.json().await?;
    ensure!(
        deleted == json!({"id": added["id"], "type": "session_resource_deleted"}),
        "{deleted}"
    );
    ensure!(client.get(&path).await?["data"] == json!([]));
    client
        .say(&session, "!read /mnt/session/uploads/late.txt")
        .await?;
    let events = settled(&server, &session).await?;
    ensure!(
        results(&events)
            .last()
            .context("a result")?
            .contains("no such file")
    );
    ensure!(
        count(&events, "session.error") == 0,
        "{:#?}",
        shape(&events)
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_in_words() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let client = server.client();
    let file = upload(&client, "a.txt", "a").await?;
    let refused = async |resources: Value, part: &str| -> Result<()> {
        match session_with(&client, resources.clone()).await {
            Ok(_) => anyhow::bail!("{resources} was accepted"),
            Err(error) => {
                let text = error.to_string();
                ensure!(text.contains("400") && text.contains(part), "{text}");
                Ok(())
            }
        }
    };
    let at = |path: &str| json!([{"type": "file", "file_id": file, "mount_path": path}]);
    refused(at("../../etc/passwd"), "`.` or `..`").await?;
    refused(at("/a/../b"), "`.` or `..`").await?;
    let twice = json!([
        {"type": "file", "file_id": file, "mount_path": "/a"},
        {"type": "file", "file_id": file, "mount_path": "a"},
    ]);
    refused(twice, "resources[1].mount_path").await?;
    let unknown = json!([
        {"type": "file", "file_id": file},
        {"type": "file", "file_id": "file_011111111111111111111111"},
    ]);
    refused(unknown, "resources[1].file_id").await?;
    let url = |url: &str| json!([{"type": "github_repository", "url": url}]);
    refused(
        url("https://token@github.com/acme/tool"),
        "resources[0].url",
    )
    .await?;
    refused(url("ssh://git@github.com/acme/tool"), "resources[0].url").await?;
    refused(
        url("https://git.example.com/acme/tool"),
        "clones from github.com only",
    )
    .await?;
    // Nothing was half made.
    let sessions = client.get("/v1/sessions?include_archived=true").await?;
    ensure!(sessions["data"] == json!([]), "{sessions:#?}");
    Ok(())
}

/// Plain processes have no door. Nothing of the machine's own git is touched for them.
#[tokio::test]
async fn without_a_door_a_session_goes_on_without_its_repository() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let client = server.client();
    let before = std::fs::read("/etc/gitconfig").ok();
    let resource = json!({"type": "github_repository", "url": "https://github.com/acme/tool"});
    let session = id(&session_with(&client, json!([resource])).await?)?;
    client.say(&session, "!bash echo still here").await?;
    let events = settled(&server, &session).await?;
    let error = events.iter().find(|event| event["type"] == "session.error");
    let error = &error.context("an error")?["error"];
    ensure!(error["type"] == "repository_clone_error", "{error}");
    ensure!(results(&events)[0].trim_end() == "still here");
    ensure!(std::fs::read("/etc/gitconfig").ok() == before);
    Ok(())
}
