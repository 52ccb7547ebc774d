//! Which hosts the web tools may take.

use selfsame_net::reqwest::Url;

/// One agent's lists for one tool. At most one of the two is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Domains {
    pub allowed: Option<Vec<String>>,
    pub blocked: Option<Vec<String>>,
}

/// Whether every one of `lists` lets `url` pass: what one allows another may still refuse. An agent that
/// works for others is bound by theirs, too.
pub(crate) fn permits(lists: &[Domains], url: &Url) -> bool {
    lists.iter().all(|list| {
        let covered = |entries: &[String]| entries.iter().any(|entry| covers(entry, url));
        list.allowed.as_deref().is_none_or(covered) && !list.blocked.as_deref().is_some_and(covered)
    })
}

/// An entry covers its host, every host below it, and with a path only what is at or below that.
fn covers(entry: &str, url: &Url) -> bool {
    let (host, path) = entry.split_once('/').unwrap_or((entry, ""));
    // A written-out address is below no name, whatever it ends with.
    let Some(actual) = url.domain() else {
        return false;
    };
    let actual = actual.strip_suffix('.').unwrap_or(actual);
    let host = host.to_ascii_lowercase();
    let same = actual == host
        || actual
            .strip_suffix(host.as_str())
            .is_some_and(|below| below.ends_with('.'));
    let path = path.trim_end_matches('/');
    same && (path.is_empty()
        || url
            .path()
            .strip_prefix('/')
            .and_then(|actual| actual.strip_prefix(path))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(allowed: &[&str], blocked: &[&str]) -> Domains {
        let list = |entries: &[&str]| {
            (!entries.is_empty()).then(|| entries.iter().map(|e| (*e).to_owned()).collect())
        };
        Domains {
            allowed: list(allowed),
            blocked: list(blocked),
        }
    }

    #[track_caller]
    fn check(lists: &[Domains], url: &str, expected: bool) {
        assert_eq!(permits(lists, &Url::parse(url).unwrap()), expected, "{url}");
    }

    #[test]
    fn an_entry_covers_its_host_and_what_is_below() {
        let allowed = [list(&["Example.com/"], &[])];
        for (url, expected) in [
            ("https://example.com/", true),
            ("https://EXAMPLE.com:8443/a?b", true),
            ("https://example.com./", true),
            ("http://a.b.example.com/", true),
            ("https://com/", false),
            ("https://notexample.com/", false),
            ("https://example.com.evil.test/", false),
            ("https://example.org/?example.com", false),
            ("https://user:example.com@evil.test/", false),
            ("https://127.0.0.1/", false),
            ("https://[::1]/", false),
        ] {
            check(&allowed, url, expected);
        }
        let blocked = [list(&[], &["example.com"])];
        check(&blocked, "https://www.example.com/", false);
        check(&blocked, "https://example.org/", true);
        check(&blocked, "https://192.0.2.1/", true);
        check(
            &[list(&["www.example.com"], &[])],
            "https://example.com/",
            false,
        );
        check(&[], "https://example.com/", true);
    }

    #[test]
    fn a_path_covers_whole_segments() {
        let allowed = [list(&["example.com/blog/"], &[])];
        for (url, expected) in [
            ("https://example.com/blog", true),
            ("https://example.com/blog/", true),
            ("https://www.example.com/blog/a/b?c", true),
            ("https://example.com/blogs", false),
            ("https://example.com/", false),
            ("https://example.com/a/blog", false),
        ] {
            check(&allowed, url, expected);
        }
    }

    #[test]
    fn several_lists_act_together() {
        let all = [
            list(&["example.com", "example.org"], &[]),
            list(&["example.com", "example.net"], &[]),
            list(&[], &["secret.example.com"]),
            Domains::default(),
        ];
        check(&all, "https://www.example.com/", true);
        check(&all, "https://example.org/", false);
        check(&all, "https://example.net/", false);
        check(&all, "https://a.secret.example.com/", false);
        // Nothing is in both: nothing can be had.
        let apart = [list(&["a.test"], &[]), list(&["b.test"], &[])];
        check(&apart, "https://a.test/", false);
        check(&apart, "https://b.test/", false);
    }
}
