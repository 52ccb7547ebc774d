//! `glob`, and `grep` where there is no ripgrep.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use regex::bytes::Regex;
use selfsame_hands::Content;
use serde::Deserialize;

use super::{files::phrase, output::text, places::Places, tools::Failure};

/// Most paths that `glob` returns.
const MAX_PATHS: usize = 200;
/// Most directory entries looked at in one walk.
const MAX_ENTRIES: usize = 1_000_000;
/// Most bytes that `grep` returns.
pub(super) const MAX_MATCHES: usize = 100 << 10;
/// Longer lines are not searched, in bytes.
const MAX_LINE: usize = 2000;
/// How much of a file is looked at to tell whether it is binary, in bytes.
const SNIFF: u64 = 512;
/// Largest compiled pattern, in bytes: a few characters can ask for gigabytes.
const MAX_PATTERN: usize = 4 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct GlobInput {
    pattern: String,
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct GrepInput {
    pub(super) pattern: String,
    path: Option<String>,
}

impl GrepInput {
    /// The file or directory to search.
    pub(super) fn root(&self, places: &Places) -> PathBuf {
        self.path
            .as_deref()
            .map_or_else(|| places.workdir(), |path| places.of_tool(path))
    }
}

pub(super) fn glob(
    input: GlobInput,
    places: &Places,
    stop: &AtomicBool,
) -> Result<Content, Failure> {
    let pattern = input.pattern.as_str();
    if pattern.is_empty() {
        return Err(Failure::new("pattern is empty"));
    }
    if pattern.starts_with('/') {
        return Err(Failure::new(
            "absolute pattern not permitted; pass a relative pattern (and optionally path)",
        ));
    }
    if pattern.split('/').any(|part| part == "..") {
        return Err(Failure::new("'..' is not permitted in the pattern"));
    }
    let root = input
        .path
        .as_deref()
        .map_or_else(|| places.workdir(), |path| places.of_tool(path));
    let root_name = root.display().to_string();
    let fault = |error| Failure::new(format!("{root_name}: {}", phrase(&error)));
    if !fs::metadata(&root).map_err(fault)?.is_dir() {
        return Err(Failure::new(format!("{root_name}: not a directory")));
    }
    let regex = compile(&translate(pattern))
        .map_err(|error| Failure::new(format!("invalid pattern: {error}")))?;
    // A pattern without `**` names its depth.
    let depth = (!pattern.contains("**")).then(|| depth(pattern));
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    let below = root.as_os_str().len();
    walk(&root, depth, stop, &mut |path, metadata| {
        let bytes = path.as_os_str().as_bytes();
        let relative = bytes[below..].strip_prefix(b"/").unwrap_or(&bytes[below..]);
        if regex.is_match(relative) {
            found.push((
                metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                path.to_owned(),
            ));
        }
        true
    })?;
    if found.is_empty() {
        return Ok(Content::Text("no matches".into()));
    }
    // Newest first; by name where that does not decide, so that the answer is always the same.
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let lines: Vec<String> = found
        .iter()
        .take(MAX_PATHS)
        .map(|(_, path)| text(path.as_os_str().as_bytes()).into_owned())
        .collect();
    Ok(Content::Text(lines.join("\n")))
}

/// How many levels a pattern without `**` reaches; a slash inside braces counts, too, which at
/// worst looks one level too deep.
fn depth(pattern: &str) -> usize {
    pattern.matches('/').count() + 1
}

/// A doublestar pattern as a regular expression over the relative path.
fn translate(pattern: &str) -> String {
    let mut regex = String::from("(?s-u)^");
    let mut chars = pattern.trim_start_matches("./").chars().peekable();
    let mut braces = 0_u32;
    let mut start = true;
    while let Some(char) = chars.next() {
        let at_start = std::mem::replace(&mut start, char == '/');
        match char {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                if at_start && chars.peek() == Some(&'/') {
                    chars.next();
                    start = true;
                    regex.push_str("(?:[^/]+/)*");
                } else {
                    regex.push_str(".*");
                }
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("(?u:[^/])"),
            '[' => {
                let rest: String = chars.clone().collect();
                // A `]` that comes first belongs to the class.
                let skip = 1 + usize::from(rest.starts_with(['!', '^']));
                match rest
                    .char_indices()
                    .skip(skip)
                    .find(|(_, char)| *char == ']')
                {
                    None => regex.push_str("\\["),
                    Some((end, _)) => {
                        let class = &rest[..end];
                        let (negated, class) = match class.strip_prefix(['!', '^']) {
                            Some(class) => (true, class),
                            None => (false, class),
                        };
                        regex.push_str(if negated { "(?u:[^/" } else { "(?u:[" });
                        for char in class.chars() {
                            if matches!(char, '[' | ']' | '\\' | '^' | '&' | '~') {
                                regex.push('\\');
                            }
                            regex.push(char);
                        }
                        regex.push_str("])");
                        for _ in 0..=class.chars().count() + usize::from(negated) {
                            chars.next();
                        }
                    }
                }
            }
            '{' => {
                braces += 1;
                start = at_start;
                regex.push_str("(?:");
            }
            '}' if braces > 0 => {
                braces -= 1;
                regex.push(')');
            }
            ',' if braces > 0 => regex.push('|'),
            '\\' => {
                let escaped = chars.next().unwrap_or('\\');
                regex.push_str(&regex::escape(&escaped.to_string()));
            }
            _ => regex.push_str(&regex::escape(&char.to_string())),
        }
    }
    for _ in 0..braces {
        regex.push(')');
    }
    regex.push('$');
    regex
}

fn compile(pattern: &str) -> Result<Regex, String> {
    regex::bytes::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN)
        .dfa_size_limit(MAX_PATTERN)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "the pattern is too large".to_owned(),
            // The last line of the message says what is wrong, the others point at it.
            error => error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .replace("error: ", ""),
        })
}

