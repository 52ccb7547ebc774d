//! Lists of domains that limit the web tools.

use std::net::Ipv6Addr;

use crate::ApiError;

/// Most domains in one list.
const MAX_DOMAINS: usize = 64;
/// Longest entry, in characters.
const MAX_ENTRY: usize = 255;

/// Whether an entry may go on after the host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    Allowed,
    Refused,
}

/// Registries under which the second label is public, too: no one owns `co.uk`. The common ones; the
/// purpose is to catch slips, not to follow every registry.
const SECOND_LEVEL: [&str; 12] = [
    "ac", "co", "com", "edu", "gob", "gov", "gouv", "ne", "net", "or", "org", "mil",
];

/// Checks both lists of one tool.
pub(super) fn validate(
    at: &str,
    allowed: Option<&[String]>,
    blocked: Option<&[String]>,
    paths: Paths,
) -> Result<(), ApiError> {
    if allowed.is_some() && blocked.is_some() {
        return Err(ApiError::invalid(format!(
            "{at}: Only one of allowed_domains or blocked_domains may be set."
        )));
    }
    for (key, list) in [("allowed_domains", allowed), ("blocked_domains", blocked)] {
        let Some(list) = list else { continue };
        if list.is_empty() {
            return Err(ApiError::invalid(format!(
                "{at}.{key}: Empty list of domains is ambiguous. Provide at least one domain or null."
            )));
        }
        if list.len() > MAX_DOMAINS {
            return Err(ApiError::invalid(format!(
                "{at}.{key}: at most {MAX_DOMAINS} domains are allowed, not {}",
                list.len()
            )));
        }
        let mut seen = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            let refuse =
                |reason: String| ApiError::invalid(format!("{at}.{key}.{index}: {reason}"));
            let normal = check_entry(entry, paths).map_err(refuse)?;
            if seen.contains(&normal) {
                return Err(refuse(format!("`{normal}` is listed twice")));
            }
            seen.push(normal);
        }
    }
    Ok(())
}

/// The entry in the form in which two of them are compared.
fn check_entry(entry: &str, paths: Paths) -> Result<String, String> {
    let length = entry.chars().count();
    if !(1..=MAX_ENTRY).contains(&length) {
        return Err(format!(
            "a domain must have 1 to {MAX_ENTRY} characters, this has {length}"
        ));
    }
    if entry.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("spaces are not allowed".to_owned());
    }
    if entry.contains("://") {
        return Err("leave the scheme out; write \"example.com\"".to_owned());
    }
    let (host, path) = match entry.split_once('/') {
        None => (entry, ""),
        Some((host, path)) => (host, path),
    };
    check_host(host)?;
    if !path.is_empty() {
        if paths == Paths::Refused {
            return Err("paths are not supported by web_fetch; write the host alone".to_owned());
        }
        if let Some(bad) = path.chars().find(|c| "?#$,|^!*".contains(*c)) {
            return Err(format!("a path must not contain `{bad}`"));
        }
    }
    let host = host.to_ascii_lowercase();
    let path = path.strip_suffix('/').unwrap_or(path);
    Ok(if path.is_empty() {
        host
    } else {
        format!("{host}/{path}")
    })
}

