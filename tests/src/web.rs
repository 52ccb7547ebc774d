//! `web_fetch` and `web_search`: run by the server, for agents with and without a sandbox.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    client::settled,
    site::Site,
    world::{Server, World},
};

/// A toolset of the web tools alone; each with these settings.
fn web_only(fetch: Value, search: Value) -> Value {
    let config = |name: &str, mut more: Value| {
        more["name"] = json!(name);
        more["enabled"] = json!(true);
        more
    };
    json!([{
        "type": "agent_toolset_20260401", "default_config": {"enabled": false},
        "configs": [config("web_fetch", fetch), config("web_search", search)],
    }])
}

async fn server(world: &World, site: &Site) -> Result<Server> {
    let settings = site.settings();
    let settings: Vec<_> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    world.server_with(&settings).await
}

/// Lets the model make these calls at once, and answers their results in the order of the calls.
async fn call(server: &Server, session: &str, calls: &[(&str, Value)]) -> Result<Vec<Value>> {
    let lines: Vec<_> = calls
        .iter()
        .map(|(name, input)| format!("!tool {name} {input}"))
        .collect();
    server.client().say(session, &lines.join("\n")).await?;
    results(server, session, calls.len()).await
}

/// The last results of a session that idles, in the order of their calls.
async fn results(server: &Server, session: &str, count: usize) -> Result<Vec<Value>> {
    let events = settled(server, session).await?;
    let calls = events.iter().filter(|e| e["type"] == "agent.tool_use");
    let ids: Vec<_> = calls.map(|event| event["id"].clone()).collect();
    ids[ids.len() - count..]
        .iter()
        .map(|id| {
            let result = events.iter().find(|event| event["tool_use_id"] == *id);
            result
                .cloned()
                .with_context(|| format!("no result for {id}"))
        })
        .collect()
}

#[track_caller]
fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_default()
}

fn refused(result: &Value, words: &str) -> Result<()> {
    ensure!(
        result["is_error"] == true && text(result).contains(words),
        "{words}: {result:#}"
    );
    Ok(())
}

#[tokio::test]
async fn pages_and_searches_reach_the_model() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let server = server(&world, &site).await?;
    let client = server.client();
    let session = client.session(web_only(json!({}), json!({}))).await?;
    let results = call(
        &server,
        &session,
        &[
            (
                "web_fetch",
                json!({"url": format!("{}/page#part", site.url)}),
            ),
            ("web_search", json!({"query": "anything"})),
            (
                "web_fetch",
                json!({"url": format!("{}/image.png", site.url)}),
            ),
            (
                "web_fetch",
                json!({"url": format!("{}/paper.pdf", site.url)}),
            ),
        ],
    )
    .await?;
    ensure!(
        results.iter().all(|result| result["is_error"] == false),
        "{results:#?}"
    );
    let expected = format!(
        "Title: A page\nURL: {0}/page\n\n# Heading\n\nRead [on]({0}/next).\n\n/page",
        site.url
    );
    ensure!(text(&results[0]) == expected, "{:#}", results[0]);
    ensure!(
        results[1]["content"][0]
            == json!({
                "type": "search_result", "source": format!("{}/found", site.url), "title": "Found",
                "content": [{"type": "text", "text": "What was sought."}],
                "citations": {"enabled": false},
            }),
        "{:#}",
        results[1]
    );
    ensure!(
        results[2]["content"][0]["source"]["media_type"] == "image/png",
        "{:#}",
        results[2]
    );
    ensure!(
        results[3]["content"][0]["type"] == "document",
        "{:#}",
        results[3]
    );
    ensure!(
        site.count("/search?q=anything&format=json") == 1,
        "{:?}",
        site.requests()
    );

    // The model was offered the two and shown exactly what the events show.
    let requests = world.model.requests(None);
    let first: Value = serde_json::from_str(&requests[0].body)?;
    let offered: Vec<_> = first["tools"]
        .as_array()
        .context("tools")?
        .iter()
        .map(|t| &t["name"])
        .collect();
    ensure!(offered == ["web_fetch", "web_search"], "{offered:?}");
    let last: Value = serde_json::from_str(&requests.last().context("requests")?.body)?;
    let shown = last["messages"]
        .as_array()
        .and_then(|m| m.last())
        .context("a message")?;
    for result in &results {
        let wanted = &result["content"][0];
        let blocks = shown["content"].as_array().into_iter().flatten();
        let found = blocks.flat_map(|block| block["content"].as_array().into_iter().flatten());
        ensure!(
            found
                .into_iter()
                .any(|block| block["type"] == wanted["type"]
                    && block["source"] == wanted["source"]
                    && block["text"] == wanted["text"]),
            "{wanted:#} is not in {shown:#}"
        );
    }

    let usage = &client.get(&format!("/v1/sessions/{session}")).await?["usage"];
    ensure!(
        usage["server_tool_use"] == json!({"web_search_requests": 1, "web_fetch_requests": 0}),
        "{usage:#}"
    );
    // Nothing of this needs a sandbox.
    ensure!(!world.path("data/sandboxes").join("x").exists());
    let made = std::fs::read_dir(world.path("data/sandboxes"));
    ensure!(made.map_or(0, Iterator::count) == 0, "a sandbox was made");
    Ok(())
}

