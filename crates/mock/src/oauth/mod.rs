//! OAuth grants: a token endpoint for each, and an MCP server that takes its tokens.
//!
//! Each grant is apart from the others, so that tests can run side by side. Refresh tokens rotate, and one that
//! comes a second time ends the whole grant, as servers do that take it for stolen.

mod endpoints;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use endpoints::router;

/// How a client says who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    #[default]
    None,
    ClientSecretBasic,
    ClientSecretPost,
}

/// What a grant is to be like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Terms {
    pub client_id: String,
    pub client_secret: String,
    pub auth: ClientAuth,
    /// Seconds an access token lives. `None`: until the test says that it is over.
    pub expires_in: Option<u64>,
    /// A refresh gives a new refresh token, and the old one is of no use.
    pub rotates: bool,
    /// What must be asked for, if anything.
    pub resource: Option<String>,
    pub scope: Option<String>,
    /// What each token begins with.
    pub prefix: String,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            client_id: "client".into(),
            client_secret: "secret".into(),
            auth: ClientAuth::None,
            expires_in: None,
            rotates: true,
            resource: None,
            scope: None,
            prefix: "token".into(),
        }
    }
}

/// An answer instead of the proper one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Instead {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// Only once this gate lets it through. Without a `status`, what follows is the proper answer.
    pub gate: Option<String>,
}

impl Default for Instead {
    fn default() -> Self {
        let json = [("content-type", "application/json")];
        Self {
            status: 0,
            headers: json.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            body: String::new(),
            gate: None,
        }
    }
}

/// Which of the two endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    Token,
    Mcp,
}

/// A request that came.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    pub method: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// A grant as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    pub name: String,
    /// Paths below the mock's address.
    pub token_endpoint: String,
    pub mcp_server: String,
    /// The latest.
    pub access_token: String,
    pub refresh_token: String,
    /// Every token there ever was.
    pub issued: Vec<String>,
    /// A refresh token was used twice.
    pub is_revoked: bool,
    pub token_requests: Vec<Asked>,
    pub mcp_requests: Vec<Asked>,
}

/// All grants of a mock. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct OAuth(Arc<Mutex<HashMap<String, Grant>>>);

#[derive(Debug)]
struct Grant {
    terms: Terms,
    issued: Vec<String>,
    access: String,
    access_until: Option<Instant>,
    is_expired: bool,
    refresh: String,
    used: Vec<String>,
    is_revoked: bool,
    instead: HashMap<Endpoint, VecDeque<Instead>>,
    asked: HashMap<Endpoint, Vec<Asked>>,
}

impl OAuth {
    fn grants(&self) -> MutexGuard<'_, HashMap<String, Grant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a grant with its first tokens.
    pub fn grant(&self, terms: Terms) -> Standing {
        let name = format!("{:016x}", rand::random::<u64>());
        let mut grant = Grant {
            terms,
            issued: Vec::new(),
            access: String::new(),
            access_until: None,
            is_expired: false,
            refresh: String::new(),
            used: Vec::new(),
            is_revoked: false,
            instead: HashMap::new(),
            asked: HashMap::new(),
        };
        grant.refresh = grant.new_token("rt");
        grant.issue();
        let standing = grant.standing(&name);
        self.grants().insert(name, grant);
        standing
    }

    fn with<T>(&self, name: &str, look: impl FnOnce(&mut Grant) -> T) -> Option<T> {
        self.grants().get_mut(name).map(look)
    }

    #[must_use]
    pub fn standing(&self, name: &str) -> Option<Standing> {
        self.with(name, |grant| grant.standing(name))
    }

    /// The present access token is of no use any more, whatever was said of its life.
    pub fn expire(&self, name: &str) {
        self.with(name, |grant| grant.is_expired = true);
    }

    /// The next requests get these answers.
    pub fn instead(&self, name: &str, endpoint: Endpoint, answers: Vec<Instead>) {
        self.with(name, |grant| {
            grant.instead.entry(endpoint).or_default().extend(answers);
        });
    }
}

/// What a client that is asking for tokens has shown.
#[derive(Debug, Default)]
struct Shown {
    form: HashMap<String, String>,
    /// Of HTTP Basic, decoded.
    basic: Option<(String, String)>,
}

impl Grant {
    fn new_token(&mut self, kind: &str) -> String {
        let token = format!(
            "{}-{kind}-{:032x}",
            self.terms.prefix,
            rand::random::<u128>()
        );
        self.issued.push(token.clone());
        token
    }

    fn issue(&mut self) {
        self.access = self.new_token("at");
        self.is_expired = false;
        let life = self.terms.expires_in.map(Duration::from_secs);
        self.access_until = life.map(|life| Instant::now() + life);
    }

    fn takes(&self, token: &str) -> bool {
        token == self.access
            && !self.is_revoked
            && !self.is_expired
            && self.access_until.is_none_or(|until| Instant::now() < until)
    }

    fn standing(&self, name: &str) -> Standing {
        let asked = |endpoint| self.asked.get(&endpoint).cloned().unwrap_or_default();
        Standing {
            name: name.to_owned(),
            token_endpoint: format!("/oauth/{name}/token"),
            mcp_server: format!("/oauth/{name}/mcp"),
            access_token: self.access.clone(),
            refresh_token: self.refresh.clone(),
            issued: self.issued.clone(),
            is_revoked: self.is_revoked,
            token_requests: asked(Endpoint::Token),
            mcp_requests: asked(Endpoint::Mcp),
        }
    }

    fn is_client(&self, shown: &Shown) -> bool {
        let form = |name| shown.form.get(name).map(String::as_str);
        let (id, secret) = (&*self.terms.client_id, &*self.terms.client_secret);
        match self.terms.auth {
            ClientAuth::None => {
                form("client_id") == Some(id)
                    && form("client_secret").is_none()
                    && shown.basic.is_none()
            }
            ClientAuth::ClientSecretPost => {
                form("client_id") == Some(id)
                    && form("client_secret") == Some(secret)
                    && shown.basic.is_none()
            }
            ClientAuth::ClientSecretBasic => {
                let basic = shown.basic.as_ref().map(|(id, secret)| (&**id, &**secret));
                basic == Some((id, secret)) && form("client_secret").is_none()
            }
        }
    }

    /// RFC 6749 §6: a status and a body.
    fn refresh(&mut self, shown: &Shown) -> (u16, Value) {
        let refuse = |status, error: &str| (status, json!({"error": error}));
        let form = |name| shown.form.get(name).map(String::as_str);
        if !self.is_client(shown) {
            return refuse(401, "invalid_client");
        }
        if form("grant_type") != Some("refresh_token") {
            return refuse(400, "unsupported_grant_type");
        }
        if form("resource") != self.terms.resource.as_deref() {
            return refuse(400, "invalid_target");
        }
        if form("scope") != self.terms.scope.as_deref() {
            return refuse(400, "invalid_scope");
        }
        let shown = form("refresh_token").unwrap_or_default();
        if self.used.iter().any(|used| used == shown) {
            self.is_revoked = true;
        }
        if self.is_revoked || shown != self.refresh {
            return refuse(400, "invalid_grant");
        }
        self.issue();
        let mut body = json!({"access_token": self.access, "token_type": "Bearer"});
        if let Some(seconds) = self.terms.expires_in {
            body["expires_in"] = seconds.into();
        }
        if self.terms.rotates {
            let old = std::mem::take(&mut self.refresh);
            self.used.push(old);
            self.refresh = self.new_token("rt");
            body["refresh_token"] = (&*self.refresh).into();
        }
        (200, body)
    }
}
