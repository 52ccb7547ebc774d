//! A mock and a client for it.

use selfsame_mock::{Running, Script};
use serde_json::{Value, json};

pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) mock: Running,
    pub(crate) script: Script,
}

impl Client {
    pub(crate) async fn new() -> Self {
        let script = Script::new();
        Self {
            http: selfsame_net::operator_client(&Default::default()).unwrap(),
            mock: selfsame_mock::spawn(script.clone()).await.unwrap(),
            script,
        }
    }

    pub(crate) async fn rules(&self, rules: Value) {
        let (status, body) = self.post("/_mock/rules", &rules).await;
        assert_eq!(status, 200, "{body}");
    }

    pub(crate) fn request(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http
            .post(format!("{}{path}", self.mock.url()))
            .header("x-api-key", "k")
            .header("anthropic-version", "2023-06-01")
            .body(body.to_string())
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let response = self.request(path, body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let url = format!("{}{path}", self.mock.url());
        self.http
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    /// A plain response.
    pub(crate) async fn ask(&self, mut body: Value) -> Value {
        body["max_tokens"] = json!(100);
        let (status, text) = self.post("/v1/messages", &body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The text a plain response begins with.
    pub(crate) async fn say(&self, model: &str, text: &str) -> String {
        let answer = self
            .ask(json!({"model": model, "messages": [user(text)]}))
            .await;
        answer["content"][0]["text"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub(crate) fn streaming(model: &str, text: &str) -> Value {
    json!({"model": model, "max_tokens": 100, "stream": true, "messages": [user(text)]})
}
