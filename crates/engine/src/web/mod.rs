//! `web_fetch` and `web_search`: the two built-in tools that the server runs itself.
//!
//! They need no sandbox, an environment's `networking` does not govern them, and each call is over with
//! its one answer. A fetch that a crash cut off is made again; a search is not, because it may cost money.

mod countries;
mod dom;
mod domains;
mod fetch;
mod markdown;
mod search;
mod sources;

use std::sync::Arc;

use selfsame_net::{NetError, OperatorOptions, Policy};
use selfsame_types::{
    EventId, SessionId,
    agent::AgentSpec,
    tool::{BuiltinTool, BuiltinToolConfig, UserLocation},
};
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::Semaphore;

pub use fetch::FetchLimits;
pub use search::{SearchBackend, SearchConfig};

pub(crate) use domains::Domains;
pub(crate) use fetch::{Fetcher, Kind, Unfetched, looks_like_text, named_kind, sniff};

use crate::{
    Inner,
    machine::CallResult,
    spill::{self, start},
    transcript::Transcript,
};
use search::Searcher;
use sources::Seen;

/// Characters of a token, roughly. `max_content_tokens` is counted with it.
const CHARS_PER_TOKEN: usize = 4;

/// How the web tools work.
#[derive(Debug, Clone, Default)]
pub struct WebConfig {
    pub fetch: FetchLimits,
    /// `None`: every search is answered with an error that says so.
    pub search: Option<SearchConfig>,
}

/// Fetches and searches of this server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Web {
    pub(crate) fetcher: Fetcher,
    searcher: Option<Searcher>,
    /// Each holds what it fetches in memory.
    permits: Arc<Semaphore>,
}

/// Calls at once.
const MAX_CALLS: usize = 32;

impl Web {
    /// `policy` is for what users and models name, `operator` for the search backend.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn new(
        config: WebConfig,
        policy: &Policy,
        operator: &OperatorOptions,
    ) -> Result<Self, NetError> {
        Ok(Self {
            fetcher: Fetcher::new(policy, config.fetch)?,
            searcher: config
                .search
                .map(|search| Searcher::new(search, operator))
                .transpose()?,
            permits: Arc::new(Semaphore::new(MAX_CALLS)),
        })
    }
}

/// A call of one of the two, with what the agent's settings say about it.
#[derive(Debug)]
pub(crate) struct WebCall {
    tool: Tool,
    domains: Vec<Domains>,
    /// There is a sandbox to put long texts into.
    has_sandbox: bool,
}

#[derive(Debug)]
enum Tool {
    Fetch {
        max_content_tokens: Option<usize>,
        /// Addresses that may be fetched; `None`: any.
        seen: Option<Seen>,
    },
    Search {
        location: Option<UserLocation>,
    },
}

/// Whose call it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub session: SessionId,
    pub epoch: i64,
    pub call: EventId,
    /// Another server may have made it before.
    pub in_doubt: bool,
}

/// Whether the server runs this tool itself.
pub(crate) fn is_web(tool: &str) -> bool {
    BuiltinTool::parse(tool).is_some_and(BuiltinTool::is_web)
}

fn domains_of(config: &BuiltinToolConfig) -> Domains {
    let (allowed, blocked) = match config {
        BuiltinToolConfig::WebFetch(config) => (&config.allowed_domains, &config.blocked_domains),
        BuiltinToolConfig::WebSearch(config) => (&config.allowed_domains, &config.blocked_domains),
        BuiltinToolConfig::Sandbox(_) => (&None, &None),
    };
    Domains {
        allowed: allowed.clone(),
        blocked: blocked.clone(),
    }
}

