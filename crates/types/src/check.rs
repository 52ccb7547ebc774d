//! Small checks of single values. Each error begins with the field's path and ends with what to do.

use std::{fmt::Display, ops::RangeInclusive};

use crate::ApiError;

/// Length in characters, and no U+0000, which the database cannot hold.
pub(crate) fn text(
    at: impl Display,
    text: &str,
    length: RangeInclusive<usize>,
) -> Result<(), ApiError> {
    let count = text.chars().count();
    if !length.contains(&count) {
        return Err(ApiError::invalid(format!(
            "{at}: must have {} to {} characters, has {count}",
            length.start(),
            length.end()
        )));
    }
    if text.contains('\0') {
        return Err(ApiError::invalid(format!(
            "{at}: must not contain the character U+0000"
        )));
    }
    Ok(())
}

/// Number of entries of a list.
pub(crate) fn count(
    at: impl Display,
    count: usize,
    allowed: RangeInclusive<usize>,
) -> Result<(), ApiError> {
    if allowed.contains(&count) {
        return Ok(());
    }
    Err(ApiError::invalid(if count < *allowed.start() {
        format!("{at}: must have at least {} entries", allowed.start())
    } else {
        format!(
            "{at}: must have at most {} entries, has {count}",
            allowed.end()
        )
    }))
}

/// At most 80 characters of a client's own text, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(80) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// An absolute `http` or `https` URL with a host. Whether it may be reached is decided at use.
pub(crate) fn http_url(at: impl Display, url: &str) -> Result<(), ApiError> {
    let lower = url.get(..8).unwrap_or(url).to_ascii_lowercase();
    let rest = if lower.starts_with("https://") {
        &url[8..]
    } else if lower.starts_with("http://") {
        &url[7..]
    } else {
        return Err(ApiError::invalid(format!(
            "{at}: must begin with https:// or http://"
        )));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(ApiError::invalid(format!(
            "{at}: must be a URL with a host and without spaces"
        )));
    }
    Ok(())
}

/// A bare host name, or `*.` and one.
pub(crate) fn host(host: &str) -> Result<(), String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if host.len() <= 255 && name.split('.').all(label) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a host name; write \"example.com\" or \"*.example.com\", without scheme, port \
         or path",
        excerpt(host)
    ))
}
