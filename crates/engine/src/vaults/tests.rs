mod validate;
mod world;

use std::time::Duration;

use futures_util::future::join_all;
use selfsame_mock::oauth::{Endpoint, Instead};
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::*;
use world::{World, token};

const LONG: Duration = Duration::from_secs(3600);

fn said(status: u16, body: &str) -> Instead {
    Instead {
        status,
        body: body.to_owned(),
        ..Instead::default()
    }
}

fn at_gate(gate: &str) -> Instead {
    Instead {
        gate: Some(gate.to_owned()),
        ..Instead::default()
    }
}

const INVALID: &str = r#"{"error": "invalid_grant"}"#;

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn the_url_rule_chooses(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let (a, b) = (world.vault().await, world.vault().await);
    let static_bearer = |url: &str, token: &str| json!({"type": "static_bearer", "mcp_server_url": url, "token": token});
    let in_a = world
        .add(a, static_bearer("https://MCP.example:443/x/", "of a"))
        .await;
    world
        .add(b, static_bearer("https://mcp.example/x", "of b"))
        .await;
    world
        .add(b, static_bearer("https://mcp.example/y", "y of b"))
        .await;
    let session = world.session(vec![a, b]).await;
    let reversed = world.session(vec![b, a]).await;
    let none = world.session(vec![]).await;
    for (session, url, wanted) in [
        (session, "https://mcp.example/x", Some("of a")),
        (session, "https://mcp.example/x/", Some("of a")),
        (session, "HTTPS://mcp.EXAMPLE:443/x", Some("of a")),
        (session, "https://mcp.example/y", Some("y of b")),
        (session, "https://mcp.example/", None),
        (session, "https://mcp.example/X", None),
        (session, "https://mcp.example:444/x", None),
        (session, "http://mcp.example/x", None),
        (session, "https://www.mcp.example/x", None),
        (reversed, "https://mcp.example/x", Some("of b")),
        (none, "https://mcp.example/x", None),
    ] {
        let found = vaults.bearer(session, &url.parse().unwrap()).await.unwrap();
        assert_eq!(token(&found), wanted, "{url}");
    }
    let url = "https://mcp.example/x".parse().unwrap();
    let found = vaults.bearer(session, &url).await.unwrap().unwrap();
    assert_eq!((found.credential, found.vault), (in_a.id, a));

    // What is remembered is dropped when somebody says that it has changed.
    world
        .update(&in_a, json!({"type": "static_bearer", "token": "rotated"}))
        .await;
    assert_eq!(
        token(&vaults.bearer(session, &url).await.unwrap()),
        Some("of a")
    );
    vaults.forget_all();
    assert_eq!(
        token(&vaults.bearer(session, &url).await.unwrap()),
        Some("rotated")
    );
    world.archive(&in_a).await;
    vaults.forget(in_a.id);
    assert_eq!(
        token(&vaults.bearer(session, &url).await.unwrap()),
        Some("of b")
    );

    // Nor is it needed: a server that remembers nothing.
    let forgetful = world.vaults(Duration::ZERO);
    assert_eq!(
        token(&forgetful.bearer(reversed, &url).await.unwrap()),
        Some("of b")
    );
    let deleted = world.store.vault_delete(world.workspace, b, &world.actor);
    assert!(deleted.await.unwrap());
    assert_eq!(
        token(&forgetful.bearer(reversed, &url).await.unwrap()),
        None
    );
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_sessions_variables(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let vault = world.vault().await;
    let limited = json!({"type": "limited", "allowed_hosts": ["api.example", "*.cdn.example"]});
    world
        .add(
            vault,
            json!({"type": "environment_variable", "secret_name": "KEY", "secret_value": "canary",
            "networking": limited, "injection_location": {"header": true}}),
        )
        .await;
    let session = world.session(vec![vault]).await;
    let variables = vaults.variables(session).await.unwrap();
    let [variable] = &*variables else {
        panic!("{variables:?}");
    };
    assert_eq!(
        (
            &*variable.secret_name,
            variable.secret_value.expose_secret()
        ),
        ("KEY", "canary")
    );
    let Networking::Limited(hosts) = &variable.networking else {
        panic!("{variable:?}");
    };
    assert!(
        hosts.covers("api.example")
            && hosts.covers("a.cdn.example")
            && !hosts.covers("cdn.example")
    );
    assert!(variable.injection_location.header && !variable.injection_location.body);
    assert!(!format!("{variables:?}{vaults:?}").contains("canary"));
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn ten_servers_make_one_request(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vault = world.vault().await;
    let grant = world.grant(json!({"expires_in": 3600}));
    let url = world.url(&grant.mcp_server);
    let credential = world.oauth(vault, &grant, json!({})).await;
    let session = world.session(vec![vault]).await;
    let servers: Vec<_> = (0..10).map(|_| world.vaults(LONG)).collect();

    // The first one's request is held until the others have come after it.
    world
        .script
        .oauth()
        .instead(&grant.name, Endpoint::Token, vec![at_gate("first")]);
    let (sent, mut seen) = tokio::sync::mpsc::channel(10);
    let all = servers.iter().map(async |vaults| {
        sent.send(()).await.unwrap();
        vaults.bearer(session, &url).await.unwrap()
    });
    let release = async {
        for _ in 0..10 {
            seen.recv().await.unwrap();
        }
        world.script.wait_gate("first").await;
        world.script.release("first", None);
    };
    let (found, ()) = tokio::join!(join_all(all), release);
    let standing = world.standing(&grant);
    assert_eq!(standing.token_requests.len(), 1);
    assert!(!standing.is_revoked);
    for bearer in &found {
        assert_eq!(token(bearer), Some(&*standing.access_token));
    }
    let open = world.open(&credential).await;
    let stored = open.secrets.refresh_token.unwrap();
    assert_eq!(stored.expose_secret(), standing.refresh_token);

    // The same for a 401 that all of them get, which the second of two sessions on one server shares.
    world.script.oauth().expire(&grant.name);
    let bearer = found[0].clone().unwrap();
    // It was refreshed a moment ago; what the client stores counts as older.
    world
        .update(
            &credential,
            json!({"type": "mcp_oauth", "access_token": standing.access_token}),
        )
        .await;
    let again: Vec<_> = servers
        .iter()
        .chain(&servers)
        .map(|vaults| vaults.refused(session, &bearer, &url))
        .collect();
    let again = join_all(again).await;
    let standing = world.standing(&grant);
    assert!(
        standing.token_requests.len() <= 2,
        "{}",
        standing.token_requests.len()
    );
    let tokens: Vec<_> = again
        .iter()
        .map(|found| token(found.as_ref().unwrap()))
        .collect();
    assert!(tokens.iter().all(|token| token == &tokens[0]), "{tokens:?}");
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn failures_of_ten_servers_make_one_request_too(
    pool: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(pool, connect).await;
    let vault = world.vault().await;
    for answer in [said(400, INVALID), said(503, "")] {
        let grant = world.grant(json!({}));
        let is_permanent = answer.status == 400;
        world
            .script
            .oauth()
            .instead(&grant.name, Endpoint::Token, vec![answer]);
        let credential = world.oauth(vault, &grant, json!({})).await;
        let session = world.session(vec![vault]).await;
        let url = world.url(&grant.mcp_server);
        let servers: Vec<_> = (0..10).map(|_| world.vaults(LONG)).collect();
        let found = join_all(servers.iter().map(|vaults| vaults.bearer(session, &url))).await;
        for bearer in &found {
            // What there is, for its server to judge.
            assert_eq!(token(bearer.as_ref().unwrap()), Some(&*grant.access_token));
        }
        let bearer = found[0].as_ref().unwrap().clone().unwrap();
        assert!(
            servers[0]
                .refused(session, &bearer, &url)
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(world.standing(&grant).token_requests.len(), 1);
        let open = world.open(&credential).await;
        assert_eq!(open.refresh.failed_at.is_some(), is_permanent);
        assert_eq!(open.refresh.next_at.is_some(), !is_permanent);

        // A client that changes the credential ends it.
        let refresh = json!({"refresh_token": grant.refresh_token});
        world
            .update(
                &credential,
                json!({"type": "mcp_oauth", "refresh": refresh}),
            )
            .await;
        servers[1].forget_all();
        let after = servers[1].bearer(session, &url).await.unwrap();
        assert_eq!(token(&after), Some(&*world.standing(&grant).access_token));
        assert_ne!(token(&after), Some(&*grant.access_token));
    }
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_refusal_brings_one_refresh(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let vault = world.vault().await;
    let grant = world.grant(
        json!({"auth": "client_secret_basic", "client_id": "a b", "client_secret": "s:é%",
        "resource": "https://mcp.example", "scope": "read write"}),
    );
    let url = world.url(&grant.mcp_server);
    let refresh = json!({"client_id": "a b", "refresh_token": grant.refresh_token,
        "token_endpoint": world.url(&grant.token_endpoint).as_str(), "resource": "https://mcp.example", "scope": "read write",
        "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "s:é%"}});
    let credential = world
        .oauth(
            vault,
            &grant,
            json!({"expires_at": null, "refresh": refresh}),
        )
        .await;
    let session = world.session(vec![vault]).await;
    let first = vaults.bearer(session, &url).await.unwrap().unwrap();
    assert!(
        world.standing(&grant).token_requests.is_empty(),
        "nothing says that it expires"
    );

    let second = vaults.refused(session, &first, &url).await.unwrap();
    assert_eq!(token(&second), Some(&*world.standing(&grant).access_token));
    // Whoever comes with the old one gets what is there.
    let late = vaults.refused(session, &first, &url).await.unwrap();
    assert_eq!(token(&late), token(&second));
    assert_eq!(
        token(&vaults.bearer(session, &url).await.unwrap()),
        token(&second)
    );
    // A server that refuses what was just made will refuse the next one as well.
    let third = vaults
        .refused(session, &second.unwrap(), &url)
        .await
        .unwrap();
    assert!(third.is_none());
    assert_eq!(world.standing(&grant).token_requests.len(), 1);

    // What a client has stored meanwhile is shown instead.
    world
        .update(
            &credential,
            json!({"type": "mcp_oauth", "access_token": "by hand"}),
        )
        .await;
    let by_hand = vaults.refused(session, &first, &url).await.unwrap();
    assert_eq!(token(&by_hand), Some("by hand"));
    world.archive(&credential).await;
    assert!(
        vaults
            .refused(session, &first, &url)
            .await
            .unwrap()
            .is_none()
    );

    let bearer = json!({"type": "static_bearer", "mcp_server_url": url.as_str(), "token": "fixed"});
    world.add(vault, bearer).await;
    vaults.forget_all();
    let fixed = vaults.bearer(session, &url).await.unwrap();
    assert_eq!(token(&fixed), Some("fixed"));
    assert!(
        vaults
            .refused(session, &fixed.unwrap(), &url)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(world.standing(&grant).token_requests.len(), 1);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn the_background_keeps_tokens_fresh(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let vault = world.vault().await;
    // More than work at a time, one of them failing for good and one for a while.
    let grants: Vec<_> = (0..7)
        .map(|_| world.grant(json!({"expires_in": 3600})))
        .collect();
    for grant in &grants {
        world.oauth(vault, grant, json!({})).await;
    }
    let lasting = world.grant(json!({}));
    world
        .oauth(
            vault,
            &lasting,
            json!({"expires_at": "2099-01-01T00:00:00Z"}),
        )
        .await;
    let oauth = world.script.oauth();
    oauth.instead(&grants[0].name, Endpoint::Token, vec![said(400, INVALID)]);
    oauth.instead(&grants[1].name, Endpoint::Token, vec![said(500, "")]);
    vaults.refresh_due().await;
    for round in 0..2 {
        for grant in &grants {
            let asked = world.standing(grant).token_requests.len();
            assert_eq!(asked, 1, "{} in round {round}", grant.name);
        }
        // Nothing is due any more.
        vaults.refresh_due().await;
    }
    assert!(world.standing(&lasting).token_requests.is_empty());
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn what_has_begun_is_not_abandoned(pool: PgPoolOptions, connect: PgConnectOptions) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let vault = world.vault().await;
    let grant = world.grant(json!({"expires_in": 3600}));
    let url = world.url(&grant.mcp_server);
    let credential = world.oauth(vault, &grant, json!({})).await;
    let session = world.session(vec![vault]).await;
    world
        .script
        .oauth()
        .instead(&grant.name, Endpoint::Token, vec![at_gate("held")]);
    let asking = tokio::spawn({
        let (vaults, url) = (vaults.clone(), url.clone());
        async move { vaults.bearer(session, &url).await }
    });
    world.script.wait_gate("held").await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    world.script.release("held", None);
    // As a drain does.
    vaults.0.tasks.close();
    vaults.0.tasks.wait().await;
    let standing = world.standing(&grant);
    let open = world.open(&credential).await;
    assert_eq!(open.secrets.secret.expose_secret(), standing.access_token);
    assert_eq!(
        open.secrets.refresh_token.unwrap().expose_secret(),
        standing.refresh_token
    );
    assert_ne!(standing.refresh_token, grant.refresh_token);
}

#[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
async fn a_token_that_expires_soon_is_refreshed_beside(
    pool: PgPoolOptions,
    connect: PgConnectOptions,
) {
    let world = World::new(pool, connect).await;
    let vaults = world.vaults(LONG);
    let vault = world.vault().await;
    let grant = world.grant(json!({"expires_in": 3600}));
    let url = world.url(&grant.mcp_server);
    let now = world.store.now().await.unwrap();
    let soon = now.after(Duration::from_secs(120)).to_string();
    world
        .oauth(vault, &grant, json!({"expires_at": soon}))
        .await;
    let session = world.session(vec![vault]).await;
    world
        .script
        .oauth()
        .instead(&grant.name, Endpoint::Token, vec![at_gate("held")]);
    // Nobody waits for it while the old one is good.
    for _ in 0..3 {
        let found = vaults.bearer(session, &url).await.unwrap();
        assert_eq!(token(&found), Some(&*grant.access_token));
    }
    world.script.wait_gate("held").await;
    world.script.release("held", None);
    vaults.0.tasks.close();
    vaults.0.tasks.wait().await;
    let standing = world.standing(&grant);
    assert_eq!(standing.token_requests.len(), 1);
    let found = vaults.bearer(session, &url).await.unwrap();
    assert_eq!(token(&found), Some(&*standing.access_token));
}
