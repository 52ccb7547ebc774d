//! The state of a mock: its rules, what it was asked, its gates.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Serialize, Serializer};
use tokio::sync::watch;

use crate::{
    demo,
    fill::fill,
    gate::Gates,
    oauth::OAuth,
    request::Parsed,
    rule::{Broken, Rule, Step, parse},
    usage::{Cache, Input},
};

const LOG_ENTRIES: usize = 10_000;
const LOG_BYTES: usize = 64 << 20;

/// A mock's behaviour and memory. Clones share both. Without rules it is the demo model.
#[derive(Debug, Clone, Default)]
pub struct Script(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    gates: Gates,
    oauth: OAuth,
    /// Ticks when the log changes.
    tick: watch::Sender<u64>,
    /// Ids must differ between mocks, too: conversations outlive them.
    id_prefix: u32,
    next_id: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            gates: Gates::default(),
            oauth: OAuth::default(),
            tick: watch::Sender::default(),
            id_prefix: rand::random(),
            next_id: AtomicU64::new(1),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Active>,
    calls: HashMap<String, u64>,
    log: Log,
    cache: Cache,
}

/// The latest requests, within bounds: a mock may run for days.
#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Entry>,
    bytes: usize,
    next: u64,
}

impl Log {
    fn push(&mut self, logged: Logged) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += logged.body.len();
        self.entries.push_back(Entry { number, logged });
        while self.entries.len() > LOG_ENTRIES || (self.bytes > LOG_BYTES && self.entries.len() > 1)
        {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= oldest.logged.body.len();
            }
        }
        number
    }

    fn forget(&mut self, model: Option<&str>) {
        self.entries
            .retain(|e| model.is_some_and(|m| m != e.logged.model));
        self.bytes = self.entries.iter().map(|e| e.logged.body.len()).sum();
    }

    fn ended(&mut self, number: u64, end: &'static str) {
        if let Ok(at) = self.entries.binary_search_by_key(&number, |e| e.number) {
            self.entries[at].logged.end = Some(end);
        }
    }
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    used: u32,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    logged: Logged,
}

/// A request that was received.
#[derive(Debug, Clone, Serialize)]
pub struct Logged {
    pub model: String,
    /// Counts the requests for this model from 1.
    pub nth: u64,
    /// The rule that answered: its name, else `#` and its position.
    pub rule: Option<String>,
    pub headers: BTreeMap<String, String>,
    /// `None` while the response is being sent; then `sent`, `error`, `cut` or `aborted`.
    pub end: Option<&'static str>,
    /// The body, byte for byte.
    #[serde(serialize_with = "as_text")]
    pub body: Arc<str>,
}

fn as_text<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// What a request gets.
pub(crate) struct Chosen {
    pub(crate) steps: Vec<Step>,
    pub(crate) input: Input,
    pub(crate) ticket: Ticket,
}

