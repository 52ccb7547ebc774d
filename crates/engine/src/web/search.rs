//! A search, asked of the backend that the operator has chosen.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use selfsame_net::{
    NetError, OperatorOptions, operator_client, read_limited,
    reqwest::{
        Client, RequestBuilder, StatusCode, Url,
        header::{ACCEPT, HeaderValue},
    },
};
use selfsame_types::tool::UserLocation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    countries, dom,
    domains::{self, Domains},
    fetch::Unfetched,
    markdown::collapse,
};

/// Most bytes of an answer.
const MAX_ANSWER: usize = 4 << 20;
/// Most of what one result says, in characters.
const MAX_SNIPPET: usize = 4000;
const MAX_TITLE: usize = 300;
/// Brave and Tavily take no longer queries.
const MAX_QUERY: usize = 400;
/// So many sites are put into the query itself; all of them are checked in the results.
const MAX_SITES: usize = 4;
/// What Brave and Tavily give at most.
const MOST_RESULTS: usize = 20;

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchBackend {
    Searxng,
    Brave,
    Tavily,
}

impl SearchBackend {
    /// Where it is unless configured; everybody's `SearXNG` is somewhere else.
    #[must_use]
    pub fn usual_address(self) -> Option<&'static str> {
        match self {
            Self::Searxng => None,
            Self::Brave => Some("https://api.search.brave.com/"),
            Self::Tavily => Some("https://api.tavily.com/"),
        }
    }

    #[must_use]
    pub fn needs_key(self) -> bool {
        self != Self::Searxng
    }
}

/// How searches are made.
#[derive(Debug, Clone)]
pub struct SearchConfig {
    pub backend: SearchBackend,
    /// Its base address.
    pub url: Url,
    pub key: Option<SecretString>,
    /// Most results of one search.
    pub results: usize,
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
pub(super) struct Searcher {
    client: Client,
    config: SearchConfig,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hit {
    url: String,
    title: String,
    text: String,
}

impl Hit {
    pub(super) fn block(&self) -> Value {
        json!({
            "type": "search_result",
            "source": self.url,
            "title": self.title,
            "content": [{"type": "text", "text": self.text}],
            "citations": {"enabled": false},
        })
    }
}

/// One result, in the words of any of the backends.
#[derive(Deserialize)]
struct Item {
    url: String,
    #[serde(default)]
    title: Option<String>,
    #[serde(default, alias = "description")]
    content: Option<String>,
    #[serde(default)]
    extra_snippets: Option<Vec<String>>,
}

/// Results that cannot be read are passed over.
#[derive(Deserialize)]
struct Results {
    results: Vec<Value>,
}

#[derive(Deserialize)]
struct BraveAnswer {
    #[serde(default)]
    web: Option<Results>,
}

impl Searcher {
    pub(super) fn new(config: SearchConfig, operator: &OperatorOptions) -> Result<Self, NetError> {
        let client = operator_client(&OperatorOptions {
            idle: config.timeout,
            ..operator.clone()
        })?;
        Ok(Self { client, config })
    }