#[tokio::test]
async fn settings_of_the_agent_hold() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let server = server(&world, &site).await?;
    let client = server.client();
    let page = format!("{}/page", site.url);

    let listed = web_only(
        json!({"allowed_domains": ["example.com"]}),
        json!({"blocked_domains": ["elsewhere.test"]}),
    );
    let session = client.session(listed).await?;
    let answers = call(
        &server,
        &session,
        &[
            ("web_fetch", json!({"url": page})),
            ("web_search", json!({"query": "x"})),
        ],
    )
    .await?;
    refused(
        &answers[0],
        "url_not_allowed: the settings of this agent's web_fetch do not allow `127.0.0.1`",
    )?;
    let found = answers[1]["content"].as_array().context("content")?;
    ensure!(
        found.len() == 1 && found[0]["title"] == "Found",
        "{found:#?}"
    );
    ensure!(site.count("/page") == 0, "it was fetched all the same");

    let session = client
        .session(web_only(
            json!({"max_content_tokens": 5}),
            json!({"allowed_domains": ["example.com"]}),
        ))
        .await?;
    let answers = call(
        &server,
        &session,
        &[
            (
                "web_fetch",
                json!({"url": format!("{}/notes.txt", site.url)}),
            ),
            ("web_fetch", json!({"url": page})),
            ("web_search", json!({"query": "x"})),
            ("web_fetch", json!({"link": page})),
        ],
    )
    .await?;
    ensure!(
        text(&answers[0]).ends_with("just notes"),
        "{:#}",
        answers[0]
    );
    ensure!(
        text(&answers[1])
            .contains("# Heading\n\nRead [on]\n\n[Cut off at this agent's max_content_tokens: 5"),
        "{:#}",
        answers[1]
    );
    ensure!(text(&answers[2]) == "No results.", "{:#}", answers[2]);
    refused(&answers[3], "invalid_input: `url` is missing")?;

    // Only what search results have named may be fetched.
    let sources = json!({"url_sources": {"user_input": "none", "server_tool_results": {
        "type": "only", "tools": [{"type": "tool_reference", "name": "web_search"}],
    }}});
    let session = client.session(web_only(sources, json!({}))).await?;
    let found = format!("{}/found", site.url);
    let answers = call(&server, &session, &[("web_fetch", json!({"url": found}))]).await?;
    refused(
        &answers[0],
        "url_not_allowed: this agent may only fetch addresses",
    )?;
    call(&server, &session, &[("web_search", json!({"query": "x"}))]).await?;
    let answers = call(
        &server,
        &session,
        &[
            ("web_fetch", json!({"url": found})),
            ("web_fetch", json!({"url": format!("{}/next", site.url)})),
        ],
    )
    .await?;
    ensure!(answers[0]["is_error"] == false, "{:#}", answers[0]);
    refused(&answers[1], "url_not_allowed")
}

