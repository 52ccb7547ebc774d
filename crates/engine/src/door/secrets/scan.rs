//! Finding placeholders in what goes out, and putting secrets in their places.

use std::collections::{HashMap, VecDeque};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_STANDARD,
};
use bytes::Bytes;
use memchr::memmem;

use super::placeholder::{LENGTH, PREFIX, are_digits};

/// As programs write it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Secrets by the digits of their placeholders: those that may go to one host in one place.
#[derive(Clone, Default)]
pub(in crate::door) struct Values(HashMap<Vec<u8>, Bytes>);

impl Values {
    pub(super) fn insert(&mut self, placeholder: &str, secret: Bytes) {
        let digits = placeholder.as_bytes()[PREFIX.len()..].to_vec();
        self.0.insert(digits, secret);
    }

    pub(in crate::door) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A header's value with the secrets in it; `None` when it has no placeholder of theirs. In the
    /// credentials of `Basic` they are looked for behind the base64.
    pub(in crate::door) fn in_header(&self, value: &[u8]) -> Option<Vec<u8>> {
        if let Some(credentials) = basic(value) {
            let credentials = self.in_text(&BASE64.decode(credentials).ok()?)?;
            let encoded = BASE64_STANDARD.encode(credentials);
            return Some([b"Basic ", encoded.as_bytes()].concat());
        }
        self.in_text(value)
    }

    fn in_text(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut scanner = Scanner::new(self.clone());
        let mut pieces = VecDeque::new();
        scanner.feed(Bytes::copy_from_slice(text), &mut pieces);
        scanner.finish(&mut pieces);
        let pieces: Vec<Bytes> = pieces.into();
        scanner.has_replaced().then(|| pieces.concat())
    }
}

/// What follows `Basic`.
fn basic(value: &[u8]) -> Option<&[u8]> {
    let (scheme, credentials) = value.split_at_checked(b"basic ".len())?;
    scheme
        .eq_ignore_ascii_case(b"basic ")
        .then(|| credentials.trim_ascii())
}

/// Looks through a stream, however it is cut, and holds back no more of it than the beginning of what
/// may be a placeholder.
pub(super) struct Scanner {
    values: Values,
    held: Bytes,
    replaced: bool,
}

impl Scanner {
    pub(super) fn new(values: Values) -> Self {
        Self {
            values,
            held: Bytes::new(),
            replaced: false,
        }
    }

    pub(super) fn has_replaced(&self) -> bool {
        self.replaced
    }

    /// Takes what comes next and gives what can go on. Nothing is copied but what was held back before.
    pub(super) fn feed(&mut self, bytes: Bytes, out: &mut VecDeque<Bytes>) {
        let bytes = match std::mem::take(&mut self.held) {
            held if held.is_empty() => bytes,
            held => Bytes::from([&held[..], &bytes[..]].concat()),
        };
        // Up to `given` it has gone on; up to `searched` no further placeholder begins.
        let (mut given, mut searched) = (0, 0);
        while let Some(found) = memmem::find(&bytes[searched..], PREFIX) {
            let begin = searched + found;
            let digits = begin + PREFIX.len();
            searched = digits;
            let Some(candidate) = bytes.get(digits..begin + LENGTH) else {
                if are_digits(&bytes[digits..]) {
                    give(&bytes[given..begin], &bytes, out);
                    self.held = Bytes::copy_from_slice(&bytes[begin..]);
                    return;
                }
                continue;
            };
            if let Some(secret) = self.values.0.get(candidate) {
                give(&bytes[given..begin], &bytes, out);
                give(secret, secret, out);
                self.replaced = true;
                given = begin + LENGTH;
                searched = given;
            }
        }
        let rest = &bytes[searched..];
        let longest = rest.len().min(PREFIX.len() - 1);
        let begun = (1..=longest)
            .rev()
            .find(|&length| rest.ends_with(&PREFIX[..length]));
        let end = bytes.len() - begun.unwrap_or(0);
        give(&bytes[given..end], &bytes, out);
        self.held = Bytes::copy_from_slice(&bytes[end..]);
    }

    /// Nothing comes any more.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Bytes>) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            out.push_back(held);
        }
    }
}