    /// What is found, without what `lists` do not allow.
    pub(super) async fn search(
        &self,
        query: &str,
        lists: &[Domains],
        location: Option<&UserLocation>,
    ) -> Result<Vec<Hit>, Unfetched> {
        let query = query.trim();
        if query.is_empty() {
            return Err(Unfetched::new("invalid_input", "`query` is empty"));
        }
        if query.chars().count() > MAX_QUERY {
            return Err(Unfetched::new(
                "query_too_long",
                format!("a query may have at most {MAX_QUERY} characters"),
            ));
        }
        let request = match self.config.backend {
            SearchBackend::Searxng => self.searxng(query, lists),
            SearchBackend::Brave => self.brave(query, lists, location),
            SearchBackend::Tavily => self.tavily(query, lists, location),
        };
        let limit = self.config.timeout;
        let answer = match tokio::time::timeout(limit, self.ask(request?)).await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(unavailable(format!(
                    "the search backend did not answer within {} seconds",
                    limit.as_secs_f32()
                )));
            }
        };
        let items = match self.config.backend {
            SearchBackend::Brave => serde_json::from_slice::<BraveAnswer>(&answer)
                .map(|answer| answer.web.map_or_else(Vec::new, |web| web.results)),
            SearchBackend::Searxng | SearchBackend::Tavily => {
                serde_json::from_slice::<Results>(&answer).map(|answer| answer.results)
            }
        };
        let items = items.map_err(|error| {
            tracing::warn!(%error, "a search backend's answer cannot be read");
            unavailable("the search backend's answer cannot be read")
        })?;
        let marked_up = self.config.backend == SearchBackend::Brave;
        Ok(items
            .into_iter()
            .filter_map(|item| serde_json::from_value(item).ok())
            .filter_map(|item| hit(item, marked_up))
            .filter(|hit| {
                Url::parse(&hit.url).is_ok_and(|url| {
                    matches!(url.scheme(), "http" | "https") && domains::permits(lists, &url)
                })
            })
            .take(self.config.results)
            .collect())
    }

    async fn ask(&self, request: RequestBuilder) -> Result<bytes::Bytes, Unfetched> {
        let response = request
            .header(ACCEPT, "application/json")
            .send()
            .await
            .map_err(|error| {
                tracing::warn!(error = %error.without_url(), "a search backend cannot be reached");
                unavailable("the search backend cannot be reached")
            })?;
        let status = response.status();
        if status.is_success() {
            return read_limited(response, MAX_ANSWER).await.map_err(|error| {
                tracing::warn!(%error, "a search backend's answer cannot be read");
                unavailable("the search backend's answer cannot be read")
            });
        }
        let hint = match (self.config.backend, status) {
            (_, StatusCode::UNAUTHORIZED) => "is web.search_key right?",
            (SearchBackend::Searxng, StatusCode::FORBIDDEN) => {
                "SearXNG answers JSON only when `json` is in search.formats of its settings.yml"
            }
            _ => "",
        };
        tracing::warn!(%status, hint, "a search backend refuses");
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Unfetched::new(
                "too_many_requests",
                "the search backend has no more room at the moment; try again later",
            ));
        }
        Err(unavailable(format!(
            "the search backend answered HTTP {}",
            status.as_u16()
        )))
    }

    fn endpoint(&self, path: &str) -> Result<Url, Unfetched> {
        let mut url = self.config.url.clone();
        url.path_segments_mut()
            .map_err(|()| unavailable("the search backend's address cannot be used"))?
            .pop_if_empty()
            .extend(path.split('/'));
        Ok(url)
    }

    fn searxng(&self, query: &str, lists: &[Domains]) -> Result<RequestBuilder, Unfetched> {
        let request = self
            .client
            .get(self.endpoint("search")?)
            .query(&[("q", &*with_sites(query, lists)), ("format", "json")]);
        Ok(match &self.config.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        })
    }

    fn brave(
        &self,
        query: &str,
        lists: &[Domains],
        location: Option<&UserLocation>,
    ) -> Result<RequestBuilder, Unfetched> {
        let mut request = self
            .client
            .get(self.endpoint("res/v1/web/search")?)
            .query(&[
                ("q", &*with_sites(query, lists)),
                ("count", &MOST_RESULTS.to_string()),
                ("result_filter", "web"),
                ("text_decorations", "false"),
                ("extra_snippets", "true"),
            ])
            .header(
                "x-subscription-token",
                secret_header(self.config.key.as_ref())?,
            );
        if let Some(location) = location {
            for (name, value) in [
                ("x-loc-city", &location.city),
                ("x-loc-state-name", &location.region),
                ("x-loc-country", &location.country),
                ("x-loc-timezone", &location.timezone),
            ] {
                // A name that does not fit into a header is worth no failure.
                if let Some(value) = value
                    && value.is_ascii()
                    && let Ok(value) = HeaderValue::from_str(value)
                {
                    request = request.header(name, value);
                }
            }
        }
        Ok(request)
    }

    fn tavily(
        &self,
        query: &str,
        lists: &[Domains],
        location: Option<&UserLocation>,
    ) -> Result<RequestBuilder, Unfetched> {
        let restricted = !(allowed(lists).is_empty() && blocked(lists).is_empty());
        let mut body = json!({
            "query": query,
            "max_results": if restricted { MOST_RESULTS } else { self.config.results.min(MOST_RESULTS) },
            "search_depth": "basic",
            "include_domains": allowed(lists),
            "exclude_domains": blocked(lists),
        });
        let country = location.and_then(|location| location.country.as_deref());
        if let Some(name) = country.and_then(countries::name) {
            body["country"] = json!(name);
        }
        let request = self.client.post(self.endpoint("search")?).json(&body);
        Ok(match &self.config.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        })
    }
}

