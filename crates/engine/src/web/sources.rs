//! Which addresses a conversation has named, for agents that may fetch no others.

use std::collections::HashSet;

use selfsame_net::reqwest::Url;
use selfsame_types::tool::{UrlSource, UrlSourceKind, UrlSources};

use super::fetch::MAX_URL;
use crate::transcript::{Origin, Transcript};

/// Addresses that are looked at, over all of a conversation ..
const MAX_SEEN: usize = 20_000;
/// .. and readings of each: prose and Markdown put brackets and full stops behind an address, which may
/// belong to it.
const MAX_READINGS: usize = 8;

/// Addresses that `sources` lets through.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    urls: HashSet<String>,
    looked_at: usize,
}

impl Seen {
    /// Collects from a thread's transcript.
    pub(crate) fn new(sources: &UrlSources, transcript: &Transcript) -> Self {
        let mut seen = Self::default();
        transcript.read(|origin, text| {
            if takes(sources, origin) {
                seen.add(text);
            }
        });
        seen
    }

    pub(crate) fn contains(&self, url: &Url) -> bool {
        self.urls.contains(&normal(url.clone()))
    }

    /// Every address in a text.
    fn add(&mut self, text: &str) {
        for (at, _) in text.match_indices("://") {
            let scheme = ["https", "http"].into_iter().find(|scheme| {
                let before = at
                    .checked_sub(scheme.len())
                    .and_then(|from| text.get(from..at));
                before.is_some_and(|before| before.eq_ignore_ascii_case(scheme))
            });
            let Some(scheme) = scheme else { continue };
            if self.looked_at == MAX_SEEN {
                return;
            }
            self.looked_at += 1;
            let found = &text[at - scheme.len()..];
            let found = &found[..found.floor_char_boundary(MAX_URL.min(found.len()))];
            let end = found
                .find(|c: char| c.is_whitespace() || c.is_control() || "<>\"`{}|\\^".contains(c))
                .unwrap_or(found.len());
            self.add_readings(&found[..end]);
        }
    }

    fn add_readings(&mut self, found: &str) {
        let mut reading = found;
        for _ in 0..MAX_READINGS {
            self.insert(reading);
            let shorter =
                reading.trim_end_matches(['.', ',', ';', ':', '!', '?', '\'', '*', '_', '~']);
            reading = if shorter.len() < reading.len() {
                shorter
            } else if let Some(shorter) = reading.strip_suffix([')', ']']) {
                shorter
            } else {
                break;
            };
        }
        // In Markdown the first bracket ends it, unless it is the address's own.
        if let Some((reading, _)) = found.split_once([')', ']']) {
            self.insert(reading);
        }
    }

    fn insert(&mut self, reading: &str) {
        if let Ok(url) = Url::parse(reading) {
            self.urls.insert(normal(url));
        }
    }
}

/// The form in which two addresses are compared: http and https are one, and a fragment is nothing.
fn normal(mut url: Url) -> String {
    url.set_fragment(None);
    let text = url.to_string();
    text.strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .unwrap_or(&text)
        .to_owned()
}

