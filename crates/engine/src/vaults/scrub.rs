//! What a server said, made fit to be shown: without secrets, and not too much of it.

use std::fmt::Write as _;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use selfsame_types::vault::ProbeResponse;
use url::form_urlencoded;

use super::token::Answer;

/// Most of a body that is shown, bytes.
const MAX_BODY: usize = 2 << 10;
const REDACTED: &str = "[redacted]";
/// Fields whose values are secrets that nobody knows yet: an answer that could not be used may have new ones.
const FIELDS: [&str; 5] = [
    "access_token",
    "refresh_token",
    "id_token",
    "client_secret",
    "assertion",
];

/// Knows what must not be shown, in every form that servers echo things in.
pub(super) struct Scrubber {
    needles: Vec<String>,
}

impl Scrubber {
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut needles: Vec<String> = secrets.into_iter().flat_map(forms).collect();
        // What contains another goes first, or a rest of it would stay.
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
        needles.dedup();
        Self { needles }
    }

    pub(super) fn show(&self, answer: &Answer) -> ProbeResponse {
        let body = self.scrub(&String::from_utf8_lossy(&answer.body));
        let body = if answer.whole {
            &*body
        } else {
            self.without_torn_end(&body)
        };
        let shown = &body[..body.floor_char_boundary(MAX_BODY)];
        ProbeResponse {
            status_code: answer.status,
            content_type: self.scrub(&answer.content_type),
            body_truncated: !answer.whole || shown.len() < body.len(),
            body: shown.to_owned(),
        }
    }

    fn scrub(&self, text: &str) -> String {
        // Also U+0000, and with it what other encodings hide between the letters.
        let is_kept = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        let mut text: String = text.chars().filter(is_kept).collect();
        for needle in &self.needles {
            if text.contains(needle) {
                text = text.replace(needle, REDACTED);
            }
        }
        without_values(&text)
    }

    /// A body that was cut may end within a secret.
    fn without_torn_end<'a>(&self, text: &'a str) -> &'a str {
        let starts = |needle: &String| {
            let longest = needle.len().min(text.len());
            (1..=longest).rev().find(|length| {
                needle.is_char_boundary(*length) && text.ends_with(&needle[..*length])
            })
        };
        let torn = self.needles.iter().filter_map(starts).max();
        &text[..text.len() - torn.unwrap_or(0)]
    }
}

/// A secret as it is, as JSON and URLs write it, in hexadecimal, and in base64 wherever it begins there.
fn forms(secret: &str) -> Vec<String> {
    if secret.is_empty() {
        return Vec::new();
    }
    let json = serde_json::to_string(secret).unwrap_or_default();
    let json = json.trim_matches('"').to_owned();
    let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let percent = form.replace('+', "%20");
    let lower = |text: &str| lower_escapes(text);
    let hex = secret.bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let mut forms = vec![
        json.replace('/', "\\/"),
        json,
        lower(&form),
        lower(&percent),
        form,
        percent,
        hex.to_ascii_uppercase(),
        hex,
    ];
    forms.extend((0..3).flat_map(|before| in_base64(secret, before)));
    forms.push(secret.to_owned());
    forms
}

/// `%2F` as `%2f`.
fn lower_escapes(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut lowered = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (escape, rest) = piece.split_at(piece.len().min(2));
        lowered.push('%');
        lowered.push_str(&escape.to_ascii_lowercase());
        lowered.push_str(rest);
    }
    lowered
}

/// The digits that base64 has for a secret that `before` bytes precede (modulo 3), without those that other
/// bytes have a part in.
fn in_base64(secret: &str, before: usize) -> Vec<String> {
    let bytes = [&b"\0\0"[..before], secret.as_bytes()].concat();
    let first = (before * 8).div_ceil(6);
    let last = bytes.len() * 8 / 6;
    // Shorter ones are found by chance.
    if last < first + 6 {
        return Vec::new();
    }
    [
        STANDARD_NO_PAD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
    ]
    .into_iter()
    .map(|digits| digits[first..last].to_owned())
    .collect()
}

/// Takes the values of [`FIELDS`] out, from JSON and forms, whole or broken.
fn without_values(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut scrubbed = String::with_capacity(text.len());
    let mut at = 0;
    while let Some((start, end)) = next_value(&lower, at) {
        scrubbed.push_str(&text[at..start]);
        scrubbed.push_str(REDACTED);
        at = end;
    }
    scrubbed.push_str(&text[at..]);
    scrubbed
}