/// What is wrong with a pattern, if anything is.
pub(super) fn check(pattern: &str) -> Result<(), Failure> {
    compile(pattern).map(drop).map_err(invalid)
}

fn invalid(error: String) -> Failure {
    Failure::new(format!("invalid regex: {error}"))
}

/// Visits everything below `root` in name order, without following links, until `visit` says no.
/// Directories that cannot be read are passed over.
fn walk(
    root: &Path,
    depth: Option<usize>,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(&Path, &fs::Metadata) -> bool,
) -> Result<(), Failure> {
    let mut pending = vec![(root.to_owned(), 1)];
    let mut seen = 0;
    while let Some((directory, level)) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries.flatten() {
            seen += 1;
            if seen > MAX_ENTRIES {
                return Err(Failure::new(format!(
                    "more than {MAX_ENTRIES} files to look at; name a narrower path"
                )));
            }
            paths.push(entry.path());
        }
        paths.sort_unstable();
        let mut directories = Vec::new();
        for path in paths {
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::new("stopped"));
            }
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if !visit(&path, &metadata) {
                return Ok(());
            }
            if metadata.is_dir() && depth.is_none_or(|depth| level < depth) {
                directories.push((path, level + 1));
            }
        }
        pending.extend(directories.into_iter().rev());
    }
    Ok(())
}

/// As `rg -n --no-heading`: `file:line:text`, without binary files, `.git` and `node_modules`.
pub(super) fn grep(
    input: GrepInput,
    places: &Places,
    stop: &AtomicBool,
) -> Result<Content, Failure> {
    let regex = compile(&input.pattern).map_err(invalid)?;
    let path = &input.root(places);
    let name = path.display();
    let metadata =
        fs::metadata(path).map_err(|error| Failure::new(format!("{name}: {}", phrase(&error))))?;
    let mut found = Vec::new();
    if metadata.is_dir() {
        grep_directory(&regex, path, stop, &mut found)?;
    } else if metadata.is_file() {
        scan(&regex, path, stop, &mut found);
    } else {
        return Err(Failure::new(format!("{name}: not a regular file")));
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::new("stopped"));
    }
    Ok(Content::Text(limited(found)))
}

fn grep_directory(
    regex: &Regex,
    root: &Path,
    stop: &AtomicBool,
    found: &mut Vec<u8>,
) -> Result<(), Failure> {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let mut directories = Vec::new();
        walk(&directory, Some(1), stop, &mut |path, metadata| {
            if metadata.is_dir() {
                let skipped = path
                    .file_name()
                    .is_some_and(|n| n == ".git" || n == "node_modules");
                if !skipped {
                    directories.push(path.to_owned());
                }
                return true;
            }
            !metadata.is_file() || scan(regex, path, stop, found)
        })?;
        if found.len() > MAX_MATCHES {
            break;
        }
        pending.extend(directories.into_iter().rev());
    }
    Ok(())
}

