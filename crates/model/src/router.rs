//! Which provider serves which model.

use std::{fmt, sync::Arc};

use crate::{ModelError, Provider, Request, ResponseStream};

/// Models that go to one provider.
#[derive(Debug, Clone)]
pub struct Route {
    /// For ledgers and logs.
    pub name: String,
    /// A model id, where `*` stands for any text: `claude-*`, `*`.
    pub pattern: String,
    /// What the upstream calls the model, when it is another name.
    pub upstream_model: Option<String>,
    pub provider: Arc<dyn Provider>,
}

/// The routes in order: the first whose pattern fits serves.
#[derive(Debug, Clone, Default)]
pub struct Router {
    routes: Vec<Route>,
}

impl Router {
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        Self { routes }
    }

    /// Everything to one provider.
    #[must_use]
    pub fn single(name: impl Into<String>, provider: Arc<dyn Provider>) -> Self {
        Self::new(vec![Route {
            name: name.into(),
            pattern: "*".into(),
            upstream_model: None,
            provider,
        }])
    }

    /// The route that serves `model`; `None` when none was configured for it.
    #[must_use]
    pub fn route(&self, model: &str) -> Option<&Route> {
        self.routes.iter().find(|route| fits(&route.pattern, model))
    }
}

#[async_trait::async_trait]
impl Provider for Router {
    async fn stream(&self, mut request: Request) -> Result<ResponseStream, ModelError> {
        let Some(route) = self.route(&request.model) else {
            let message = format!("No model provider is configured for `{}`", request.model);
            return Err(ModelError::permanent(message));
        };
        if let Some(upstream) = &route.upstream_model {
            upstream.clone_into(&mut request.model);
        }
        route.provider.stream(request).await
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.pattern, self.name)
    }
}

fn fits(pattern: &str, model: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = model.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for piece in pieces {
        if let Some(middle) = last.replace(piece) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(end) => rest.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, model, yes) in [
            ("*", "anything", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("claude-*", "claude-opus-5", true),
            ("claude-*", "claude-", true),
            ("claude-*", "gpt", false),
            ("*-mini", "gpt-mini", true),
            ("*-mini", "gpt-mini-2", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "a", false),
            ("ab*ba", "aba", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("*x*", "axb", true),
            ("*x*", "ab", false),
            ("**", "ab", true),
        ] {
            assert_eq!(fits(pattern, model), yes, "{pattern} {model}");
        }
    }
}