fn takes(sources: &UrlSources, origin: &Origin<'_>) -> bool {
    let (source, name) = match origin {
        Origin::User => (&sources.user_input, None),
        // Tools of the sandbox are the client's, too, as models see it; they have no name to be listed by.
        Origin::Tool(name) if matches!(*name, "web_fetch" | "web_search") => {
            (&sources.server_tool_results, Some(*name))
        }
        Origin::Tool(name) => (&sources.client_tool_results, Some(*name)),
    };
    let Some(UrlSource { r#type, tools }) = source else {
        return true;
    };
    let listed = || {
        tools
            .iter()
            .flatten()
            .any(|tool| Some(tool.name.as_str()) == name)
    };
    match r#type {
        UrlSourceKind::All => true,
        UrlSourceKind::None => false,
        UrlSourceKind::Only => listed(),
        UrlSourceKind::Except => !listed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Seen {
        let mut seen = Seen::default();
        seen.add(text);
        seen
    }

    #[test]
    fn addresses_in_all_kinds_of_text() {
        let seen = seen(
            "See https://example.com/a, (http://example.org/b_(c)). \
             [link](https://example.net/d?e=f#g) and [two](https://one.test/1)(https://two.test/2), \
             <HTTPS://Example.COM:443/upper> \"url\":\"https://json.test/x\"} ftp://no.test/ \
             ü://x http://münchen.test/ä https:// ://",
        );
        for url in [
            "https://example.com/a",
            "http://example.com/a",
            "https://example.com/a#frag",
            "http://example.org/b_(c)",
            "https://example.net/d?e=f",
            "https://one.test/1",
            "https://two.test/2",
            "https://example.com/upper",
            "https://json.test/x",
            "http://xn--mnchen-3ya.test/%C3%A4",
        ] {
            assert!(seen.contains(&Url::parse(url).unwrap()), "{url} {seen:?}");
        }
        for url in [
            "https://example.com/",
            "https://example.com/b",
            "https://example.net/d",
            "https://no.test/",
        ] {
            assert!(!seen.contains(&Url::parse(url).unwrap()), "{url}");
        }
    }

    #[test]
    fn long_texts_end() {
        for text in [
            "https://a.test/))))".repeat(1000),
            "https://".repeat(1000),
            "://".repeat(100_000),
            "https://a.test/".to_owned() + &")".repeat(200_000),
            (0..30_000).map(|n| format!("http://{n}.test ")).collect(),
        ] {
            assert!(seen(&text).urls.len() <= MAX_SEEN * (MAX_READINGS + 1));
        }
    }

    #[test]
    fn sources_are_told_apart() {
        let source = |kind, tools: &[&str]| {
            Some(UrlSource {
                r#type: kind,
                tools: (!tools.is_empty()).then(|| {
                    let reference = |name: &&str| {
                        serde_json::from_value(
                            serde_json::json!({"type": "tool_reference", "name": name}),
                        )
                        .unwrap()
                    };
                    tools.iter().map(reference).collect()
                }),
            })
        };
        use UrlSourceKind::{All, Except, None as Nothing, Only};
        let sources = |user, client, server| UrlSources {
            user_input: user,
            client_tool_results: client,
            server_tool_results: server,
        };
        let nothing = || source(Nothing, &[]);
        for (sources, origin, expected) in [
            (sources(None, None, None), Origin::User, true),
            (sources(None, None, None), Origin::Tool("web_search"), true),
            (sources(nothing(), None, None), Origin::User, false),
            (
                sources(source(All, &[]), nothing(), nothing()),
                Origin::User,
                true,
            ),
            (sources(None, nothing(), None), Origin::Tool("mine"), false),
            (sources(None, nothing(), None), Origin::Tool("bash"), false),
            (
                sources(None, source(Only, &["mine"]), None),
                Origin::Tool("mine"),
                true,
            ),
            (
                sources(None, source(Only, &["mine"]), None),
                Origin::Tool("bash"),
                false,
            ),
            (
                sources(None, source(Except, &["mine"]), None),
                Origin::Tool("mine"),
                false,
            ),
            (
                sources(None, source(Except, &["mine"]), None),
                Origin::Tool("other"),
                true,
            ),
            (
                sources(None, None, nothing()),
                Origin::Tool("web_fetch"),
                false,
            ),
            (
                sources(None, None, source(Only, &["web_search"])),
                Origin::Tool("web_fetch"),
                false,
            ),
            (
                sources(None, None, source(Only, &["web_search"])),
                Origin::Tool("web_search"),
                true,
            ),
        ] {
            assert_eq!(takes(&sources, &origin), expected, "{sources:?} {origin:?}");
        }
    }
}
