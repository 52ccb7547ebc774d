//! Looks for secrets in whatever form they may have got somewhere.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use tempfile::TempDir;

/// One secret in all its forms.
pub struct Needle {
    forms: Vec<String>,
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
        forms.sort();
        forms.dedup();
        Self { forms }
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

/// Everything that is looked through, by name. There is much of it, so it is in files, and `grep` looks.
pub struct Places {
    directory: TempDir,
    names: Vec<String>,
}

impl Places {
    pub fn new() -> Result<Self> {
        Ok(Self {
            directory: TempDir::new()?,
            names: Vec::new(),
        })
    }

    pub fn add(&mut self, name: impl Into<String>, content: impl AsRef<[u8]>) -> Result<()> {
        let file = self.directory.path().join(self.names.len().to_string());
        std::fs::write(file, content)?;
        self.names.push(name.into());
        Ok(())
    }

    /// A file, or all files below a directory.
    pub fn add_files(&mut self, path: &Path) -> Result<()> {
        let kind = std::fs::symlink_metadata(path)?;
        if kind.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.add_files(&entry?.path())?;
            }
        } else if kind.is_file() {
            self.add(path.display().to_string(), std::fs::read(path)?)?;
        }
        Ok(())
    }

    /// Where a secret is.
    pub fn find(&self, needle: &Needle) -> Result<Vec<&str>> {
        let patterns = self.directory.path().with_extension("patterns");
        std::fs::write(&patterns, needle.forms.join("\n"))?;
        let output = Command::new("grep")
            .args(["-rlaF", "-f"])
            .args([&patterns, self.directory.path()])
            .env("LC_ALL", "C")
            .output()?;
        std::fs::remove_file(&patterns)?;
        // 1: nothing was found.
        ensure!(
            matches!(output.status.code(), Some(0 | 1)),
            "grep: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)?
            .lines()
            .map(|file| {
                let (_, index) = file.rsplit_once('/').context("a path")?;
                Ok(&*self.names[index.parse::<usize>()?])
            })
            .collect()
    }
}

#[test]
fn a_secret_is_found_in_every_form() -> Result<()> {
    let secret = "canary 1/é+x";
    let needle = Needle::new(secret);
    let is_in = |content: &str| {
        let mut places = Places::new()?;
        places.add("elsewhere", "nothing")?;
        places.add("here", content)?;
        Ok::<_, anyhow::Error>(places.find(&needle)? == ["here"])
    };
    for text in [
        "a canary 1/é+x b",
        "\0canary%201%2F%C3%A9%2Bx\0",
        "canary+1%2f%c3%a9%2bx",
        "63616e61727920312fc3a92b78",
    ] {
        ensure!(is_in(text)?, "{text}");
    }
    for before in ["", "a", "ab", "abc", "user:"] {
        for encoded in [
            STANDARD_NO_PAD.encode(format!("{before}{secret} and more")),
            URL_SAFE_NO_PAD.encode(format!("{before}{secret}")),
        ] {
            ensure!(is_in(&encoded)?, "{encoded}");
        }
    }
    ensure!(!is_in("canary 1/e+x")? && !is_in("")?);
    Ok(())
}
