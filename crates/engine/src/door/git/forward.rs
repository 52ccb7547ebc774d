//! One HTTP request of git's, passed on.

use std::error::Error as _;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http_body_util::{Either, Full};
use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body as _, Bytes, Incoming},
    header::{AUTHORIZATION, EXPECT, HOST, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString};
use selfsame_net::{refusal, reqwest};

use super::{Host, path::repository_of};
use crate::door::{
    Session,
    http::{names_only, strip, text},
    secrets::{Part, replace},
};

type Body = Either<reqwest::Body, Full<Bytes>>;

/// Passes a request on to `host`, with the token of the repository that it is for, and its answer
/// back. Redirects are the client's business: what it asks for next is looked at anew.
pub(super) async fn forward(
    session: &Session,
    host: &Host,
    request: Request<Incoming>,
) -> Response<Body> {
    match pass_on(session, host, request).await {
        Ok(response) => {
            count("passed");
            response
        }
        Err((status, reason)) => {
            count(if status == StatusCode::FORBIDDEN {
                "refused"
            } else {
                "failed"
            });
            text(status, &reason).map(Either::Right)
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("selfsame_door_git_requests_total", "outcome" => outcome).increment(1);
}

async fn pass_on(
    session: &Session,
    host: &Host,
    request: Request<Incoming>,
) -> Result<Response<Body>, (StatusCode, String)> {
    let (parts, body) = request.into_parts();
    let name = &host.name;
    if !names_only(&parts.uri, &parts.headers, name, 443) {
        let reason = format!("This connection is to `{name}` alone");
        return Err((StatusCode::MISDIRECTED_REQUEST, reason));
    }
    // Asked for each request: tokens are changed while connections stand.
    let access = session.access.borrow().clone();
    let Some(access) = access else {
        return Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "The session is not ready".to_owned(),
        ));
    };
    let (path, query) = (parts.uri.path(), parts.uri.query());
    let repository = repository_of(&access.repositories, name, path, query);
    if repository.is_none() {
        let refused = if host.is_private {
            Err(format!(
                "Of `{name}` only this session's repositories can be reached"
            ))
        } else {
            session.may_reach(&access, name)
        };
        if let Err(reason) = refused {
            session.meter.refused(&access, name, 443, &reason);
            return Err((StatusCode::FORBIDDEN, reason));
        }
    }

    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let url = format!("{}{target}", host.upstream);
    let mut headers = parts.headers;
    strip(&mut headers);
    headers.remove(HOST);
    // Answered here: the body is asked for when the other side wants to read it.
    headers.remove(EXPECT);
    // What is asked with a credential of the session's own gets it here as anywhere else.
    if let Some(wallet) = &access.wallet
        && host.upstream.starts_with("https://")
        && let Ok(known) = wallet.known().await
    {
        replace(&mut headers, &known.values(name, Part::Header))?;
    }
    if let Some(token) = repository.and_then(|repository| repository.token.as_ref()) {
        headers.insert(AUTHORIZATION, authorization(token)?);
    }
    let mut request = host.client.request(parts.method, url).headers(headers);
    if !body.is_end_stream() {
        request = request.body(reqwest::Body::wrap(body));
    }
    let response = request
        .send()
        .await
        .map_err(|error| complaint(name, &error))?;
    tracing::debug!(
        session = %access.session,
        host = name,
        repository = repository.map(|it| format!("{}/{}", it.owner, it.name)),
        status = response.status().as_u16(),
        "a request of git's"
    );
    let (mut parts, body) = hyper::http::Response::from(response).into_parts();
    strip(&mut parts.headers);
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Either::Left(body)))
}

/// As GitHub takes tokens of every kind.
fn authorization(token: &SecretString) -> Result<HeaderValue, (StatusCode, String)> {
    let pair = BASE64_STANDARD.encode(format!("x-access-token:{}", token.expose_secret()));
    let mut value = HeaderValue::try_from(format!("Basic {pair}")).map_err(|_| {
        let reason = "The repository's token cannot be sent".to_owned();
        (StatusCode::BAD_GATEWAY, reason)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn complaint(name: &str, error: &reqwest::Error) -> (StatusCode, String) {
    if let Some(refused) = refusal(error) {
        return (StatusCode::FORBIDDEN, refused.to_string());
    }
    let mut chain = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        chain = format!("{chain}: {error}");
        next = error.source();
    }
    tracing::debug!(
        host = name,
        error = chain,
        "a repository's host cannot be reached"
    );
    if error.is_timeout() {
        (
            StatusCode::GATEWAY_TIMEOUT,
            format!("`{name}` does not answer"),
        )
    } else if error.is_connect() {
        (
            StatusCode::BAD_GATEWAY,
            format!("No connection to `{name}`"),
        )
    } else {
        (StatusCode::BAD_GATEWAY, format!("`{name}` broke off"))
    }
}
