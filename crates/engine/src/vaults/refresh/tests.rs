use selfsame_store::RefreshState;
use selfsame_types::{
    Metadata, VaultId, WorkspaceId,
    vault::{
        ClientAuth as ShownAuth, Credential, CredentialSecrets, CredentialType, McpOauthRefresh,
        McpOauthType,
    },
};

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
}

/// Read at second 0.
fn open(expires_at: Option<i64>, refreshed_at: Option<i64>) -> OpenCredential {
    let refresh = McpOauthRefresh {
        client_id: "id".into(),
        token_endpoint: "https://auth.example/token".into(),
        token_endpoint_auth: ShownAuth {
            r#type: ClientAuthType::ClientSecretBasic,
        },
        resource: None,
        scope: Some("read".into()),
    };
    OpenCredential {
        workspace: WorkspaceId::new(),
        credential: Credential {
            r#type: CredentialType,
            id: CredentialId::new(),
            vault_id: VaultId::new(),
            display_name: None,
            metadata: Metadata::default(),
            auth: CredentialAuth::McpOauth(McpOauthAuth {
                r#type: McpOauthType,
                mcp_server_url: "https://mcp.example".into(),
                expires_at: expires_at.map(at),
                refresh: Some(refresh),
            }),
            created_at: at(-1000),
            updated_at: at(-1000),
            archived_at: None,
        },
        secrets: CredentialSecrets {
            secret: SecretString::from("at"),
            refresh_token: Some(SecretString::from("rt")),
            client_secret: Some(SecretString::from("cs")),
        },
        generation: 1,
        refresh: RefreshState {
            refreshed_at: refreshed_at.map(at),
            failed_at: None,
            failure: None,
            next_at: None,
        },
        now: at(0),
    }
}

#[test]
fn a_token_is_refreshed_before_it_expires_but_not_all_its_life() {
    for (expires_at, refreshed_at, wanted) in [
        (None, None, Due::No),
        (None, Some(-5), Due::No),
        (Some(3600), None, Due::No),
        (Some(301), None, Due::No),
        (Some(300), None, Due::Soon),
        (Some(31), None, Due::Soon),
        (Some(30), None, Due::Now),
        (Some(0), None, Due::Now),
        (Some(-86_400), None, Due::Now),
        // Of an hour, five minutes; of a minute, a quarter.
        (Some(301), Some(-3299), Due::No),
        (Some(299), Some(-3301), Due::Soon),
        (Some(16), Some(-44), Due::No),
        (Some(15), Some(-45), Due::Soon),
        (Some(1), Some(-59), Due::Now),
        // One that is over the moment it is given.
        (Some(0), Some(0), Due::Now),
    ] {
        let due = due(&open(expires_at, refreshed_at), at(0));
        assert_eq!(due, wanted, "{expires_at:?} {refreshed_at:?}");
    }
    let later = due(&open(Some(3600), None), at(3500));
    assert_eq!(later, Due::Soon, "it was read long ago");
    let mut without = open(Some(0), None);
    without.secrets.refresh_token = None;
    assert_eq!(due(&without, at(0)), Due::No);
}

#[test]
fn what_failed_rests() {
    let mut failing = open(Some(-60), None);
    failing.refresh.failure = Some("HTTP 503".into());
    failing.refresh.next_at = Some(at(30));
    assert_eq!(due(&failing, at(29)), Due::No);
    assert_eq!(due(&failing, at(30)), Due::Now);
    failing.refresh.next_at = None;
    failing.refresh.failed_at = Some(at(-10));
    assert_eq!(due(&failing, at(1_000_000)), Due::No);
    // That the background is to rest is no failure.
    let mut short = open(Some(0), Some(-5));
    short.refresh.next_at = Some(at(25));
    assert_eq!(due(&short, at(0)), Due::Now);
}

#[test]
fn an_endpoint_that_cannot_answer_is_left_alone_for_longer_and_longer() {
    let seconds = |expires_at, retry_after: Option<u64>, random| {
        let retry_after = retry_after.map(Duration::from_secs);
        wait(&open(expires_at, None), retry_after, random).as_secs_f64()
    };
    for (expires_at, retry_after, random, wanted) in [
        (None, None, 0.0, 30.0),
        (Some(200), None, 0.0, 30.0),
        (Some(-60), None, 0.0, 30.0),
        (Some(-60), None, 1.0, 37.5),
        (Some(-400), None, 0.0, 100.0),
        (Some(-86_400), None, 0.0, 900.0),
        (Some(-60), Some(5), 0.0, 30.0),
        (Some(-60), Some(120), 0.0, 120.0),
        (Some(-60), Some(u64::MAX), 0.0, 900.0),
    ] {
        let found = seconds(expires_at, retry_after, random);
        assert!(
            (found - wanted).abs() < 0.001,
            "{expires_at:?} {retry_after:?}: {found}"
        );
    }
}

#[test]
fn a_grant_is_made_of_what_there_is() {
    let grant = Grant::of(&open(None, None)).unwrap().unwrap();
    assert_eq!(grant.token_endpoint.as_str(), "https://auth.example/token");
    assert!(matches!(grant.auth, ClientAuth::Basic(_)));
    assert_eq!(grant.scope.as_deref(), Some("read"));
    assert!(!format!("{grant:?}").contains("\"rt\""), "{grant:?}");
    let mut without = open(None, None);
    without.secrets.refresh_token = None;
    assert!(Grant::of(&without).is_none());
    let mut broken = open(None, None);
    let CredentialAuth::McpOauth(auth) = &mut broken.credential.auth else {
        panic!("it is one");
    };
    auth.refresh.as_mut().unwrap().token_endpoint = "no".into();
    assert!(Grant::of(&broken).unwrap().is_err());
}