/// Where the next value stands at or after `from`.
fn next_value(lower: &str, from: usize) -> Option<(usize, usize)> {
    let is_quote = |c: char| matches!(c, '"' | '\'' | '\\');
    let mut at = from;
    loop {
        let name_end = FIELDS
            .iter()
            .filter_map(|field| Some(at + lower[at..].find(field)? + field.len()))
            .min()?;
        let after_name =
            lower[name_end..].trim_start_matches(|c: char| is_quote(c) || c.is_whitespace());
        if let Some(value) = after_name.strip_prefix([':', '=']) {
            let value = value.trim_start_matches(|c: char| is_quote(c) || c.is_whitespace());
            let start = lower.len() - value.len();
            let length = value
                .find(|c: char| is_quote(c) || c.is_whitespace() || "&,;<>{}[]".contains(c))
                .unwrap_or(value.len());
            // What this function wrote itself is of no length.
            if length > 0 {
                return Some((start, start + length));
            }
        }
        at = name_end;
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn show(secrets: &[&str], body: impl Into<Vec<u8>>, whole: bool) -> ProbeResponse {
        Scrubber::new(secrets.iter().copied()).show(&Answer {
            status: 400,
            content_type: "text/plain".into(),
            body: body.into(),
            whole,
        })
    }

    #[test]
    fn a_secret_is_taken_out_in_every_form() {
        let secret = "c/4n+a r\"y~9é";
        for body in [
            secret.to_owned(),
            format!("before {secret} after {secret}"),
            serde_json::json!({"you sent": secret}).to_string(),
            serde_json::json!({"you sent": secret})
                .to_string()
                .replace('/', "\\/"),
            "token=c%2F4n%2Ba+r%22y%7E9%C3%A9&x=1".into(),
            "token=c%2f4n%2ba%20r%22y%7e9%c3%a9".into(),
            STANDARD.encode(secret),
            STANDARD.encode(format!("u:{secret}")),
            STANDARD.encode(format!("us:{secret}!")),
            URL_SAFE_NO_PAD.encode(format!("use:{secret}@")),
            "632f346e2b61207222797e39c3a9".into(),
            "632F346E2B61207222797E39C3A9".into(),
        ] {
            let shown = show(&[secret], body.clone(), true).body;
            assert!(shown.contains(REDACTED), "{body} -> {shown}");
            for rest in ["4n+a", "4n%2", "r%22y", "632f34", "632F34"] {
                assert!(!shown.contains(rest), "{body} -> {shown}");
            }
        }
        let utf16: Vec<u8> = "the canary-1"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(show(&["canary-1"], utf16, true).body, "the [redacted]");
        assert_eq!(show(&["", "abc"], "no secret", true).body, "no secret");
        // One that contains the other.
        assert_eq!(
            show(&["abcd", "abcdefgh"], "<abcdefgh>", true).body,
            "<[redacted]>"
        );
    }

    #[test]
    fn secrets_that_nobody_knew_are_taken_out_by_their_names() {
        for (body, wanted) in [
            (
                r#"{"access_token": "new", "x": 1}"#,
                r#"{"access_token": "[redacted]", "x": 1}"#,
            ),
            (r#"{"Access_Token":"new"#, r#"{"Access_Token":"[redacted]"#),
            (
                "access_token=new&refresh_token=too",
                "access_token=[redacted]&refresh_token=[redacted]",
            ),
            (
                r#"{\"refresh_token\":\"new\"}"#,
                r#"{\"refresh_token\":\"[redacted]\"}"#,
            ),
            ("the access_token is bad", "the access_token is bad"),
            ("access_token", "access_token"),
            ("access_token=", "access_token="),
            ("access_token: access_token=a", "access_token: [redacted]"),
        ] {
            assert_eq!(show(&[], body, true).body, wanted);
        }
    }

    #[test]
    fn a_body_is_cut_and_says_so() {
        let long = show(&[], "é".repeat(2000), true);
        assert_eq!((long.body.len(), long.body_truncated), (MAX_BODY, true));
        let fits = show(&[], "x".repeat(MAX_BODY), true);
        assert_eq!((fits.body.len(), fits.body_truncated), (MAX_BODY, false));
        // What is read ends within a secret, and what precedes shrinks.
        let torn = show(&["0123456789"], "0123456789".repeat(3) + "01234", false);
        assert_eq!(torn.body, "[redacted][redacted][redacted]");
        assert!(torn.body_truncated);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_and_nothing_is_left(secret in "[a-zA-Z0-9/+%é\"]{8,30}", before: String, after: String) {
            let shown = show(&[&secret], format!("{before}{secret}{after}"), true);
            proptest::prop_assert!(!shown.body.contains(&secret));
        }
    }
}
