use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::*;
use crate::CredentialId;

const NOW: i64 = 1_800_000_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_micros(NOW)
}

fn create(auth: Value) -> Result<NewCredential, ApiError> {
    let body = json!({"auth": auth});
    let body: CreateCredential =
        serde_json::from_value(body).map_err(|error| ApiError::invalid(error.to_string()))?;
    body.resolve(now())
}

fn stored(auth: Value) -> Credential {
    let new = create(auth).unwrap();
    Credential {
        r#type: CredentialType,
        id: CredentialId::new(),
        vault_id: VaultId::new(),
        display_name: None,
        metadata: Metadata::default(),
        auth: new.spec.auth,
        created_at: now(),
        updated_at: now(),
        archived_at: None,
    }
}

fn update(credential: &Credential, body: Value) -> Result<CredentialChange, ApiError> {
    let body: UpdateCredential =
        serde_json::from_value(body).map_err(|error| ApiError::invalid(error.to_string()))?;
    body.change(credential, now())
}

fn bearer() -> Value {
    json!({"type": "static_bearer", "mcp_server_url": "https://mcp.example.com/mcp", "token": "s3cret"})
}

fn oauth() -> Value {
    json!({
        "type": "mcp_oauth", "mcp_server_url": "https://mcp.example.com/mcp", "access_token": "s3cret-access",
        "expires_at": "2099-01-01T00:00:00Z",
        "refresh": {
            "client_id": "c", "refresh_token": "s3cret-refresh", "token_endpoint": "https://auth.example.com/token",
            "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "s3cret-client"},
            "scope": "read",
        },
    })
}

fn variable() -> Value {
    json!({
        "type": "environment_variable", "secret_name": "API_KEY", "secret_value": "s3cret",
        "networking": {"type": "limited", "allowed_hosts": ["api.example.com", "192.0.2.1", "*.example.org"]},
    })
}

fn with(mut base: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = base.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    parent.insert(name.to_owned(), value);
    base
}

#[test]
fn urls_of_one_server_have_one_key() {
    let key = |url: &str| server_key(&url.parse().unwrap());
    for (one, other) in [
        ("https://a.example/mcp", "HTTPS://A.Example:443/mcp/"),
        ("http://a.example", "http://a.example:80/"),
        ("https://a.example/", "https://a.example"),
        ("https://a.example/x#part", "https://a.example/x"),
        ("https://a.example/?q=1", "https://a.example?q=1"),
    ] {
        assert_eq!(key(one), key(other));
    }
    let distinct = [
        "https://a.example",
        "http://a.example",
        "https://a.example:8443",
        "https://b.a.example",
        "https://a.example/mcp",
        "https://a.example/MCP",
        "https://a.example/mcp/v2",
        "https://a.example/mcp?x=1",
    ];
    let keys: std::collections::BTreeSet<_> = distinct.iter().map(|url| key(url)).collect();
    assert_eq!(keys.len(), distinct.len());
    assert_eq!(
        key("HTTPS://MCP.Example.com:443/a/"),
        "https://mcp.example.com/a"
    );
}

#[test]
fn secrets_are_taken_and_not_shown() {
    for auth in [bearer(), oauth(), variable()] {
        let body: CreateCredential = serde_json::from_value(json!({"auth": auth})).unwrap();
        assert!(!format!("{body:?}").contains("s3cret"));
        let new = body.resolve(now()).unwrap();
        let shown = serde_json::to_string(&new.spec.auth).unwrap();
        assert!(
            !format!("{new:?}{shown}").contains("s3cret"),
            "{new:?} {shown}"
        );
        assert!(new.secrets.secret.expose_secret().starts_with("s3cret"));
        let again: CredentialAuth = serde_json::from_str(&shown).unwrap();
        assert_eq!(again, new.spec.auth);
    }
    let new = create(oauth()).unwrap();
    assert_eq!(
        new.secrets.refresh_token.unwrap().expose_secret(),
        "s3cret-refresh"
    );
    assert_eq!(
        new.secrets.client_secret.unwrap().expose_secret(),
        "s3cret-client"
    );
    assert_eq!(
        serde_json::to_value(&new.spec.auth).unwrap(),
        json!({
            "type": "mcp_oauth", "mcp_server_url": "https://mcp.example.com/mcp",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "refresh": {"client_id": "c", "token_endpoint": "https://auth.example.com/token",
                        "token_endpoint_auth": {"type": "client_secret_post"},
                        "resource": null, "scope": "read"},
        })
    );
}

