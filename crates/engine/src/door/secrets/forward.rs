//! One request to a host that secrets may go to.

use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::{Body as _, Bytes, Incoming},
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue,
        TRANSFER_ENCODING, UPGRADE,
    },
    upgrade::OnUpgrade,
};

use super::{
    Opened,
    body::Outbound,
    scan::Values,
    wallet::{Known, Part},
};
use crate::door::http::{connection_options, names_only, strip, text};

/// Longest head of a request, its secrets included.
const MAX_HEAD: usize = 256 << 10;
/// What frames a message. A secret in it would frame another one.
const FRAMING: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE];

type Answer = Response<Either<Incoming, Full<Bytes>>>;
type Refusal = (StatusCode, String);

/// Passes a request on with the secrets that may go to its host, and the answer back as it is.
///
/// # Errors
/// The host's connection broke. Then the program's own does, too: it knows best what to repeat.
pub(super) async fn forward(
    opened: &Opened,
    request: Request<Incoming>,
) -> Result<Answer, hyper::Error> {
    let upstream = match &opened.upstream {
        Ok(upstream) => upstream,
        Err(reason) => {
            count("failed");
            return Ok(text(StatusCode::BAD_GATEWAY, reason).map(Either::Right));
        }
    };
    let (request, tunnel, replaced) = match prepare(opened, request).await? {
        Ok(prepared) => prepared,
        Err((status, reason)) => {
            let refused = status.is_client_error();
            count(if refused { "refused" } else { "failed" });
            return Ok(text(status, &reason).map(Either::Right));
        }
    };
    let sent = {
        let mut upstream = upstream.lock().await;
        upstream.ready().await?;
        upstream.send_request(request)
    };
    let mut response = sent.await?;
    count(if replaced { "replaced" } else { "unchanged" });
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let closes = connection_options(response.headers()).any(|it| it.eq_ignore_ascii_case("close"));
    let protocol = response.headers().get(UPGRADE).cloned();
    strip(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    match (switched, tunnel) {
        (true, Some(inside)) => {
            opened.join(inside, hyper::upgrade::on(&mut response));
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.extend(protocol.map(|protocol| (UPGRADE, protocol)));
        }
        (true, None) => {
            let reason = "The host speaks another protocol than it was asked for";
            return Ok(text(StatusCode::BAD_GATEWAY, reason).map(Either::Right));
        }
        (false, _) if closes => {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        (false, _) => {}
    }
    Ok(response.map(Either::Left))
}

fn count(outcome: &'static str) {
    metrics::counter!("selfsame_door_secret_requests_total", "outcome" => outcome).increment(1);
}

/// The request as it goes out, the program's half of what follows if it asks for another protocol, and
/// whether a secret is in it.
async fn prepare(
    opened: &Opened,
    request: Request<Incoming>,
) -> Result<Result<(Request<Outbound>, Option<OnUpgrade>, bool), Refusal>, hyper::Error> {
    let (mut parts, body) = request.into_parts();
    if let Err(refusal) = judge(opened, &parts.method, &parts.uri, &parts.headers) {
        return Ok(Err(refusal));
    }
    let known = match opened.wallet.known().await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(session = %opened.access.session, %error, "secrets cannot be read");
            let reason = "The credentials of this session cannot be read now: try again";
            return Ok(Err((StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())));
        }
    };
    let headers = &mut parts.headers;
    let protocol = headers.remove(UPGRADE);
    let upgrades = connection_options(headers).any(|it| it.eq_ignore_ascii_case("upgrade"));
    let tunnel = (upgrades && protocol.is_some() && parts.version == Version::HTTP_11)
        .then(|| parts.extensions.remove::<OnUpgrade>())
        .flatten();
    strip(headers);
    // Answered here: the body is asked for when there is somebody to read it.
    headers.remove(EXPECT);
    let in_headers = match replace(headers, &known.values(&opened.host, Part::Header)) {
        Ok(replaced) => replaced,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if let (Some(_), Some(protocol)) = (&tunnel, protocol) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    let values = body_values(opened, &known, headers);
    let (body, in_body) = Outbound::replacing(body, values).await?;
    if in_body || body.size_hint().exact().is_none() {
        // Made anew for the body that goes out.
        headers.remove(CONTENT_LENGTH);
    }
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&opened.authority())
    {
        headers.insert(HOST, host);
    }
    parts.version = Version::HTTP_11;
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target.map_or_else(|| Uri::from_static("*"), Uri::from);
    Ok(Ok((
        Request::from_parts(parts, body),
        tunnel,
        in_headers || in_body,
    )))
}

/// Whether the request can be passed on at all.
fn judge(opened: &Opened, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |status, reason: &str| Err((status, reason.to_owned()));
    // TRACE is answered with the request itself, and CONNECT leads elsewhere.
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        let reason = "This method is not passed on to a host that gets secrets";
        return refuse(StatusCode::METHOD_NOT_ALLOWED, reason);
    }
    if headers.get_all(HOST).iter().count() > 1 {
        return refuse(StatusCode::BAD_REQUEST, "A request has one host");
    }
    if !names_only(uri, headers, &opened.host, opened.port) {
        let reason = format!("This connection is to `{}` alone", opened.host);
        return Err((StatusCode::MISDIRECTED_REQUEST, reason));
    }
    // A message is framed anew, so there is one reading of where it ends. Another coding below that of
    // chunks would be lost with them.
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        let reason = "A body is sent in chunks or with its length, and in no other coding";
        return refuse(StatusCode::BAD_REQUEST, reason);
    }
    Ok(())
}

/// Puts secrets into headers. Answers whether there was a place for one.
pub(in crate::door) fn replace(headers: &mut HeaderMap, values: &Values) -> Result<bool, Refusal> {
    let mut replaced = false;
    if !values.is_empty() {
        for (name, value) in headers.iter_mut() {
            if FRAMING.contains(name) {
                continue;
            }
            let Some(with_secret) = values.in_header(value.as_bytes()) else {
                continue;
            };
            let Ok(mut with_secret) = HeaderValue::from_bytes(&with_secret) else {
                let reason = format!("The secret that `{name}` names cannot be sent in a header");
                return Err((StatusCode::BAD_GATEWAY, reason));
            };
            with_secret.set_sensitive(true);
            *value = with_secret;
            replaced = true;
        }
    }
    let length = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    if headers.iter().map(length).sum::<usize>() > MAX_HEAD {
        let reason = "The headers are too long with their secrets in them".to_owned();
        return Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason));
    }
    Ok(replaced)
}

/// What may go into the body. A compressed one is left alone: to look into it would mean to inflate, on
/// the server, whatever a sandbox sends.
fn body_values(opened: &Opened, known: &Arc<Known>, headers: &HeaderMap) -> Values {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Values::default();
    }
    known.values(&opened.host, Part::Body)
}
