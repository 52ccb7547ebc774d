use serde_json::{Value, json};

use super::*;
use crate::ErrorKind;

fn create(change: Value) -> Result<EnvironmentSpec, ApiError> {
    let mut body = json!({"name": "py"});
    let object = body.as_object_mut().unwrap();
    object.extend(change.as_object().unwrap().clone());
    serde_json::from_value::<CreateEnvironment>(body)
        .map_err(|error| ApiError::invalid(error.to_string()))?
        .resolve()
}

fn environment(change: Value) -> Environment {
    let spec = create(change).unwrap();
    let at = Timestamp::from_micros(0);
    Environment {
        r#type: EnvironmentType,
        id: EnvironmentId(uuid::Uuid::from_u128(1)),
        name: spec.name,
        description: spec.description,
        config: spec.config,
        metadata: spec.metadata,
        scope: EnvironmentScope::Organization,
        created_at: at,
        updated_at: at,
        archived_at: None,
    }
}

fn update(environment: &Environment, change: Value) -> Result<EnvironmentSpec, ApiError> {
    serde_json::from_value::<UpdateEnvironment>(change)
        .map_err(|error| ApiError::invalid(error.to_string()))?
        .change(environment)
}

#[track_caller]
fn refused(result: Result<EnvironmentSpec, ApiError>, part: &str) -> ApiError {
    let error = result.expect_err(part);
    assert_eq!(error.kind, ErrorKind::InvalidRequest, "{}", error.message);
    assert!(error.message.contains(part), "{part}\n{}", error.message);
    error
}

fn cloud(config: Value) -> Value {
    let mut cloud = json!({"type": "cloud"});
    let object = cloud.as_object_mut().unwrap();
    object.extend(config.as_object().unwrap().clone());
    json!({"config": cloud})
}