impl WebCall {
    /// `None` for tools that run elsewhere. `agents`: the one whose call it is, and those that direct it,
    /// whose rules hold, too.
    pub(crate) fn of(agents: &[&AgentSpec], tool: &str, transcript: &Transcript) -> Option<Self> {
        let tool = BuiltinTool::parse(tool).filter(|tool| tool.is_web())?;
        let config = |agent: &&AgentSpec| -> Option<BuiltinToolConfig> {
            let configs = &agent.toolset()?.configs;
            configs.iter().find(|config| config.name() == tool).cloned()
        };
        let own = agents.first().and_then(config);
        let all: Vec<_> = agents.iter().filter_map(config).collect();
        Some(Self {
            domains: all.iter().map(domains_of).collect(),
            has_sandbox: agents.first().is_some_and(|agent| agent.needs_sandbox()),
            tool: if tool == BuiltinTool::WebFetch {
                let fetches = all.iter().filter_map(|config| match config {
                    BuiltinToolConfig::WebFetch(config) => config.max_content_tokens,
                    _ => None,
                });
                Tool::Fetch {
                    max_content_tokens: fetches
                        .map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX))
                        .next(),
                    seen: match &own {
                        Some(BuiltinToolConfig::WebFetch(config)) => config
                            .url_sources
                            .as_ref()
                            .map(|sources| Seen::new(sources, transcript)),
                        _ => None,
                    },
                }
            } else {
                let mut searches = all.iter().filter_map(|config| match config {
                    BuiltinToolConfig::WebSearch(config) => config.user_location.clone(),
                    _ => None,
                });
                Tool::Search {
                    location: searches.next(),
                }
            },
        })
    }

    /// Runs it. Whatever happens, there is a result.
    pub(crate) async fn run(self, inner: &Inner, caller: Caller, input: &Value) -> CallResult {
        let web = &inner.web;
        let Ok(_permit) = web.permits.acquire().await else {
            return refuse(&Unfetched::new("unavailable", "the server is stopping"));
        };
        let (name, done) = match &self.tool {
            Tool::Fetch { .. } => ("web_fetch", self.fetch(inner, caller, input).await),
            Tool::Search { location } => {
                let location = location.as_ref();
                (
                    "web_search",
                    self.search(web, caller, input, location).await,
                )
            }
        };
        let outcome = if done.is_ok() { "answered" } else { "failed" };
        metrics::counter!("selfsame_web_calls_total", "tool" => name, "outcome" => outcome)
            .increment(1);
        done.unwrap_or_else(|problem| refuse(&problem))
    }

    async fn fetch(
        &self,
        inner: &Inner,
        caller: Caller,
        input: &Value,
    ) -> Result<CallResult, Unfetched> {
        let Tool::Fetch {
            max_content_tokens,
            seen,
        } = &self.tool
        else {
            return Err(Unfetched::new("unavailable", "this is not a fetch"));
        };
        let fetcher = &inner.web.fetcher;
        let url = fetcher.parse(argument(input, "url")?)?;
        if seen.as_ref().is_some_and(|seen| !seen.contains(&url)) {
            return Err(Unfetched::new(
                "url_not_allowed",
                "this agent may only fetch addresses that have come up in the conversation, in the \
                 places that its url_sources name",
            ));
        }
        let found = fetcher.get(url, &self.domains).await?;
        if let Some(block) = found.binary() {
            return Ok(answer(&[block], 0));
        }
        let url = found.url.to_string();
        let (title, text, whole) = found.readable().await?;
        let text = if text.trim().is_empty() {
            "(the page has no text)".to_owned()
        } else if whole {
            text
        } else {
            text + "\n\n[The page is larger than what is read of one; the rest is left out.]"
        };
        let text = match max_content_tokens {
            Some(tokens) => cap(text, *tokens),
            None => text,
        };
        let title = title.map_or(String::new(), |title| format!("Title: {title}\n"));
        let text = format!("{title}URL: {url}\n\n{text}");
        let text = spill::shorten(inner, caller, self.has_sandbox, text).await;
        Ok(answer(&[json!({"type": "text", "text": text})], 0))
    }

    async fn search(
        &self,
        web: &Web,
        caller: Caller,
        input: &Value,
        location: Option<&UserLocation>,
    ) -> Result<CallResult, Unfetched> {
        let query = argument(input, "query")?;
        if caller.in_doubt {
            return Err(Unfetched::new(
                "unavailable",
                "the server was restarted while this search was under way. Whether it was made is \
                 unknown; it was not made again",
            ));
        }
        let Some(searcher) = &web.searcher else {
            return Err(Unfetched::new(
                "unavailable",
                "web_search is not configured on this server: its operator has to set \
                 web.search_backend",
            ));
        };
        let hits = searcher.search(query, &self.domains, location).await?;
        if hits.is_empty() {
            let none = json!({"type": "text", "text": "No results."});
            return Ok(answer(&[none], 1));
        }
        let blocks: Vec<_> = hits.iter().map(search::Hit::block).collect();
        Ok(answer(&blocks, 1))
    }
}

/// The first `tokens` of a text, as far as they can be told without the model's own count.
fn cap(text: String, tokens: usize) -> String {
    let limit = tokens.saturating_mul(CHARS_PER_TOKEN);
    if text.len() <= limit || text.chars().count() <= limit {
        return text;
    }
    format!(
        "{}\n\n[Cut off at this agent's max_content_tokens: {tokens} tokens, taken as {CHARS_PER_TOKEN} \
         characters each.]",
        start(&text, limit)
    )
}

fn argument<'a>(input: &'a Value, key: &str) -> Result<&'a str, Unfetched> {
    input[key].as_str().ok_or_else(|| {
        Unfetched::new(
            "invalid_input",
            format!("`{key}` is missing or is not a text"),
        )
    })
}

fn answer(blocks: &[Value], searches: u32) -> CallResult {
    CallResult {
        content: to_raw_value(blocks).expect("blocks serialize"),
        is_error: false,
        searches,
    }
}

fn refuse(problem: &Unfetched) -> CallResult {
    CallResult {
        is_error: true,
        ..answer(&[json!({"type": "text", "text": problem.to_string()})], 0)
    }
}
