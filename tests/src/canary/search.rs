//! Looks for secrets in whatever form they may have got somewhere.

use std::path::Path;

use anyhow::{Result, ensure};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// One secret in all its forms.
pub struct Needle {
    forms: Vec<Vec<u8>>,
}

impl Needle {
    pub fn new(secret: &str) -> Self {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let json = serde_json::Value::from(secret).to_string();
        let mut forms = vec![
            secret.to_owned(),
            json.trim_matches('"').to_owned(),
            hex.to_uppercase(),
            hex,
            percent(secret, "%20", false),
            percent(secret, "%20", true),
            percent(secret, "+", false),
            percent(secret, "+", true),
        ];
        forms.extend((0..3).flat_map(|before| in_base64(secret, before)));
        let wide = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut forms: Vec<Vec<u8>> = forms.into_iter().map(String::into_bytes).collect();
        forms.push(wide);
        forms.sort();
        forms.dedup();
        Self { forms }
    }

    pub fn is_in(&self, hay: &[u8]) -> bool {
        let hay = Hay(hay);
        self.forms.iter().any(|form| hay.has(form))
    }
}

struct Hay<'a>(&'a [u8]);

impl Hay<'_> {
    fn has(&self, needle: &[u8]) -> bool {
        let Some((first, rest)) = needle.split_first() else {
            return false;
        };
        let mut at = 0;
        while let Some(found) = self.0[at..].iter().position(|byte| byte == first) {
            at += found + 1;
            if self.0[at..].starts_with(rest) {
                return true;
            }
        }
        false
    }
}

fn percent(secret: &str, space: &str, lower: bool) -> String {
    secret
        .bytes()
        .map(|byte| match byte {
            b' ' => space.to_owned(),
            b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ if lower => format!("%{byte:02x}"),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// What base64 makes of it behind `before` other bytes, without the digits that those have a part in.
fn in_base64(secret: &str, before: usize) -> [String; 2] {
    let bytes = [&b"\0\0"[..before], secret.as_bytes()].concat();
    let (first, last) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
    [
        STANDARD_NO_PAD.encode(&bytes),
        URL_SAFE_NO_PAD.encode(&bytes),
    ]
    .map(|digits| digits[first..last].to_owned())
}

/// Everything that is looked through, by name.
#[derive(Default)]
pub struct Places(Vec<(String, Vec<u8>)>);

impl Places {
    pub fn add(&mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.push((name.into(), content.into()));
    }

    /// A file, or all files below a directory.
    pub fn add_files(&mut self, path: &Path) -> Result<()> {
        let kind = std::fs::symlink_metadata(path)?;
        if kind.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.add_files(&entry?.path())?;
            }
        } else if kind.is_file() {
            self.add(path.display().to_string(), std::fs::read(path)?);
        }
        Ok(())
    }

    /// Where a secret is.
    pub fn find(&self, needle: &Needle) -> Vec<&str> {
        let found = self.0.iter().filter(|(_, content)| needle.is_in(content));
        found.map(|(name, _)| name.as_str()).collect()
    }
}

#[test]
fn a_secret_is_found_in_every_form() -> Result<()> {
    let secret = "canary 1/é+x";
    let needle = Needle::new(secret);
    for text in [
        "a canary 1/é+x b",
        "canary%201%2F%C3%A9%2Bx",
        "canary+1%2f%c3%a9%2bx",
        "63616e61727920312fc3a92b78",
    ] {
        ensure!(needle.is_in(text.as_bytes()), "{text}");
    }
    for before in ["", "a", "ab", "abc", "user:"] {
        for encoded in [
            STANDARD_NO_PAD.encode(format!("{before}{secret} and more")),
            URL_SAFE_NO_PAD.encode(format!("{before}{secret}")),
        ] {
            ensure!(needle.is_in(encoded.as_bytes()), "{encoded}");
        }
    }
    ensure!(!needle.is_in(b"canary 1/e+x") && !needle.is_in(b""));
    let mut places = Places::default();
    places.add("here", "canary 1/é+x");
    places.add("there", "nothing");
    ensure!(places.find(&needle) == ["here"]);
    Ok(())
}