#[test]
fn what_is_refused_of_new_credentials() {
    let long = "x".repeat(16 * 1024 + 1);
    let hosts: Vec<String> = (0..17).map(|n| format!("h{n}.example.com")).collect();
    for (auth, message) in [
        (json!("s3cret"), "must be an object"),
        (json!({"type": "other"}), "expected `static_bearer`"),
        (
            with(bearer(), "/token", json!("")),
            "auth.token: must have 1 to",
        ),
        (with(bearer(), "/token", json!(long)), "has 16385"),
        (with(bearer(), "/token", json!(null)), "token"),
        (with(bearer(), "/more", json!(1)), "unknown field `more`"),
        (
            with(bearer(), "/mcp_server_url", json!("ftp://a.example")),
            "https://",
        ),
        (
            with(bearer(), "/mcp_server_url", json!("https://")),
            "with a host",
        ),
        (
            with(bearer(), "/mcp_server_url", json!("https://a b")),
            "without spaces",
        ),
        (
            with(bearer(), "/mcp_server_url", json!("https://[::1")),
            "is not a URL",
        ),
        (
            with(
                bearer(),
                "/mcp_server_url",
                json!("https://u:s3cret@a.example"),
            ),
            "user name or a password",
        ),
        (
            with(oauth(), "/expires_at", json!("2001-01-01T00:00:00Z")),
            "must be in the future",
        ),
        (
            with(oauth(), "/expires_at", json!("tomorrow")),
            "expires_at",
        ),
        (
            with(oauth(), "/refresh/client_id", json!("")),
            "auth.refresh.client_id",
        ),
        (
            with(oauth(), "/refresh/refresh_token", json!("")),
            "auth.refresh.refresh_token",
        ),
        (
            with(oauth(), "/refresh/token_endpoint", json!("here")),
            "auth.refresh.token_endpoint",
        ),
        (
            with(
                oauth(),
                "/refresh/token_endpoint_auth",
                json!({"type": "none", "client_secret": "x"}),
            ),
            "client_secret",
        ),
        (
            with(
                oauth(),
                "/refresh/token_endpoint_auth",
                json!({"type": "client_secret_basic"}),
            ),
            "client_secret",
        ),
        (
            with(
                oauth(),
                "/refresh/token_endpoint_auth/client_secret",
                json!(""),
            ),
            "client_secret: must have",
        ),
        (
            with(oauth(), "/refresh/scope", json!("s".repeat(2049))),
            "auth.refresh.scope",
        ),
        (
            with(variable(), "/secret_name", json!("1A")),
            "auth.secret_name",
        ),
        (
            with(variable(), "/secret_name", json!("A-B")),
            "auth.secret_name",
        ),
        (
            with(variable(), "/secret_name", json!("Ä")),
            "auth.secret_name",
        ),
        (
            with(variable(), "/secret_name", json!("A".repeat(256))),
            "auth.secret_name",
        ),
        (
            with(variable(), "/networking/allowed_hosts", json!(hosts)),
            "at most 16",
        ),
        (
            with(
                variable(),
                "/networking/allowed_hosts",
                json!(["https://a"]),
            ),
            "allowed_hosts[0]",
        ),
        (
            with(variable(), "/networking/allowed_hosts", json!(["a:80"])),
            "allowed_hosts[0]",
        ),
        (
            with(variable(), "/networking/allowed_hosts", json!(["a/b"])),
            "allowed_hosts[0]",
        ),
        (
            with(variable(), "/networking/allowed_hosts", json!(["::1"])),
            "allowed_hosts[0]",
        ),
        (
            with(variable(), "/networking/allowed_hosts", json!(["*"])),
            "allowed_hosts[0]",
        ),
        (
            with(variable(), "/networking", json!({"type": "limited"})),
            "allowed_hosts",
        ),
        (
            with(variable(), "/injection_location", json!(null)),
            "auth.injection_location: cannot be null; omit it",
        ),
        (
            with(variable(), "/injection_location", json!({"header": null})),
            "injection_location.header: cannot be null; omit it",
        ),
        (
            with(variable(), "/injection_location", json!({})),
            "must be true",
        ),
        (
            with(
                variable(),
                "/injection_location",
                json!({"header": false, "body": false}),
            ),
            "must be true",
        ),
    ] {
        let error = create(auth.clone()).unwrap_err();
        assert_eq!(error.kind, crate::ErrorKind::InvalidRequest);
        assert!(error.message.contains(message), "{auth}: {}", error.message);
        assert!(!error.message.contains("s3cret"), "{}", error.message);
    }
}