#[tokio::test]
async fn what_a_server_lacks_is_said() -> Result<()> {
    let world = World::new().await?;
    let server = world.server().await?;
    let client = server.client();
    let session = client.session(web_only(json!({}), json!({}))).await?;
    let answers = call(
        &server,
        &session,
        &[
            ("web_search", json!({"query": "x"})),
            ("web_fetch", json!({"url": "http://127.0.0.1:1/"})),
            (
                "web_fetch",
                json!({"url": "http://169.254.169.254/latest/meta-data"}),
            ),
        ],
    )
    .await?;
    refused(&answers[0], "web.search_backend")?;
    refused(
        &answers[1],
        "url_not_allowed: `127.0.0.1` is not a public address",
    )?;
    refused(
        &answers[2],
        "url_not_allowed: `169.254.169.254` is not a public address",
    )?;
    let session = client.get(&format!("/v1/sessions/{session}")).await?;
    ensure!(
        session["usage"]["server_tool_use"]["web_search_requests"] == 0,
        "{session:#}"
    );

    // A backend without what it needs stops the start.
    let broken = world
        .server_with(&[("SELFSAME__WEB__SEARCH_BACKEND", "brave")])
        .await;
    let error = broken.err().context("it started")?.to_string();
    ensure!(error.contains("web.search_key is needed"), "{error}");
    Ok(())
}

#[tokio::test]
async fn long_pages_go_to_the_sandbox_if_there_is_one() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let server = server(&world, &site).await?;
    let client = server.client();
    let url = json!({"url": format!("{}/long", site.url)});
    let session = client.session(web_only(json!({}), json!({}))).await?;
    let answers = call(&server, &session, &[("web_fetch", url.clone())]).await?;
    let shown = text(&answers[0]);
    ensure!(
        shown.ends_with("[output truncated at 100000 characters]"),
        "{}",
        shown.len()
    );

    let session = client
        .session(json!([{"type": "agent_toolset_20260401"}]))
        .await?;
    let answers = call(&server, &session, &[("web_fetch", url)]).await?;
    let shown = text(&answers[0]);
    let path = format!(
        "/mnt/session/tool-outputs/{}.txt",
        answers[0]["tool_use_id"].as_str().context("id")?
    );
    ensure!(
        shown.len() < 20_000 && shown.contains(&path),
        "{}",
        shown.len()
    );
    let answers = call(
        &server,
        &session,
        &[("grep", json!({"pattern": "^URL: ", "path": path}))],
    )
    .await?;
    ensure!(text(&answers[0]).contains("/long"), "{:#}", answers[0]);
    Ok(())
}

#[tokio::test]
async fn after_a_crash_pages_are_fetched_again_and_searches_are_not() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let mut first = server(&world, &site).await?;
    let session = first
        .client()
        .session(web_only(json!({}), json!({})))
        .await?;
    let fetch = json!({"url": format!("{}/slow", site.url)});
    let say = format!(
        "!tool web_fetch {fetch}\n!tool web_search {}",
        json!({"query": "slow"})
    );
    first.client().say(&session, &say).await?;
    site.wait("/slow", 1).await?;
    site.wait("q=slow", 1).await?;
    first.kill().await?;
    site.open();
    let second = server(&world, &site).await?;
    let answers = results(&second, &session, 2).await?;
    ensure!(text(&answers[0]).contains("# Heading"), "{:#}", answers[0]);
    refused(&answers[1], "Whether it was made is unknown")?;
    ensure!(site.count("/slow") == 2, "{:?}", site.requests());
    ensure!(site.count("q=slow") == 1, "{:?}", site.requests());
    Ok(())
}

#[tokio::test]
async fn an_interrupt_ends_a_fetch() -> Result<()> {
    let (world, site) = (World::new().await?, Site::start().await?);
    let server = server(&world, &site).await?;
    let client = server.client();
    let session = client.session(web_only(json!({}), json!({}))).await?;
    let fetch = json!({"url": format!("{}/slow", site.url)});
    client
        .say(&session, &format!("!tool web_fetch {fetch}"))
        .await?;
    site.wait("/slow", 1).await?;
    client
        .events(&session, json!([{"type": "user.interrupt"}]))
        .await?;
    let answers = results(&server, &session, 1).await?;
    refused(&answers[0], "interrupted")?;
    let made = std::fs::read_dir(world.path("data/sandboxes"));
    ensure!(
        made.map_or(0, Iterator::count) == 0,
        "a sandbox was made to end it in"
    );
    // The session goes on.
    let answers = call(
        &server,
        &session,
        &[(
            "web_fetch",
            json!({"url": format!("{}/image.png", site.url)}),
        )],
    )
    .await?;
    ensure!(
        answers[0]["content"][0]["type"] == "image",
        "{:#}",
        answers[0]
    );
    Ok(())
}