fn unavailable(message: impl Into<String>) -> Unfetched {
    Unfetched::new("unavailable", message)
}

fn secret_header(key: Option<&SecretString>) -> Result<HeaderValue, Unfetched> {
    let key = key.map_or("", |key| key.expose_secret());
    let mut value = HeaderValue::from_str(key)
        .map_err(|_| unavailable("the server's key for the search backend cannot be used"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Hosts that some list wants. What is not in every list is dropped from the results.
fn allowed(lists: &[Domains]) -> Vec<&str> {
    let first = lists.iter().find_map(|list| list.allowed.as_deref());
    first.unwrap_or_default().iter().map(|e| host(e)).collect()
}

/// Hosts that some list blocks as a whole.
fn blocked(lists: &[Domains]) -> Vec<&str> {
    lists
        .iter()
        .filter_map(|list| list.blocked.as_deref())
        .flatten()
        .filter(|entry| !entry.trim_end_matches('/').contains('/'))
        .map(|entry| host(entry))
        .collect()
}

fn host(entry: &str) -> &str {
    entry.split_once('/').map_or(entry, |(host, _)| host)
}

/// The query with the operators that every search engine knows. They bring more of what is allowed among
/// the results; what they let through is dropped all the same.
fn with_sites(query: &str, lists: &[Domains]) -> String {
    let (allowed, blocked) = (allowed(lists), blocked(lists));
    let mut full = query.to_owned();
    if (1..=MAX_SITES).contains(&allowed.len()) {
        let sites: Vec<_> = allowed.iter().map(|host| format!("site:{host}")).collect();
        full.push(' ');
        full.push_str(&match sites.as_slice() {
            [one] => one.clone(),
            several => format!("({})", several.join(" OR ")),
        });
    }
    if blocked.len() <= MAX_SITES {
        for host in blocked {
            full.push_str(" -site:");
            full.push_str(host);
        }
    }
    if full.chars().count() > MAX_QUERY {
        return query.to_owned();
    }
    full
}

fn hit(item: Item, marked_up: bool) -> Option<Hit> {
    let plain = |text: &str| {
        if marked_up && text.contains(['<', '&']) {
            dom::text(&dom::parse(text).0)
        } else {
            text.to_owned()
        }
    };
    let mut text = plain(item.content.as_deref().unwrap_or_default());
    for snippet in item.extra_snippets.iter().flatten() {
        text.push('\n');
        text.push_str(&plain(snippet));
    }
    let title = collapse(&plain(item.title.as_deref().unwrap_or_default()), MAX_TITLE);
    let title = if title.is_empty() {
        item.url.clone()
    } else {
        title
    };
    let end = text
        .char_indices()
        .nth(MAX_SNIPPET)
        .map_or(text.len(), |(at, _)| at);
    let text = match text[..end].trim() {
        "" => title.clone(),
        text => text.to_owned(),
    };
    (item.url.len() <= super::fetch::MAX_URL).then_some(Hit {
        url: item.url,
        title,
        text,
    })
}

#[cfg(test)]
mod tests;
