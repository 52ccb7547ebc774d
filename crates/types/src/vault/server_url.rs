//! When two URLs are the same MCP server.

use url::Url;

use crate::{ApiError, check};

const MAX_URL: usize = 2048;

/// What two URLs of one MCP server have in common: scheme and host in lower case, no default port, no trailing
/// slash. Path, query, subdomain and any other port tell servers apart; a fragment is not part of an address.
#[must_use]
pub fn server_key(url: &Url) -> String {
    let mut url = url.clone();
    url.set_fragment(None);
    let mut path = url.path().to_owned();
    if path.ends_with('/') {
        path.pop();
    }
    let query = url.query().map(|query| format!("?{query}"));
    format!(
        "{}{path}{}",
        url.origin().ascii_serialization(),
        query.unwrap_or_default()
    )
}

/// An absolute `http` or `https` URL that names nobody's password: it is shown to whoever may see the object.
pub(super) fn parse(at: &str, text: &str) -> Result<Url, ApiError> {
    check::text(at, text, 1..=MAX_URL)?;
    check::http_url(at, text)?;
    let url: Url = text
        .parse()
        .map_err(|error| ApiError::invalid(format!("{at}: is not a URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ApiError::invalid(format!(
            "{at}: must not contain a user name or a password; give secrets in the fields made for them"
        )));
    }
    Ok(url)
}
