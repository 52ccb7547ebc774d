//! Names of hosts, and which of them a list covers.

use std::{net::IpAddr, str::FromStr};

/// `example.com`, or `*.example.com`.
///
/// A wildcard covers the names below its own, however deep, and not that name itself: it is what
/// follows the asterisk, dot included, that must end a name. Addresses are covered only when they
/// are written out in full.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// In lower case; of a wildcard what follows the asterisk.
    name: String,
    wildcard: bool,
}

/// Text that is no [`HostPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host: write \"example.com\" or \"*.example.com\"")]
pub struct NotAHost(pub String);

impl FromStr for HostPattern {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let wrong = || NotAHost(text.chars().take(100).collect());
        let (name, wildcard) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(wrong());
        }
        if wildcard && name.parse::<IpAddr>().is_ok() {
            return Err(wrong());
        }
        let name = name.to_ascii_lowercase();
        Ok(Self {
            name: if wildcard { format!(".{name}") } else { name },
            wildcard,
        })
    }
}

impl HostPattern {
    /// Whether `host` is covered: a name in any case, with or without a dot at its end, or an address.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let host = normal(host);
        if !self.wildcard {
            return host == self.name;
        }
        host.len() > self.name.len()
            && host.ends_with(&self.name)
            && host.parse::<IpAddr>().is_err()
    }
}

/// A host as it is compared: lower case, no dot at its end.
#[must_use]
pub fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// A list of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(Vec<HostPattern>);

impl Hosts {
    /// # Errors
    /// The first text that is no [`HostPattern`].
    pub fn parse<S: AsRef<str>>(list: impl IntoIterator<Item = S>) -> Result<Self, NotAHost> {
        let patterns = list.into_iter().map(|text| text.as_ref().parse());
        patterns.collect::<Result<_, _>>().map(Self)
    }

    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        self.0.iter().any(|pattern| pattern.covers(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pattern_covers() {
        for (pattern, host, covered) in [
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com.", true),
            ("Example.COM", "example.com", true),
            ("example.com", "www.example.com", false),
            ("example.com", "example.com.evil.net", false),
            ("example.com", "notexample.com", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "notexample.com", false),
            ("*.example.com", "www.example.com.evil.net", false),
            ("*.example.com", "www.example.org", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.70", false),
            ("*.2.7", "192.0.2.7", false),
        ] {
            let parsed: HostPattern = pattern.parse().unwrap();
            assert_eq!(parsed.covers(host), covered, "{pattern} {host}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for text in [
            "",
            "*",
            "*.",
            "*.*.com",
            "a.*.com",
            "a..b",
            ".a",
            "a.",
            "a b",
            "http://a",
            "a:1",
            "a/b",
            "[::1]",
            "*.192.0.2.7",
            "ü.de",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
        let list = Hosts::parse(["a.b", "*.c.d"]).unwrap();
        assert!(list.covers("a.b") && list.covers("x.c.d") && !list.covers("c.d"));
        assert!(!Hosts::default().covers("a.b"));
        assert!(Hosts::parse(["a.b", "a:1"]).is_err());
    }
}
