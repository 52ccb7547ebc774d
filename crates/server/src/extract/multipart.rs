//! `multipart/form-data`, read as it arrives.
//!
//! Our own reader, because the common one holds whatever arrives faster than it is taken, and heads of any
//! length: here one frame of the body and one part's head are all that is in memory.

use std::{fmt, io, time::Duration};

use axum::{body::Body, extract::Request, http::header};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::Stream;
use http_body_util::BodyExt as _;
use memchr::memmem;
use selfsame_types::{ApiError, ErrorKind};

/// Longest head of a part, and longest text before the first one, bytes.
const LONGEST_HEAD: usize = 16 * 1024;
/// RFC 2046 allows 70.
const LONGEST_BOUNDARY: usize = 200;

/// A form of which one part after the other is read.
pub(crate) struct Multipart {
    body: Body,
    /// Line break, two dashes, boundary: what ends each part.
    delimiter: memmem::Finder<'static>,
    buffer: BytesMut,
    stage: Stage,
    /// What may still come, bytes.
    left: u64,
    limit: u64,
    /// Longest silence.
    patience: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In a part, or before the first one.
    Content,
    /// The buffer begins with the delimiter.
    Delimiter,
    End,
}

/// The head of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) filename: Option<String>,
    pub(crate) content_type: Option<String>,
}

impl fmt::Debug for Multipart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multipart")
            .field("stage", &self.stage)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

fn malformed(what: &str) -> ApiError {
    ApiError::invalid(format!("The multipart body is not well-formed: {what}"))
}

impl Multipart {
    /// A form of at most `limit` bytes in all. It may take any time, but may not be silent for longer
    /// than `patience`.
    pub(crate) fn new(request: Request, limit: u64, patience: Duration) -> Result<Self, ApiError> {
        let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
        let boundary = header(header::CONTENT_TYPE)
            .and_then(boundary)
            .ok_or_else(|| {
                ApiError::invalid("The request body must be multipart/form-data with a boundary")
            })?;
        let announced = header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large(limit));
        }
        let delimiter = format!("\r\n--{boundary}");
        Ok(Self {
            body: request.into_body(),
            delimiter: memmem::Finder::new(delimiter.as_bytes()).into_owned(),
            // The first delimiter needs no line break before it.
            buffer: BytesMut::from(&b"\r\n"[..]),
            stage: Stage::Content,
            left: limit,
            limit,
            patience,
        })
    }

    /// The next part; what was not read of the one before is passed over.
    pub(crate) async fn next(&mut self) -> Result<Option<Part>, ApiError> {
        let first = self.left == self.limit;
        let mut passed = 0;
        while let Some(piece) = self.chunk().await? {
            passed += piece.len();
            if first && passed > LONGEST_HEAD {
                return Err(malformed("its first part does not begin"));
            }
        }
        if self.stage == Stage::End {
            return Ok(None);
        }
        self.buffer.advance(self.delimiter.needle().len());
        let mark = loop {
            match self.buffer.get(..2) {
                Some(mark) => break [mark[0], mark[1]],
                None => self.need("it ends in a boundary").await?,
            }
        };
        if mark == *b"--" {
            self.stage = Stage::End;
            return Ok(None);
        }
        // The head with the line break before it, so that an empty one is found as well.
        let length = loop {
            match memmem::find(&self.buffer, b"\r\n\r\n") {
                Some(length) if length <= LONGEST_HEAD => break length,
                None if self.buffer.len() <= LONGEST_HEAD => {
                    self.need("it ends in the head of a part").await?;
                }
                _ => return Err(malformed("the head of a part is too long")),
            }
        };
        let head = self.buffer.split_to(length);
        self.buffer.advance(4);
        self.stage = Stage::Content;
        part(&head).map(Some)
    }

    /// A piece of the present part, or `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            if self.stage != Stage::Content {
                return Ok(None);
            }
            if let Some(at) = self.delimiter.find(&self.buffer) {
                self.stage = Stage::Delimiter;
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at).freeze()));
                }
                continue;
            }
            // The end of it may be the beginning of a delimiter.
            let certain = (self.buffer.len() + 1).saturating_sub(self.delimiter.needle().len());
            if certain > 0 {
                return Ok(Some(self.buffer.split_to(certain).freeze()));
            }
            self.need("it ends before its last boundary").await?;
        }
    }

    /// The present part as a short text.
    pub(crate) async fn text(&mut self, name: &str, longest: usize) -> Result<String, ApiError> {
        let mut text = Vec::new();
        while let Some(piece) = self.chunk().await? {
            text.extend_from_slice(&piece);
            if text.len() > longest {
                return Err(ApiError::invalid(format!(
                    "{name}: must be at most {longest} bytes long"
                )));
            }
        }
        String::from_utf8(text)
            .map_err(|_| ApiError::invalid(format!("{name}: must be valid UTF-8")))
    }

    /// The present part as a stream. Its errors hold an [`ApiError`]: see [`refusal`].
    pub(crate) fn content(&mut self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures_util::stream::try_unfold(self, async |form| {
            let piece = form.chunk().await.map_err(io::Error::other)?;
            Ok(piece.map(|piece| (piece, form)))
        })
    }

    /// Takes one more frame of the body.
    async fn need(&mut self, otherwise: &str) -> Result<(), ApiError> {
        loop {
            let frame = tokio::time::timeout(self.patience, self.body.frame());
            let frame = frame.await.map_err(|_| {
                ApiError::new(
                    ErrorKind::Timeout,
                    "The request body stopped arriving before its end",
                )
            })?;
            let Some(frame) = frame else {
                return Err(malformed(otherwise));
            };
            let frame =
                frame.map_err(|_| ApiError::invalid("The request body could not be read"))?;
            if let Ok(data) = frame.into_data() {
                self.left = self
                    .left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| too_large(self.limit))?;
                self.buffer.extend_from_slice(&data);
                return Ok(());
            }
        }
    }
}

