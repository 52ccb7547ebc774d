//! Server-sent events out of bytes that arrive in any pieces. Pure and bounded.

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The `event:` field; empty when there was none.
    pub event: String,
    pub data: String,
}

/// Why decoding stopped for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    #[error("an event is larger than {0} bytes")]
    TooLarge(usize),
    #[error("an event is not UTF-8")]
    NotUtf8,
}

/// Feed it bytes, take frames. The result does not depend on how the bytes are cut.
#[derive(Debug)]
pub struct Decoder {
    max: usize,
    line: Vec<u8>,
    event: String,
    data: Option<String>,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_cr: bool,
    first_line: bool,
}

impl Decoder {
    /// `max`: most bytes of a line, and of an event's data.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            line: Vec::new(),
            event: String::new(),
            data: None,
            after_cr: false,
            first_line: true,
        }
    }

    /// Decodes as far as the first complete event; returns how many bytes of `bytes` that took.
    /// Without an event all of them were taken.
    ///
    /// # Errors
    /// When the stream breaks a limit or is not text. The decoder must not be used afterwards.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Option<Frame>), SseError> {
        let mut at = 0;
        while at < bytes.len() {
            if std::mem::take(&mut self.after_cr) && bytes[at] == b'\n' {
                at += 1;
                continue;
            }
            let rest = &bytes[at..];
            let end = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
            let piece = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + piece.len() > self.max {
                return Err(SseError::TooLarge(self.max));
            }
            self.line.extend_from_slice(piece);
            at += piece.len();
            if end.is_some() {
                self.after_cr = bytes[at] == b'\r';
                at += 1;
                if let Some(frame) = self.end_line()? {
                    return Ok((at, Some(frame)));
                }
            }
        }
        Ok((at, None))
    }

    fn end_line(&mut self) -> Result<Option<Frame>, SseError> {
        let mut line = std::mem::take(&mut self.line);
        let frame = self.field(&line)?;
        line.clear();
        self.line = line; // keeps its buffer
        Ok(frame)
    }

    fn field(&mut self, line: &[u8]) -> Result<Option<Frame>, SseError> {
        let line = std::str::from_utf8(line).map_err(|_| SseError::NotUtf8)?;
        let first = std::mem::replace(&mut self.first_line, false);
        let line = if first {
            line.strip_prefix('\u{feff}').unwrap_or(line)
        } else {
            line
        };
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return Ok(self.data.take().map(|data| Frame { event, data }));
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event),
            "data" => match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    if data.len() + 1 + value.len() > self.max {
                        return Err(SseError::TooLarge(self.max));
                    }
                    data.push('\n');
                    data.push_str(value);
                }
            },
            // Comments (an empty name), `id`, `retry`, and what may come.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&[u8]]) -> Result<Vec<(String, String)>, SseError> {
        let mut decoder = Decoder::new(64);
        let mut frames = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let (taken, frame) = decoder.next(rest)?;
                rest = &rest[taken..];
                frames.extend(frame.map(|f| (f.event, f.data)));
            }
        }
        Ok(frames)
    }

    #[test]
    fn the_forms_of_the_standard() {
        for (bytes, frames) in [
            ("data: a\n\n", vec![("", "a")]),
            ("event: e\ndata: a\n\n", vec![("e", "a")]),
            ("event:e\r\ndata:a\r\n\r\n", vec![("e", "a")]),
            ("event:e\rdata:a\r\rdata:b\r\r", vec![("e", "a"), ("", "b")]),
            ("data: a\ndata: b\n\n", vec![("", "a\nb")]),
            ("data\n\n", vec![("", "")]),
            ("data:  a\n\n", vec![("", " a")]),
            (": ping\n\nid: 3\nretry: 1\nx: y\n\n", vec![]),
            ("event: e\n\ndata: a\n\n", vec![("", "a")]),
            ("\u{feff}data: a\n\n", vec![("", "a")]),
            ("data: a\n", vec![]),
            ("data: a:b\n\n", vec![("", "a:b")]),
        ] {
            let got = decode(&[bytes.as_bytes()]).unwrap();
            let got: Vec<_> = got.iter().map(|(e, d)| (e.as_str(), d.as_str())).collect();
            assert_eq!(got, frames, "{bytes:?}");
            let single: Vec<&[u8]> = bytes.as_bytes().chunks(1).collect();
            assert_eq!(
                decode(&single).unwrap().len(),
                frames.len(),
                "{bytes:?} bytewise"
            );
        }
    }

    #[test]
    fn limits() {
        let long = format!("data: {}\n\n", "x".repeat(64));
        assert_eq!(decode(&[long.as_bytes()]), Err(SseError::TooLarge(64)));
        let endless = vec![b'x'; 65];
        assert_eq!(decode(&[&endless]), Err(SseError::TooLarge(64)));
        let many = format!("data: {}\ndata: {}\n\n", "x".repeat(40), "y".repeat(40));
        assert_eq!(decode(&[many.as_bytes()]), Err(SseError::TooLarge(64)));
        assert_eq!(decode(&[b"data: \xff\n\n"]), Err(SseError::NotUtf8));
    }
}