#[test]
fn the_whole_shape() {
    insta::assert_json_snapshot!(environment(json!({})), @r#"
    {
      "type": "environment",
      "id": "env_011111111111111111111112",
      "name": "py",
      "description": null,
      "config": {
        "type": "cloud",
        "networking": {
          "type": "unrestricted"
        },
        "packages": {
          "type": "packages",
          "apt": [],
          "cargo": [],
          "gem": [],
          "go": [],
          "npm": [],
          "pip": []
        }
      },
      "metadata": {},
      "scope": "organization",
      "created_at": "1970-01-01T00:00:00.000000Z",
      "updated_at": "1970-01-01T00:00:00.000000Z",
      "archived_at": null
    }
    "#);
    let limited = environment(cloud(json!({"networking": {"type": "limited"}})));
    insta::assert_json_snapshot!(serde_json::to_value(&limited).unwrap()["config"]["networking"], @r#"
    {
      "type": "limited",
      "allowed_hosts": [],
      "allow_mcp_servers": false,
      "allow_package_managers": false
    }
    "#);
    let text = serde_json::to_string(&limited.config).unwrap();
    assert_eq!(
        serde_json::from_str::<EnvironmentConfig>(&text).unwrap(),
        limited.config
    );
}

#[test]
fn nulls_are_defaults() {
    let plain = create(json!({})).unwrap();
    for nothing in [
        json!({"config": null, "description": null, "scope": null}),
        json!({"scope": "organization", "metadata": {}}),
        cloud(json!({"networking": null, "packages": null})),
        cloud(json!({"networking": {"type": "unrestricted"},
            "packages": {"type": "packages", "pip": null, "apt": []}})),
    ] {
        assert_eq!(create(nothing).unwrap(), plain);
    }
}

#[test]
fn fields_are_checked() {
    for (change, part) in [
        (json!({"name": ""}), "name: must have 1 to 256"),
        (json!({"name": "n".repeat(257)}), "name: must have 1 to 256"),
        (json!({"name": "\u{0}"}), "U+0000"),
        (
            json!({"description": "d".repeat(1025)}),
            "description: must have 0 to 1024",
        ),
        (
            json!({"scope": "account"}),
            "scope: `account` is not available",
        ),
        (json!({"memory": 1}), "unknown field `memory`"),
        (cloud(json!({"image": "x"})), "unknown field `image`"),
        (
            json!({"config": {"type": "local"}}),
            "`local` is not known here",
        ),
        (
            json!({"config": {"networking": {}}}),
            "missing field `type`",
        ),
        (
            cloud(json!({"networking": {"type": "unrestricted", "allowed_hosts": []}})),
            "unknown field `allowed_hosts`",
        ),
        (
            cloud(json!({"networking": {"type": "none"}})),
            "`none` is not known here",
        ),
        (
            cloud(json!({"packages": {"brew": []}})),
            "unknown field `brew`",
        ),
        (
            cloud(json!({"packages": {"pip": [""]}})),
            "config.packages.pip[0]: must have 1 to 255",
        ),
        (
            cloud(json!({"packages": {"npm": ["a", "-g"]}})),
            "config.packages.npm[1]: must be a package name",
        ),
        (
            cloud(json!({"packages": {"apt": ["a b"]}})),
            "config.packages.apt[0]: must be a package name",
        ),
        (
            cloud(json!({"networking": {"type": "limited"}, "packages": {"pip": ["x"]}})),
            "allow_package_managers: must be true",
        ),
    ] {
        refused(create(change), part);
    }
    let error = refused(
        create(json!({"metadata": {"k": "v".repeat(513)}})),
        "metadata: the value of `k`",
    );
    assert_eq!(error.code, Some("invalid_metadata"));
    let error = create(json!({"config": {"type": "self_hosted"}})).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotImplemented);
    let hosts =
        |hosts: Value| cloud(json!({"networking": {"type": "limited", "allowed_hosts": hosts}}));
    create(hosts(json!(["example.com", "*.example.com", "localhost"]))).unwrap();
    for bad in [
        "",
        "https://example.com",
        "example.com:443",
        "example.com/x",
        "*",
        "*.",
        "a.*.com",
        "ex ample.com",
        "-a.com",
        "a..b",
        "[::1]",
    ] {
        refused(
            create(hosts(json!(["example.com", bad]))),
            "allowed_hosts[1]: `",
        );
    }
}

#[test]
fn an_update_merges() {
    let environment = environment(json!({
        "description": "d", "metadata": {"a": "1", "b": "2", "c": "3"},
        "config": {"type": "cloud",
            "networking": {"type": "limited", "allowed_hosts": ["a.com"], "allow_package_managers": true},
            "packages": {"pip": ["x"], "npm": ["y"]}},
    }));
    for unchanged in [
        json!({}),
        json!({"name": null, "config": null, "metadata": null, "scope": null}),
        json!({"name": "py", "description": "d", "metadata": {"a": "1", "x": null, "y": ""}}),
        cloud(json!({})),
        cloud(json!({"networking": {"type": "limited"}, "packages": {}})),
    ] {
        assert_eq!(update(&environment, unchanged).unwrap(), environment.spec());
    }
    let changed = update(
        &environment,
        json!({"name": "new", "description": null, "metadata": {"a": null, "b": "", "d": "4"}}),
    )
    .unwrap();
    assert_eq!((changed.name.as_str(), changed.description), ("new", None));
    assert_eq!(
        serde_json::to_value(&changed.metadata).unwrap(),
        json!({"c": "3", "d": "4"})
    );
    let empty = update(&environment, json!({"description": ""})).unwrap();
    assert_eq!(empty.description.as_deref(), Some(""));

    let partial = cloud(json!({
        "networking": {"type": "limited", "allow_mcp_servers": true}, "packages": {"pip": []},
    }));
    let merged = update(&environment, partial).unwrap();
    let EnvironmentConfig::Cloud(config) = merged.config else {
        panic!()
    };
    let Networking::Limited(network) = config.networking else {
        panic!()
    };
    assert_eq!(network.allowed_hosts, ["a.com"]);
    assert!(network.allow_mcp_servers && network.allow_package_managers);
    assert!(config.packages.pip.is_empty() && config.packages.npm == ["y"]);

    let open = cloud(json!({"networking": {"type": "unrestricted"}}));
    let EnvironmentConfig::Cloud(config) = update(&environment, open).unwrap().config else {
        panic!()
    };
    assert_eq!(config.networking, Networking::default());
}

#[test]
fn an_update_is_checked_as_a_whole() {
    let environment = environment(cloud(json!({"packages": {"pip": ["x"]}})));
    // Switching starts `limited` from its defaults, which forbid packages.
    refused(
        update(
            &environment,
            cloud(json!({"networking": {"type": "limited"}})),
        ),
        "allow_package_managers: must be true",
    );
    let both = cloud(json!({"networking": {"type": "limited"}, "packages": {"pip": []}}));
    update(&environment, both).unwrap();
    let error = refused(
        update(&environment, json!({"config": {"type": "self_hosted"}})),
        "config.type: is `cloud` and cannot be changed",
    );
    assert_eq!(error.code, Some("invalid_config_type_change"));
    refused(update(&environment, json!({"name": ""})), "name: must have");
    refused(update(&environment, json!({"scope": "account"})), "scope");
    let archived = Environment {
        archived_at: Some(Timestamp::from_micros(1)),
        ..environment
    };
    let error = refused(update(&archived, json!({})), "is archived");
    assert_eq!(error.code, Some("environment_archived"));
}
