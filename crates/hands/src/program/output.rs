//! The output of a command, in bounded memory.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::io::AsyncWriteExt;

/// An output with more characters than this is not returned whole.
pub(super) const MAX_CHARS: usize = 100_000;
/// An output with more bytes than this is not returned whole, either.
pub(super) const MAX_BYTES: usize = 100 << 10;
/// Most bytes of one output that are kept in a file.
const MAX_SPILL: u64 = 64 << 20;
/// How much of the beginning and of the end a preview shows, in bytes.
const PREVIEW_HEAD: usize = 4 << 10;
const PREVIEW_TAIL: usize = 8 << 10;

/// Where an output goes when it is too long to return.
#[derive(Debug, Clone)]
pub(super) struct Spill(PathBuf);

impl Spill {
    /// `None` for a name that is no plain file name.
    pub(super) fn new(directory: &Path, name: &str) -> Option<Self> {
        let plain = !name.is_empty()
            && name.len() <= 200
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        plain.then(|| Self(directory.join(format!("{name}.txt"))))
    }

    async fn create(&self) -> io::Result<tokio::fs::File> {
        if let Some(parent) = self.0.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        tokio::fs::File::create(&self.0).await
    }
}

/// Takes an output as it comes. Up to the limits it is simply kept; from there on it goes to a
/// file, and only its beginning and its end stay in memory.
#[derive(Debug)]
pub(super) struct Capture {
    strip: Strip,
    /// Everything, or (once `long`) the end of it.
    kept: Vec<u8>,
    head: Vec<u8>,
    long: bool,
    chars: u64,
    spilled: u64,
    spill: Option<Spill>,
    file: Option<tokio::fs::File>,
}

impl Capture {
    pub(super) fn new(spill: Option<Spill>) -> Self {
        Self {
            strip: Strip::default(),
            kept: Vec::new(),
            head: Vec::new(),
            long: false,
            chars: 0,
            spilled: 0,
            spill,
            file: None,
        }
    }

    /// Whether nothing but line ends has come.
    pub(super) fn is_blank(&self) -> bool {
        !self.long && self.kept.iter().all(|byte| *byte == b'\n')
    }

    /// Takes the next bytes. A file that cannot be written is given up; this never fails.
    pub(super) async fn push(&mut self, bytes: &[u8]) {
        let before = self.kept.len();
        self.strip.push(bytes, &mut self.kept);
        let new = &self.kept[before..];
        self.chars += new.iter().filter(|byte| (**byte & 0xc0) != 0x80).count() as u64;
        if self.long {
            self.write(before).await;
        } else if self.kept.len() > MAX_BYTES || self.chars > MAX_CHARS as u64 {
            self.long = true;
            self.head = self.kept[..PREVIEW_HEAD.min(self.kept.len())].to_vec();
            if let Some(spill) = &self.spill {
                self.file = spill.create().await.ok();
            }
            self.write(0).await;
        }
        if self.kept.len() > 2 * MAX_BYTES {
            self.kept.drain(..self.kept.len() - MAX_BYTES);
        }
    }

    /// Appends `kept[from..]` to the file.
    async fn write(&mut self, from: usize) {
        let Some(file) = &mut self.file else { return };
        let room = usize::try_from(MAX_SPILL - self.spilled).unwrap_or(usize::MAX);
        let bytes = &self.kept[from..];
        let bytes = &bytes[..bytes.len().min(room)];
        self.spilled += bytes.len() as u64;
        if file.write_all(bytes).await.is_err() {
            self.file = None;
        }
    }

    /// The text to return: all of it, or a preview and where the rest is, or (without a file) its
    /// end.
    pub(super) async fn finish(mut self) -> String {
        if !self.long {
            return text(&self.kept).trim_end_matches('\n').to_owned();
        }
        let written = match &mut self.file {
            Some(file) => file.flush().await.is_ok(),
            None => false,
        };
        match (&self.spill, written) {
            (Some(spill), true) => {
                let file = spill.0.display().to_string();
                let complete = self.spilled < MAX_SPILL;
                preview(self.chars, &file, complete, &self.head, &self.kept)
            }
            _ => {
                let end = &self.kept[self.kept.len().saturating_sub(MAX_BYTES)..];
                format!("[output truncated]\n{}", text(end).trim_end_matches('\n'))
            }
        }
    }
}

fn preview(chars: u64, file: &str, complete: bool, head: &[u8], all: &[u8]) -> String {
    let head = text(head);
    let tail = text(&all[all.len().saturating_sub(PREVIEW_TAIL)..]);
    let what = if complete {
        "all of it is"
    } else {
        "its first 64 MiB are"
    };
    format!(
        "[output truncated]\nThe output has {chars} characters; {what} in {file}. It begins:\n\n{}\n\n\
         [...]\n\nand ends:\n\n{}",
        head.trim_end_matches('\u{fffd}'),
        tail.trim_start_matches('\u{fffd}').trim_end_matches('\n'),
    )
}