fn check_host(host: &str) -> Result<(), String> {
    const PLAIN: &str = "provide a plain hostname like \"example.com\"";
    let lower = host.to_ascii_lowercase();
    if !host.is_ascii() {
        return Err("write international names in punycode (xn--…)".to_owned());
    }
    if host.contains('*') {
        return Err(
            "wildcards are not supported; an entry covers its subdomains already".to_owned(),
        );
    }
    if host.contains('@') {
        return Err(format!("credentials are not allowed; {PLAIN}"));
    }
    if host.starts_with('[') || host.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("IP addresses are not supported; {PLAIN}"));
    }
    if host.contains(':') {
        return Err(format!("ports are not allowed; {PLAIN}"));
    }
    let labels: Vec<&str> = lower.split('.').collect();
    // What a URL parser takes for IPv4: the last label is a number, also in hexadecimal.
    let last = labels[labels.len() - 1];
    let is_number =
        |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c: char| c.is_digit(radix));
    if is_number(last, 10)
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.is_empty() || is_number(hex, 16))
    {
        return Err(format!("IP addresses are not supported; {PLAIN}"));
    }
    for label in &labels {
        if label.is_empty() {
            return Err(format!("a label is empty; {PLAIN}"));
        }
        if label.len() > 63 {
            return Err("a label has more than 63 characters".to_owned());
        }
        if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err(format!(
                "only letters, digits, `-`, `_` and `.` are allowed; {PLAIN}"
            ));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label must not begin or end with `-`".to_owned());
        }
    }
    if ["localhost", "local", "internal", "localdomain", "invalid"].contains(&last) {
        return Err(format!(
            "`.{last}` names are not on the public internet; {PLAIN}"
        ));
    }
    if labels.len() < 2 {
        return Err(format!("at least two labels are needed; {PLAIN}"));
    }
    if labels.len() == 2 && last.len() == 2 && SECOND_LEVEL.contains(&labels[0]) {
        return Err(format!(
            "`{lower}` is a public suffix, not a site; name a domain below it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_allowed() {
        for entry in [
            "example.com",
            "EXAMPLE.com/",
            "a_b.example.co.uk",
            "xn--bcher-kva.example",
            "1.example.com",
            "co.com",
        ] {
            assert!(check_entry(entry, Paths::Refused).is_ok(), "{entry}");
        }
        assert_eq!(
            check_entry("Example.com/Blog/", Paths::Allowed).unwrap(),
            "example.com/Blog"
        );
    }

    #[test]
    fn hosts_that_are_refused() {
        for (entry, part) in [
            ("", "1 to 255"),
            ("https://example.com", "scheme"),
            ("example.com:443", "ports"),
            ("user@example.com", "credentials"),
            ("*.example.com", "wildcards"),
            ("exa mple.com", "spaces"),
            ("bücher.example", "punycode"),
            (
                "127.0.0.1",
                "IP addresses are not supported; provide a plain hostname like \"example.com\"",
            ),
            ("127.1", "IP addresses"),
            ("2130706433", "IP addresses"),
            ("0x7f.0x1", "IP addresses"),
            ("[::1]", "IP addresses"),
            ("::1", "IP addresses"),
            ("com", "two labels"),
            ("co.uk", "public suffix"),
            ("com.au", "public suffix"),
            ("localhost", "public internet"),
            ("a.localhost", "public internet"),
            ("printer.local", "public internet"),
            ("db.internal", "public internet"),
            ("x.localdomain", "public internet"),
            ("x.invalid", "public internet"),
            ("a..b", "empty"),
            ("example.com.", "empty"),
            ("-a.example", "begin or end"),
            ("a-.example", "begin or end"),
            ("exa!mple.com", "only letters"),
            ("example.com/blog", "paths are not supported"),
        ] {
            let error = check_entry(entry, Paths::Refused).unwrap_err();
            assert!(error.contains(part), "{entry}: {error}");
        }
        for bad in "?#$,|^!".chars() {
            assert!(check_entry(&format!("example.com/a{bad}b"), Paths::Allowed).is_err());
        }
        assert!(check_entry("example.com/a b", Paths::Allowed).is_err());
        assert!(check_entry(&format!("{}.com", "a".repeat(252)), Paths::Allowed).is_err());
    }

    #[test]
    fn lists_are_exclusive_bounded_and_without_twins() {
        let list = |entries: &[&str]| entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>();
        let check = |allowed: Option<Vec<String>>, blocked: Option<Vec<String>>| {
            validate("c", allowed.as_deref(), blocked.as_deref(), Paths::Refused)
                .map_err(|error| error.message.into_owned())
        };
        check(None, None).unwrap();
        check(Some(list(&["example.com", "www.example.com"])), None).unwrap();
        assert_eq!(
            check(Some(list(&["a.com"])), Some(list(&["b.com"]))).unwrap_err(),
            "c: Only one of allowed_domains or blocked_domains may be set."
        );
        assert_eq!(
            check(Some(vec![]), None).unwrap_err(),
            "c.allowed_domains: Empty list of domains is ambiguous. Provide at least one domain or null."
        );
        assert_eq!(
            check(None, Some(list(&["a.com", "A.com/"]))).unwrap_err(),
            "c.blocked_domains.1: `a.com` is listed twice"
        );
        let many = (0..65).map(|n| format!("h{n}.com")).collect();
        assert!(check(Some(many), None).unwrap_err().contains("at most 64"));
    }
}
