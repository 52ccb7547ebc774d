//! The body of a request on its way out.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap,
    body::{Body, Frame, Incoming, SizeHint},
};

use super::scan::{Scanner, Values};

/// Of a body whose length is announced, so much is held until it is known whether that length stays.
pub(super) const HELD: usize = 256 << 10;

/// A body whose placeholders are replaced while it streams. What it holds of it is bounded.
pub(super) struct Outbound {
    /// Goes out before what is still to come.
    pieces: VecDeque<Bytes>,
    rest: Option<Incoming>,
    /// `None`: the rest is passed on as it is.
    scanner: Option<Scanner>,
    trailers: Option<HeaderMap>,
}

impl Outbound {
    /// The body as it is.
    pub(super) fn unchanged(body: Incoming) -> Self {
        Self {
            pieces: VecDeque::new(),
            rest: Some(body),
            scanner: None,
            trailers: None,
        }
    }

    /// The body with secrets in it, and whether there are any so far.
    ///
    /// One that is sent in chunks stays so. One whose length was announced keeps a length, because many
    /// servers want one: it is computed anew when the whole body fits into [`HELD`] bytes, and stays what it
    /// was when the body is longer and its beginning has no placeholder; then none behind that is replaced
    /// either. A long body with one in its beginning goes out in chunks.
    pub(super) async fn replacing(
        mut body: Incoming,
        values: Values,
    ) -> Result<(Self, bool), hyper::Error> {
        if values.is_empty() || body.is_end_stream() {
            return Ok((Self::unchanged(body), false));
        }
        let mut scanner = Scanner::new(values);
        let mut pieces = VecDeque::new();
        let Some(length) = body.size_hint().exact() else {
            let streamed = Self {
                pieces,
                rest: Some(body),
                scanner: Some(scanner),
                trailers: None,
            };
            return Ok((streamed, false));
        };
        let mut beginning = BytesMut::new();
        let mut ended = false;
        while !ended && beginning.len() < HELD {
            match body.frame().await.transpose()? {
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        beginning.extend_from_slice(&data);
                    }
                }
                None => ended = true,
            }
            ended |= beginning.len() as u64 >= length;
        }
        scanner.feed(beginning.freeze(), &mut pieces);
        let replaced = scanner.has_replaced();
        if ended || !replaced {
            scanner.finish(&mut pieces);
        }
        let outbound = Self {
            pieces,
            scanner: (!ended && replaced).then_some(scanner),
            rest: (!ended).then_some(body),
            trailers: None,
        };
        Ok((outbound, replaced))
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let Some(rest) = &mut this.rest else {
                return Poll::Ready(None);
            };
            let frame = ready!(Pin::new(rest).poll_frame(cx)).transpose()?;
            let Some(scanner) = &mut this.scanner else {
                return Poll::Ready(frame.map(Ok));
            };
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => scanner.feed(data, &mut this.pieces),
                end => {
                    scanner.finish(&mut this.pieces);
                    this.rest = None;
                    // A trailer is no header: it goes out as it came.
                    this.trailers = end.and_then(|frame| frame.err()?.into_trailers().ok());
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let rest = self.rest.as_ref();
        self.pieces.is_empty()
            && self.trailers.is_none()
            && rest.is_none_or(|rest| self.scanner.is_none() && rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.scanner.is_some() {
            return SizeHint::new();
        }
        let pieces: u64 = self
            .pieces
            .iter()
            .map(|piece| piece.remaining() as u64)
            .sum();
        let rest = self.rest.as_ref().map(|rest| rest.size_hint().exact());
        match rest {
            None => SizeHint::with_exact(pieces),
            Some(Some(rest)) => SizeHint::with_exact(pieces + rest),
            Some(None) => SizeHint::new(),
        }
    }
}