impl Script {
    /// The demo model with no rules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a rule.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(Active { rule, used: 0 });
    }

    /// Appends one rule or a list of rules; returns how many.
    ///
    /// # Errors
    /// When it is not that; nothing was added then.
    pub fn add_json(&self, json: &str) -> Result<usize, Broken> {
        let rules = parse(json)?;
        let added = rules.len();
        self.state()
            .rules
            .extend(rules.into_iter().map(|rule| Active { rule, used: 0 }));
        Ok(added)
    }

    /// The rules and how often each has answered.
    #[must_use]
    pub fn rules(&self) -> Vec<(Rule, u32)> {
        let state = self.state();
        state
            .rules
            .iter()
            .map(|a| (a.rule.clone(), a.used))
            .collect()
    }

    /// Forgets everything, or everything about one model.
    pub fn reset(&self, model: Option<&str>) {
        let mut state = self.state();
        state.cache.reset(model);
        state.log.forget(model);
        match model {
            Some(model) => {
                state.rules.retain(|a| !a.rule.when.is_for(model));
                state.calls.remove(model);
            }
            None => {
                state.rules.clear();
                state.calls.clear();
                self.0.gates.reset();
            }
        }
    }

    /// The requests received, oldest first; of one model or of all.
    #[must_use]
    pub fn requests(&self, model: Option<&str>) -> Vec<Logged> {
        let state = self.state();
        let entries = state.log.entries.iter().map(|e| &e.logged);
        entries
            .filter(|l| model.is_none_or(|m| m == l.model))
            .cloned()
            .collect()
    }

    /// Waits until `count` requests have been received (and answered to the end, if `ended`); returns
    /// all there are then.
    pub async fn wait_requests(
        &self,
        model: Option<&str>,
        count: usize,
        ended: bool,
    ) -> Vec<Logged> {
        let mut changes = self.0.tick.subscribe();
        loop {
            let requests = self.requests(model);
            let counted = requests.iter().filter(|r| !ended || r.end.is_some());
            if counted.count() >= count || changes.changed().await.is_err() {
                return requests;
            }
        }
    }

    /// Opens a gate for good, or lets `times` more responses through.
    pub fn release(&self, gate: &str, times: Option<u32>) {
        self.0.gates.get(gate).release(times);
    }

    /// Waits until a response is blocked at the gate.
    pub async fn wait_gate(&self, gate: &str) {
        self.0.gates.get(gate).reached().await;
    }

    /// The OAuth grants, and the MCP servers behind them.
    #[must_use]
    pub fn oauth(&self) -> &OAuth {
        &self.0.oauth
    }

    pub(crate) fn gates(&self) -> &Gates {
        &self.0.gates
    }

    /// An id no other mock gives.
    pub(crate) fn id(&self, kind: &str) -> String {
        let n = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        format!("{kind}_mock{:08x}{n:012x}", self.0.id_prefix)
    }

    /// Counts and logs a request and says what answers it.
    pub(crate) fn choose(&self, request: &Parsed, headers: BTreeMap<String, String>) -> Chosen {
        // Outside the lock: it may be a large prompt.
        let has_breakpoints = request.body.contains("\"cache_control\"");
        let mut state = self.state();
        let State {
            rules,
            calls,
            log,
            cache,
        } = &mut *state;

        let nth = calls.entry(request.model.clone()).or_default();
        *nth += 1;
        let nth = *nth;
        let input = cache.count(&request.model, &request.json, has_breakpoints);
        let found = rules.iter_mut().enumerate().find(|(_, active)| {
            active.rule.times.is_none_or(|times| active.used < times)
                && active.rule.when.holds(request, nth)
        });
        let (rule, mut steps) = match found {
            Some((position, active)) => {
                active.used += 1;
                let name = active.rule.name.clone();
                let name = name.unwrap_or_else(|| format!("#{position}"));
                (Some(name), active.rule.answer.0.clone())
            }
            None => (None, demo::answer(request)),
        };

        let number = log.push(Logged {
            model: request.model.clone(),
            nth,
            rule,
            headers,
            end: None,
            body: request.body.as_str().into(),
        });
        drop(state);
        self.tick();
        fill(&mut steps, &request.json);
        Chosen {
            steps,
            input,
            ticket: Ticket {
                script: self.clone(),
                number,
                end: "aborted",
            },
        }
    }

    /// Logs a request that is refused before any rule was looked at. It is not counted.
    pub(crate) fn log_refused(&self, request: &Parsed, headers: BTreeMap<String, String>) {
        let nth = {
            let state = self.state();
            state.calls.get(&request.model).copied().unwrap_or(0)
        };
        self.state().log.push(Logged {
            model: request.model.clone(),
            nth,
            rule: Some("refused".to_owned()),
            headers,
            end: Some("error"),
            body: request.body.as_str().into(),
        });
        self.tick();
    }

    fn tick(&self) {
        self.0.tick.send_modify(|n| *n += 1);
    }
}

/// Follows a response to its end: when it is dropped, the log says how that was.
#[derive(Debug)]
pub(crate) struct Ticket {
    script: Script,
    number: u64,
    end: &'static str,
}

impl Ticket {
    pub(crate) fn script(&self) -> &Script {
        &self.script
    }

    /// Not `aborted` any more.
    pub(crate) fn end(&mut self, end: &'static str) {
        self.end = end;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.script.state();
        state.log.ended(self.number, self.end);
        drop(state);
        self.script.tick();
    }
}