/// Appends the matching lines of one file; false when there are enough.
fn scan(regex: &Regex, path: &Path, stop: &AtomicBool, found: &mut Vec<u8>) -> bool {
    let Ok(mut file) = File::open(path) else {
        return true;
    };
    let mut start = Vec::new();
    if (&mut file).take(SNIFF).read_to_end(&mut start).is_err() || start.contains(&0) {
        return true;
    }
    let mut reader = BufReader::with_capacity(64 << 10, start.as_slice().chain(file));
    let mut line = Vec::new();
    let mut number = 0_u64;
    loop {
        line.clear();
        number += 1;
        match read_line(&mut reader, &mut line) {
            Ok(true) => {}
            Ok(false) | Err(_) => return true,
        }
        if number.is_multiple_of(1024) && stop.load(Ordering::Relaxed) {
            return false;
        }
        if line.len() > MAX_LINE {
            continue;
        }
        while line
            .last()
            .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
        {
            line.pop();
        }
        if regex.is_match(&line) {
            found.extend_from_slice(path.as_os_str().as_bytes());
            found.extend_from_slice(format!(":{number}:").as_bytes());
            found.extend_from_slice(&line);
            found.push(b'\n');
            if found.len() > MAX_MATCHES {
                return false;
            }
        }
    }
}

/// Reads one line and keeps little more than the limit of it; false at the end.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut any = false;
    loop {
        let block = reader.fill_buf()?;
        if block.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = block.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(block.len(), |at| at + 1);
        if line.len() <= MAX_LINE {
            line.extend_from_slice(&block[..length]);
        }
        reader.consume(length);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// The matches as text, cut at a line's end with a note when they are too many.
pub(super) fn limited(mut found: Vec<u8>) -> String {
    if found.is_empty() {
        return "no matches".into();
    }
    let truncated = found.len() > MAX_MATCHES;
    if truncated {
        found.truncate(MAX_MATCHES);
        if let Some(end) = found.iter().rposition(|byte| *byte == b'\n') {
            found.truncate(end);
        }
    }
    let text = text(&found);
    let text = text.trim_end_matches('\n');
    if truncated {
        format!("{text}\n[output truncated at {MAX_MATCHES} bytes]")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doublestar_patterns_match_as_documented() {
        for (pattern, yes, no) in [
            ("*.rs", &["a.rs", ".rs"][..], &["a/b.rs", "a.rsx"][..]),
            ("**/*.rs", &["a.rs", "a/b/c.rs"], &["a.txt"]),
            ("src/**", &["src/a", "src/a/b"], &["src", "lib/src/a"]),
            ("a/**/z", &["a/z", "a/b/c/z"], &["az", "b/a/z"]),
            ("**", &["a", "a/b"], &[]),
            ("?.{txt,md}", &["a.txt", "ü.md"], &["ab.txt", "a.rs"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "x"]),
            ("[!a-c]x", &["dx"], &["ax", "/x"]),
            ("[]x]", &["]", "x"], &["[", ""]),
            ("a[", &["a["], &["a"]),
            ("a+(b).c", &["a+(b).c"], &["aab.c", "a+(b)xc"]),
            (r"\*", &["*"], &["a"]),
            ("./x", &["x"], &["./x"]),
            ("{a,b/**/c}.md", &["a.md", "b/c.md", "b/x/c.md"], &["c.md"]),
        ] {
            let regex = compile(&translate(pattern)).unwrap();
            for path in yes {
                assert!(
                    regex.is_match(path.as_bytes()),
                    "{pattern} should match {path}: {regex}"
                );
            }
            for path in no {
                assert!(
                    !regex.is_match(path.as_bytes()),
                    "{pattern} should not match {path}"
                );
            }
        }
    }

    #[test]
    fn hostile_patterns_are_refused() {
        assert!(check("(").is_err());
        assert!(check("(((a{1000}){1000}){1000})").is_err());
        for pattern in [
            "{", "}", "[[[[", "{{{{a", "[z-a]", "\\", "***", "**a**", "{,}",
        ] {
            // Any answer will do, as long as there is one.
            let _ = compile(&translate(pattern));
        }
    }
}
