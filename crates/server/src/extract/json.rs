use std::{error::Error as StdError, sync::Arc, time::Duration};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use selfsame_types::{ApiError, ErrorKind};
use serde::{Serialize, de::DeserializeOwned};

use crate::{app::App, error::Error};

/// A JSON body, in either direction.
///
/// As a request it does not insist on a content type (`curl -d` sends another) and answers 400, 408
/// or 413. Unknown fields are for `T` to refuse: `#[serde(deny_unknown_fields)]`.
#[derive(Debug, Clone)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Error> {
        let server = &app.config.server;
        let body = read(
            request,
            server.max_body_bytes,
            Duration::from_secs(server.body_timeout_seconds),
        )
        .await?;
        parse(&body).map(Self).map_err(Error::from)
    }
}

/// A JSON body, or none at all, which means the same as `{}`.
#[derive(Debug, Clone)]
pub struct JsonOrNothing<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for JsonOrNothing<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Error> {
        let server = &app.config.server;
        let patience = Duration::from_secs(server.body_timeout_seconds);
        let body = read(request, server.max_body_bytes, patience).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&body).map(Self).map_err(Error::from)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => json_response(body),
            Err(error) => Error::internal(error).into_response(),
        }
    }
}

/// A response of JSON text that is ready.
pub(crate) fn json_response(body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

async fn read(request: Request, limit: usize, patience: Duration) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            ErrorKind::TooLarge,
            format!("The request body is larger than {limit} bytes"),
        )
    };
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(patience, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if is_length_limit(&*error) => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::invalid("The request body could not be read")),
        Err(_) => Err(ApiError::new(
            ErrorKind::Timeout,
            "The request body did not arrive in time",
        )),
    }
}

fn is_length_limit(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Reads JSON. The message names the field. Nesting is bounded (128) by the parser.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.is_empty() {
        return Err(ApiError::invalid("The request body must be a JSON object"));
    }
    if std::str::from_utf8(body).is_err() {
        return Err(ApiError::invalid("The request body is not valid UTF-8"));
    }
    // A struct would also read itself from an array of its fields.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::invalid("The request body must be a JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        if reason.is_data() && path != "." {
            ApiError::invalid(format!("{path}: {reason}"))
        } else if reason.is_data() {
            ApiError::invalid(reason.to_string())
        } else {
            ApiError::invalid(format!("The request body is not valid JSON: {reason}"))
        }
    })?;
    reader.end().map_err(|reason| {
        ApiError::invalid(format!("The request body is not valid JSON: {reason}"))
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, value::RawValue};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(rename = "inner")]
        _inner: Option<Inner>,
        raw: Option<Box<RawValue>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "count")]
        _count: u32,
    }

    fn message(body: &[u8]) -> String {
        parse::<Body>(body).unwrap_err().message.into_owned()
    }

    #[test]
    fn messages_name_the_field() {
        insta::assert_snapshot!(message(br#"{"inner":{"count":-1}}"#), @"inner.count: invalid value: integer `-1`, expected u32 at line 1 column 20");
        insta::assert_snapshot!(message(br#"{"inner":{"count":1,"x":1}}"#), @"inner.x: unknown field `x`, expected `count` at line 1 column 23");
        insta::assert_snapshot!(message(b"{"), @"The request body is not valid JSON: EOF while parsing an object at line 1 column 1");
        insta::assert_snapshot!(message(b"{} x"), @"The request body is not valid JSON: trailing characters at line 1 column 4");
        insta::assert_snapshot!(message(b"\xff"), @"The request body is not valid UTF-8");
        insta::assert_snapshot!(message(b""), @"The request body must be a JSON object");
    }

    #[test]
    fn deep_nesting_is_refused_and_raw_json_keeps_its_bytes() {
        let deep = "[".repeat(200_000);
        assert!(parse::<Value>(deep.as_bytes()).is_err());
        let body: Body = parse(br#"{"raw": {"b":1, "a":  2.50}}"#).unwrap();
        assert_eq!(body.raw.unwrap().get(), r#"{"b":1, "a":  2.50}"#);
    }
}