fn too_large(limit: u64) -> ApiError {
    ApiError::new(
        ErrorKind::TooLarge,
        format!("The request body is larger than {limit} bytes"),
    )
}

/// What made a part's stream fail.
pub(crate) fn refusal(error: io::Error) -> ApiError {
    error
        .into_inner()
        .and_then(|inner| inner.downcast::<ApiError>().ok())
        .map_or_else(
            || ApiError::invalid("The request body could not be read"),
            |e| *e,
        )
}

/// The boundary of a content type.
fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    let fits = (1..=LONGEST_BOUNDARY).contains(&boundary.len())
        && boundary
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    fits.then_some(boundary)
}

/// Reads the head of a part, which begins with a line break, or with white space and one.
fn part(head: &[u8]) -> Result<Part, ApiError> {
    let head = std::str::from_utf8(head)
        .map_err(|_| malformed("the head of a part is not valid UTF-8"))?;
    let mut lines = head.split("\r\n");
    let padding = lines.next().unwrap_or("");
    if !padding.bytes().all(|byte| byte == b' ' || byte == b'\t') {
        return Err(malformed("something follows a boundary in its line"));
    }
    let (mut disposition, mut content_type) = (None, None);
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| malformed("the head of a part has a line that is no header"))?;
        let place = match name.to_ascii_lowercase().as_str() {
            "content-disposition" => &mut disposition,
            "content-type" => &mut content_type,
            _ => continue,
        };
        if place.replace(value.trim()).is_some() {
            return Err(malformed("the head of a part says something twice"));
        }
    }
    let (kind, parameters) = disposition
        .and_then(|value: &str| value.split_once(';'))
        .ok_or_else(|| malformed("a part does not say which field it is"))?;
    let name = parameter(parameters, "name")
        .filter(|_| kind.trim().eq_ignore_ascii_case("form-data"))
        .ok_or_else(|| malformed("a part does not say which field it is"))?;
    let filename = parameter(parameters, "filename*")
        .and_then(|text| extended(&text))
        .or_else(|| parameter(parameters, "filename"));
    Ok(Part {
        name,
        filename,
        content_type: content_type.map(str::to_owned),
    })
}

/// The value of a parameter: `a=b; c="d \"e\""`.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        text = text.trim_start_matches([' ', '\t', ';']);
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => {
                let (value, rest) = rest.split_once(';').unwrap_or((rest, ""));
                (value.trim().to_owned(), rest)
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = rest;
    }
}

/// What is inside the quotes, and what follows them. Browsers of old send paths with single backslashes.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.peek() {
                Some((_, next @ ('"' | '\\'))) => {
                    value.push(*next);
                    chars.next();
                }
                _ => value.push(char),
            },
            char => value.push(char),
        }
    }
    None
}

/// `UTF-8''na%C3%AFve.txt`, which some clients send for names beyond ASCII.
fn extended(text: &str) -> Option<String> {
    let (charset, rest) = text.split_once('\'')?;
    let (_, encoded) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