/// Shortens a text that is there already, in the same way.
pub(super) async fn shorten(whole: String, spill: Option<Spill>) -> String {
    // A character has at least one byte, so this counts only where it matters.
    if whole.len() <= MAX_CHARS || whole.chars().count() <= MAX_CHARS {
        return whole;
    }
    let saved = match &spill {
        Some(spill) => save(spill, &whole).await.is_ok(),
        None => false,
    };
    match spill {
        Some(spill) if saved => {
            let chars = whole.chars().count() as u64;
            let head = &whole.as_bytes()[..PREVIEW_HEAD];
            preview(
                chars,
                &spill.0.display().to_string(),
                true,
                head,
                whole.as_bytes(),
            )
        }
        _ => {
            let head = text(&whole.as_bytes()[..MAX_BYTES.min(whole.len())]).into_owned();
            format!("{head}\n[output truncated at {MAX_BYTES} bytes]")
        }
    }
}

async fn save(spill: &Spill, whole: &str) -> io::Result<()> {
    let mut file = spill.create().await?;
    file.write_all(whole.as_bytes()).await?;
    file.flush().await
}

pub(super) fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Removes terminal escape sequences, also when they arrive in pieces.
#[derive(Debug, Default)]
struct Strip {
    state: State,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// ESC and intermediate bytes: one final byte follows.
    Charset,
    /// ESC [ until a final byte.
    Csi,
    /// ESC ] and its kin, until BEL or ESC \; how many bytes may still come.
    String(u16),
}

impl Strip {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut bytes = bytes;
        while let Some((&byte, rest)) = bytes.split_first() {
            self.state = match (self.state, byte) {
                (State::Text, _) => {
                    let plain = bytes.iter().position(|byte| *byte == 0x1b);
                    let (text, rest) = bytes.split_at(plain.unwrap_or(bytes.len()));
                    out.extend_from_slice(text);
                    if rest.is_empty() {
                        return;
                    }
                    bytes = &rest[1..];
                    self.state = State::Escape;
                    continue;
                }
                (State::Escape | State::Csi | State::String(_), 0x1b) => State::Escape,
                (State::Escape, b'[') => State::Csi,
                (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String(4096),
                (State::Escape | State::Charset, 0x20..=0x2f) => State::Charset,
                (State::Escape | State::Charset, 0x30..=0x7e) => State::Text,
                (State::Csi, 0x20..=0x3f) => State::Csi,
                (State::Csi, 0x40..=0x7e) | (State::String(_), 0x07) => State::Text,
                (State::String(left), 0x20..) if left > 0 => State::String(left - 1),
                // Not a sequence after all: from here on it is text, this byte included.
                _ => {
                    out.push(byte);
                    State::Text
                }
            };
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(pieces: &[&[u8]]) -> String {
        let (mut strip, mut out) = (Strip::default(), Vec::new());
        for piece in pieces {
            strip.push(piece, &mut out);
        }
        text(&out).into_owned()
    }

    #[test]
    fn escape_sequences_are_removed_and_nothing_else() {
        for (raw, plain) in [
            ("plain", "plain"),
            ("\x1b[31mred\x1b[0m!", "red!"),
            ("\x1b[?25l\x1b[2Kx", "x"),
            ("\x1b]0;title\x07shell", "shell"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b(Bx\x1b=y", "xy"),
            ("a\x1b\nb", "a\nb"),
            ("\x1b]unterminated\nnext", "\nnext"),
            ("\x1b[31\nnext", "\nnext"),
            ("grün \u{1f600}\0", "grün \u{1f600}\0"),
        ] {
            assert_eq!(strip(&[raw.as_bytes()]), plain, "{raw:?}");
            let bytes: Vec<&[u8]> = raw.as_bytes().chunks(1).collect();
            assert_eq!(strip(&bytes), plain, "{raw:?} byte by byte");
        }
    }

    #[tokio::test]
    async fn a_long_output_goes_to_a_file_and_memory_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let spill = Spill::new(&directory.path().join("deep/er"), "sevt_1");
        let mut capture = Capture::new(spill);
        let lines: String = (0..200_000).map(|line| format!("line {line}\n")).collect();
        for chunk in lines.as_bytes().chunks(10_000) {
            capture.push(chunk).await;
            assert!(capture.kept.capacity() < 8 * MAX_BYTES);
        }
        let text = capture.finish().await;
        let path = directory.path().join("deep/er/sevt_1.txt");
        assert!(
            text.starts_with("[output truncated]\nThe output has 2288890 characters"),
            "{text}"
        );
        assert!(text.contains(&format!("all of it is in {}", path.display())));
        assert!(text.contains("line 0\n") && text.ends_with("line 199999"));
        assert!(text.len() < 16 << 10);
        assert_eq!(std::fs::read_to_string(path).unwrap(), lines);
    }

    #[tokio::test]
    async fn without_a_file_the_end_is_returned() {
        let mut capture = Capture::new(None);
        for _ in 0..MAX_BYTES {
            capture.push(b"abc").await;
        }
        let text = capture.finish().await;
        assert!(text.starts_with("[output truncated]\n"));
        assert_eq!(text.len(), MAX_BYTES + "[output truncated]\n".len());
    }

    #[test]
    fn only_plain_names_become_files() {
        for bad in ["", "..", "a/b", "a.b", "a\0"] {
            assert!(Spill::new(Path::new("/x"), bad).is_none(), "{bad:?}");
        }
    }
}
