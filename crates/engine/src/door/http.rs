//! What the door's two readers of HTTP have in common: git's proxy, and the hosts that secrets go to.

use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Bytes,
    header::{
        CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
};
use selfsame_net::hosts::normal;

/// What of a message is meant for the next hop alone.
const HOP_BY_HOP: [HeaderName; 5] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
const HOP_BY_HOP_OLD: [&str; 4] = [
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
];

/// An answer of the door's own, in a sentence without a full stop.
pub(super) fn text(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{reason}.\n")));
    *response.status_mut() = status;
    // git shows what is plain text.
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Whether all that a request says about its host is `host`, on this port.
pub(super) fn names_only(uri: &hyper::Uri, headers: &HeaderMap, host: &str, port: u16) -> bool {
    let in_headers = headers.get_all(HOST).into_iter();
    let in_headers = in_headers.map(|value| value.to_str().unwrap_or_default());
    let authorities = uri
        .authority()
        .map(|it| it.as_str())
        .into_iter()
        .chain(in_headers);
    let port = format!(":{port}");
    let mut authorities = authorities.map(|it| normal(it.strip_suffix(&port).unwrap_or(it)));
    authorities.all(|named| named == host)
}

/// Removes what the next hop does not get.
pub(super) fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = connection_options(headers)
        .filter_map(|name| name.parse().ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP_OLD {
        headers.remove(name);
    }
}

/// What `Connection` lists.
pub(super) fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}
