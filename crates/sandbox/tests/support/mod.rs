//! What the tests share that need the real hands in real containers.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    Docker,
    query_parameters::{ListImagesOptionsBuilder, RemoveImageOptionsBuilder},
};
use selfsame_sandbox::{
    Backend, Call, CallResult, Content, DockerBackend, DockerOptions, Limits, Sandbox,
};
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The static hands: `./dev hands` builds them and `./dev` names them.
pub(crate) fn hands() -> PathBuf {
    if let Some(path) = std::env::var_os("SELFSAME_HANDS") {
        return path.into();
    }
    let path = format!(
        "{}/../../target/{}-unknown-linux-gnu/hands/selfsame-hands",
        env!("CARGO_MANIFEST_DIR"),
        std::env::consts::ARCH
    );
    assert!(
        std::fs::exists(&path).unwrap(),
        "build the hands first: ./dev hands"
    );
    path.into()
}

pub(crate) fn image() -> String {
    std::env::var_os("SELFSAME_SANDBOX_IMAGE").map_or_else(
        || "selfsame-sandbox:latest".to_owned(),
        |name| name.into_string().unwrap(),
    )
}

pub(crate) fn call(tool: &str, input: serde_json::Value) -> Call {
    let id = Uuid::now_v7();
    Call {
        id,
        shell: Uuid::nil(),
        tool: tool.to_owned(),
        input,
        spill_name: id.to_string(),
    }
}

pub(crate) fn text(result: &CallResult) -> String {
    let parts: Vec<_> = result
        .content
        .iter()
        .map(|part| match part {
            Content::Text(text) => text.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(!result.is_error, "{parts:?}");
    parts.concat()
}

pub(crate) async fn bash(sandbox: &Sandbox, command: &str) -> String {
    let call = call("bash", json!({ "command": command }));
    let result = sandbox.call(&call).await.unwrap();
    sandbox.ack(call.id).await.unwrap();
    text(&result)
}

/// A deployment of its own.
pub(crate) fn options(limits: Limits) -> DockerOptions {
    DockerOptions {
        host: None,
        deployment: format!("test-{}", Uuid::now_v7().simple()),
        hands: hands(),
        runtime: None,
        pull: false,
        limits,
        low_water_bytes: 0,
        start_concurrency: 4,
    }
}

/// A deployment of which nothing stays, also when the test fails.
pub(crate) async fn deployment<T>(limits: Limits, test: impl FnOnce(Arc<DockerBackend>) -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    let options = options(limits);
    let deployment = options.deployment.clone();
    let backend = Arc::new(DockerBackend::connect(options).await.unwrap());
    let outcome = tokio::spawn(timeout(PATIENCE, test(Arc::clone(&backend)))).await;
    for left in backend.list().await.unwrap() {
        backend.remove(&left.handle).await.unwrap();
    }
    remove_images(&deployment).await;
    match outcome {
        Ok(outcome) => outcome.expect("the test took too long"),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Images that a test has made of its sandboxes, named or not.
async fn remove_images(deployment: &str) {
    let docker = Docker::connect_with_defaults().unwrap();
    let label = format!("dev.selfsame.deployment={deployment}");
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let options = ListImagesOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    for image in docker.list_images(Some(options)).await.unwrap() {
        let force = RemoveImageOptionsBuilder::new().force(true).build();
        // One below another goes with it.
        let _ = docker.remove_image(&image.id, Some(force), None).await;
    }
}