/// A part of `whole`, if there is any of it.
fn give(part: &[u8], whole: &Bytes, out: &mut VecDeque<Bytes>) {
    if !part.is_empty() {
        out.push_back(whole.slice_ref(part));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn placeholder(digit: char) -> String {
        let digits = digit.to_string().repeat(LENGTH - PREFIX.len());
        format!("{}{digits}", String::from_utf8_lossy(PREFIX))
    }

    fn values() -> Values {
        let mut values = Values::default();
        values.insert(&placeholder('a'), Bytes::from_static(b"the secret"));
        values.insert(&placeholder('b'), Bytes::from_static(b""));
        // One that another placeholder stands for is no placeholder.
        values.insert(&placeholder('c'), Bytes::from(placeholder('a')));
        values
    }

    /// Scanned in pieces of these lengths, by turns.
    fn scanned(text: &[u8], lengths: &[usize]) -> (Vec<u8>, usize) {
        let mut scanner = Scanner::new(values());
        let (mut out, mut most, mut rest) = (VecDeque::new(), 0, text);
        for &length in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(length.clamp(1, rest.len()));
            scanner.feed(Bytes::copy_from_slice(piece), &mut out);
            most = most.max(scanner.held.len());
            rest = after;
        }
        scanner.finish(&mut out);
        let out: Vec<Bytes> = out.into();
        (out.concat(), most)
    }

    #[test]
    fn placeholders_are_found_wherever_the_text_is_cut() {
        let (a, b, c) = (placeholder('a'), placeholder('b'), placeholder('c'));
        let unknown = placeholder('d');
        let cut = &a[..LENGTH - 1];
        for (text, expected) in [
            (format!("x{a}y"), "xthe secrety".to_owned()),
            (format!("{a}{a}{b}{a}"), "the secret".repeat(3)),
            (format!("{cut}{a}"), format!("{cut}the secret")),
            (format!("{cut}g{unknown}"), format!("{cut}g{unknown}")),
            (
                format!("selfself{a}self"),
                "selfselfthe secretself".to_owned(),
            ),
            (cut.to_owned(), cut.to_owned()),
            (format!("{}0", &a), "the secret0".to_owned()),
            (a.to_uppercase(), a.to_uppercase()),
            (c.clone(), a.clone()),
            (String::new(), String::new()),
        ] {
            for length in 1..=text.len().max(1) {
                let (out, most) = scanned(text.as_bytes(), &[length]);
                assert_eq!(String::from_utf8_lossy(&out), expected, "{length}");
                assert!(most < LENGTH, "{most} bytes are held back");
            }
        }
    }

    #[test]
    fn what_cannot_be_a_placeholder_is_not_held_back() {
        let mut scanner = Scanner::new(values());
        let mut out = VecDeque::new();
        for text in ["data: 1\n\n", "selfsame_placeholder_x", "self-made\n"] {
            scanner.feed(Bytes::from_static(text.as_bytes()), &mut out);
            assert_eq!(out.pop_front().unwrap(), text);
            assert!(out.is_empty() && scanner.held.is_empty());
        }
    }

    #[test]
    fn headers_are_looked_through_and_so_are_credentials() {
        let values = values();
        let a = placeholder('a');
        let inside = |value: &str| {
            let value = values.in_header(value.as_bytes());
            value.map(|value| String::from_utf8(value).unwrap())
        };
        assert_eq!(inside(&format!("Bearer {a}")).unwrap(), "Bearer the secret");
        assert_eq!(
            inside(&format!("k={a}; l={a}")).unwrap(),
            "k=the secret; l=the secret"
        );
        assert_eq!(inside("Bearer x"), None);
        assert_eq!(inside(&placeholder('d')), None);
        for (pair, expected) in [
            (format!("user:{a}"), "user:the secret"),
            (format!("{a}:x-oauth-basic"), "the secret:x-oauth-basic"),
            (format!("{a}:"), "the secret:"),
        ] {
            let encoded = BASE64_STANDARD.encode(&pair);
            let expected = format!("Basic {}", BASE64_STANDARD.encode(expected));
            for value in [
                format!("Basic {encoded}"),
                format!("bAsIc   {encoded} "),
                format!("Basic {}", encoded.trim_end_matches('=')),
            ] {
                assert_eq!(inside(&value).as_deref(), Some(&*expected), "{value}");
            }
        }
        for none in ["Basic", "Basic ", "Basic !!", "Basic dXNlcjpwYXNz", "basic"] {
            assert_eq!(inside(none), None, "{none}");
        }
        assert!(Values::default().in_header(a.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            parts in proptest::collection::vec(0usize..9, 0..12),
            lengths in proptest::collection::vec(1usize..80, 1..6),
        ) {
            let (a, d) = (placeholder('a'), placeholder('d'));
            let pool = [&a, &*d, "selfsame", "_placeholder_", "0af", "x", &a[..30], "self", &a[..52]];
            let text: String = parts.iter().map(|&part| pool[part]).collect();
            let whole = text.replace(&a, "the secret");
            let (out, _) = scanned(text.as_bytes(), &lengths);
            prop_assert_eq!(String::from_utf8_lossy(&out), whole);
        }
    }
}
