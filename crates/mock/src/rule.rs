//! Rules as JSON.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use crate::request::Parsed;

/// What to answer, and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub when: When,
    /// How often it may answer; any number of times without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    pub answer: Answer,
}

/// Conditions; all that are given must hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_user_contains: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_contains: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_result_contains: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_results: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forced: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

impl When {
    /// Whether this holds for the `nth` request of its model.
    #[must_use]
    pub(crate) fn holds(&self, request: &Parsed, nth: u64) -> bool {
        fn all<T>(condition: Option<&T>, holds: impl FnOnce(&T) -> bool) -> bool {
            condition.is_none_or(holds)
        }
        all(self.model.as_ref(), |m| fits(m, &request.model))
            && all(self.nth.as_ref(), |n| *n == nth)
            && all(self.turn.as_ref(), |n| *n == request.turn)
            && all(self.stream.as_ref(), |s| *s == request.stream)
            && all(self.tool.as_ref(), |t| request.tools.iter().any(|x| x == t))
            && all(self.forced.as_ref(), |t| request.forced.as_ref() == Some(t))
            && all(self.tool_results.as_ref(), |n| *n == request.results.len())
            && all(self.tool_result_contains.as_ref(), |t| {
                request.results.iter().any(|r| r.text.contains(t.as_str()))
            })
            && all(self.last_user_contains.as_ref(), |t| {
                request.user_text.contains(t.as_str())
            })
            && all(self.system_contains.as_ref(), |t| {
                request.system_text.contains(t.as_str())
            })
            && all(self.contains.as_ref(), |t| {
                request.body.contains(t.as_str())
            })
    }

    /// Whether the rule is about this model and no other.
    #[must_use]
    pub(crate) fn is_for(&self, model: &str) -> bool {
        self.model.as_deref().is_some_and(|m| fits(m, model))
    }
}

fn fits(pattern: &str, model: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => model.starts_with(prefix),
        None => pattern == model,
    }
}

/// The steps of a response. A string in JSON is one text.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Answer(pub Vec<Step>);

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(vec![Step::Text(Chunks::Whole(text))])),
            // Through a value, so that an error says which step and why.
            Value::Array(steps) => steps
                .into_iter()
                .enumerate()
                .map(|(i, step)| {
                    Step::deserialize(step).map_err(|e| de::Error::custom(format!("step {i}: {e}")))
                })
                .collect::<Result<_, _>>()
                .map(Self),
            _ => Err(de::Error::custom("`answer` is a string or a list of steps")),
        }
    }
}

/// One thing that a response does. The README says what each means.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Text(Chunks),
    Thinking(Chunks),
    RedactedThinking(String),
    Tool(Tool),
    Stop(Stop),
    Refusal(Refusal),
    Usage(Map<String, Value>),
    Gate(String),
    Start(bool),
    DelayMs(u64),
    Drip(Drip),
    Error(Failure),
    Raw(String),
    Ping(bool),
    Cut(Cut),
    CutAfterBytes(usize),
    Hang(bool),
}

/// Text as a whole, or in exactly these deltas.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Chunks {
    Whole(String),
    Exact(Vec<String>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// The input's text instead of `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Chunks>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    Reason(String),
    Full {
        reason: String,
        sequence: Option<String>,
    },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refusal {
    pub category: Option<String>,
    pub explanation: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drip {
    pub bytes: usize,
    pub every_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub status: u16,
    /// Follows from the status if left out.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Failure {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: None,
            message: Some(message.into()),
            retry_after: None,
            retry_after_ms: None,
        }
    }

    /// The error's type, by its status if none was given.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or(match self.status {
            400 => "invalid_request_error",
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            529 => "overloaded_error",
            _ => "api_error",
        })
    }

    /// The error's words.
    #[must_use]
    pub fn message(&self) -> &str {
        self.message.as_deref().unwrap_or("A scripted error")
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// The connection breaks.
    Abort,
    /// The body ends as if it were complete.
    End,
}

/// Rules that could not be read.
#[derive(Debug)]
pub struct Broken(pub(crate) serde_json::Error);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a rule or a list of rules: {}", self.0)
    }
}

impl std::error::Error for Broken {}

/// One rule or several.
pub(crate) fn parse(json: &str) -> Result<Vec<Rule>, Broken> {
    let rules = if json.trim_start().starts_with('[') {
        serde_json::from_str(json)
    } else {
        serde_json::from_str(json).map(|rule| vec![rule])
    };
    rules.map_err(Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_readme_parses() {
        let readme = include_str!("../README.md");
        let mut seen = 0;
        for line in readme.lines().filter(|l| l.starts_with("| `{\"")) {
            let forms = line.split('|').nth(1).unwrap();
            for form in forms.split('`').filter(|f| f.starts_with('{')) {
                let rule = format!(r#"{{"answer": [{form}]}}"#);
                parse(&rule).unwrap_or_else(|e| panic!("{form}: {e}"));
                seen += 1;
            }
        }
        assert!(seen > 15, "only {seen} found");
    }

    #[test]
    fn the_conversation_of_the_readme_parses() {
        let readme = include_str!("../README.md");
        let json = readme
            .split("```json\n")
            .nth(2)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        let rules = parse(json).unwrap();
        assert_eq!(rules.len(), 3);
        assert_eq!(rules[1].answer.0.len(), 4);
    }

    #[test]
    fn mistakes_are_named() {
        for (json, words) in [
            (
                r#"{"answer": [{"txt": "a"}]}"#,
                "step 0: unknown variant `txt`",
            ),
            (r#"{"answer": 3}"#, "a string or a list"),
            (
                r#"{"when": {"modle": "a"}, "answer": "a"}"#,
                "unknown field `modle`",
            ),
            (r#"{"when": {}}"#, "missing field `answer`"),
            (
                r#"{"answer": [{"text": "a"}, {"tool": {"nam": "x"}}]}"#,
                "step 1: unknown field `nam`",
            ),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
    }
}