#[test]
fn places_of_a_variable() {
    let place = |given: Value| {
        let auth = create(with(variable(), "/injection_location", given)).unwrap();
        let CredentialAuth::EnvironmentVariable(auth) = auth.spec.auth else {
            unreachable!()
        };
        (auth.injection_location.header, auth.injection_location.body)
    };
    let CredentialAuth::EnvironmentVariable(auth) = create(variable()).unwrap().spec.auth else {
        unreachable!()
    };
    assert!(auth.injection_location.header && auth.injection_location.body);
    assert_eq!(place(json!({"header": true})), (true, false));
    assert_eq!(place(json!({"body": true})), (false, true));
    assert_eq!(place(json!({"header": false, "body": true})), (false, true));
}

#[test]
fn a_rotation_changes_what_it_names() {
    let credential = stored(oauth());
    let change = update(
        &credential,
        json!({"auth": {"type": "mcp_oauth", "access_token": "new"}}),
    )
    .unwrap();
    assert_eq!(
        change.spec.auth, credential.auth,
        "the old expiry stays with a new token"
    );
    assert_eq!(change.secrets.secret.unwrap().expose_secret(), "new");
    assert!(change.secrets.refresh_token.is_none() && change.secrets.client_secret.is_none());

    let change = update(
        &credential,
        json!({"auth": {"type": "mcp_oauth", "access_token": null, "expires_at": "2098-01-01T00:00:00Z",
            "mcp_server_url": "https://mcp.example.com/mcp",
            "refresh": {"refresh_token": "r2", "scope": "", "client_id": "c",
                "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "c2"}}}}),
    )
    .unwrap();
    let CredentialAuth::McpOauth(auth) = &change.spec.auth else {
        unreachable!()
    };
    let refresh = auth.refresh.as_ref().unwrap();
    assert_eq!(refresh.scope, None);
    assert_eq!(
        refresh.token_endpoint_auth.r#type,
        ClientAuthType::ClientSecretPost,
        "the kind of authentication stays"
    );
    assert_eq!(
        auth.expires_at.unwrap().to_string(),
        "2098-01-01T00:00:00.000000Z"
    );
    assert!(change.secrets.secret.is_none());
    let secrets = change.secrets.apply(CredentialSecrets {
        secret: "old".into(),
        refresh_token: Some("old".into()),
        client_secret: None,
    });
    assert_eq!(secrets.secret.expose_secret(), "old");
    assert_eq!(secrets.refresh_token.unwrap().expose_secret(), "r2");
    assert_eq!(secrets.client_secret.unwrap().expose_secret(), "c2");

    let change = update(
        &credential,
        json!({"auth": {"type": "mcp_oauth", "expires_at": null}}),
    );
    let CredentialAuth::McpOauth(auth) = change.unwrap().spec.auth else {
        unreachable!()
    };
    assert_eq!(auth.expires_at, None);

    let credential = stored(variable());
    let change = update(
        &credential,
        json!({"display_name": "x", "metadata": {"a": "1"}, "auth": {"type": "environment_variable",
            "networking": {"type": "unrestricted"}, "injection_location": {"body": false}}}),
    )
    .unwrap();
    let CredentialAuth::EnvironmentVariable(auth) = &change.spec.auth else {
        unreachable!()
    };
    assert!(matches!(
        auth.networking,
        CredentialNetworking::Unrestricted(_)
    ));
    assert!(auth.injection_location.header && !auth.injection_location.body);
    assert_eq!(change.spec.display_name.as_deref(), Some("x"));
    assert!(change.secrets.is_empty());

    let nothing = update(
        &credential,
        json!({"display_name": null, "metadata": null, "auth": {"type": "environment_variable", "secret_value": null,
            "networking": null}}),
    )
    .unwrap();
    assert_eq!(nothing.spec, credential.spec());
}

#[test]
fn what_is_refused_of_rotations() {
    let none = with(
        oauth(),
        "/refresh/token_endpoint_auth",
        json!({"type": "none"}),
    );
    let client = |kind: &str| json!({"auth": {"type": "mcp_oauth", "refresh": {"token_endpoint_auth": {"type": kind, "client_secret": "x"}}}});
    let variable_of = |given: Value| json!({"auth": {"type": "environment_variable", "injection_location": given}});
    let headers = with(variable(), "/injection_location", json!({"header": true}));
    for (auth, body, message) in [
        (
            bearer(),
            json!({"auth": {"type": "mcp_oauth"}}),
            "auth.type: is `static_bearer` and cannot be changed",
        ),
        (bearer(), json!({"auth": {}}), "type"),
        (
            bearer(),
            json!({"auth": {"type": "static_bearer", "token": ""}}),
            "auth.token",
        ),
        (
            bearer(),
            json!({"auth": {"type": "static_bearer", "mcp_server_url": "https://b.example"}}),
            "auth.mcp_server_url: is `https://mcp.example.com/mcp`",
        ),
        (
            bearer(),
            json!({"display_name": ""}),
            "display_name: must have 1 to 255",
        ),
        (bearer(), json!({"secret": 1}), "unknown field"),
        (
            oauth(),
            json!({"auth": {"type": "mcp_oauth", "refresh": {"client_id": "d"}}}),
            "auth.refresh.client_id",
        ),
        (
            oauth(),
            json!({"auth": {"type": "mcp_oauth", "refresh": {"token_endpoint": "https://x.example"}}}),
            "auth.refresh.token_endpoint",
        ),
        (
            oauth(),
            json!({"auth": {"type": "mcp_oauth", "refresh": {"resource": "r"}}}),
            "auth.refresh.resource",
        ),
        (
            oauth(),
            json!({"auth": {"type": "mcp_oauth", "expires_at": "2001-01-01T00:00:00Z"}}),
            "future",
        ),
        (oauth(), client("none"), "client_secret_basic"),
        (
            none,
            client("client_secret_basic"),
            "token_endpoint_auth.type: is `none` and cannot be changed",
        ),
        (
            with(oauth(), "/refresh", json!(null)),
            json!({"auth": {"type": "mcp_oauth", "refresh": {}}}),
            "created without `refresh`",
        ),
        (variable(), variable_of(json!(null)), "omit it"),
        (variable(), variable_of(json!({"body": null})), "omit it"),
        (
            variable(),
            variable_of(json!({"body": false, "header": false})),
            "must be true",
        ),
        (
            headers,
            variable_of(json!({"header": false})),
            "must be true",
        ),
        (
            variable(),
            json!({"auth": {"type": "environment_variable", "secret_name": "B"}}),
            "auth.secret_name: is `API_KEY`",
        ),
    ] {
        let error = update(&stored(auth), body.clone()).unwrap_err();
        assert!(error.message.contains(message), "{body}: {}", error.message);
    }
    let mut archived = stored(bearer());
    archived.archived_at = Some(now());
    let error = update(&archived, json!({})).unwrap_err();
    assert_eq!(error.code, Some("vault_credential_archived"));
}

#[test]
fn vaults_are_checked() {
    let create = |body: Value| {
        serde_json::from_value::<CreateVault>(body)
            .unwrap()
            .resolve()
    };
    let vault = |archived_at| Vault {
        r#type: VaultType,
        id: VaultId::new(),
        display_name: "v".to_owned(),
        metadata: Metadata::default(),
        created_at: now(),
        updated_at: now(),
        archived_at,
    };
    assert!(create(json!({"display_name": "x".repeat(255)})).is_ok());
    assert!(create(json!({"display_name": ""})).is_err());
    assert!(create(json!({"display_name": "x".repeat(256)})).is_err());
    let keep: UpdateVault =
        serde_json::from_value(json!({"display_name": null, "metadata": null})).unwrap();
    let one = vault(None);
    assert_eq!(keep.clone().change(&one).unwrap(), one.spec());
    let gone = vault(Some(now()));
    assert_eq!(keep.change(&gone).unwrap_err().code, Some("vault_archived"));
    assert!(one.check_room(MAX_CREDENTIALS - 1).is_ok());
    assert!(one.check_room(MAX_CREDENTIALS).is_err());
    assert!(gone.check_room(0).is_err());
}
