//! Files: what the API shows of one, and the rules for names and media types.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{ApiError, FileId, SessionId, Timestamp, wire};

/// Largest file that is taken unless the operator says otherwise, bytes.
pub const MAX_BYTES: u64 = 500 * 1024 * 1024;
/// `expires_in_seconds`: an hour to ninety days.
pub const EXPIRY_SECONDS: std::ops::RangeInclusive<u64> = 3600..=7_776_000;

const MAX_NAME: usize = 255;
/// The type of what is not known better.
pub const BINARY: &str = "application/octet-stream";

wire::literals! {
    FileType = "file";
    FileDeletedType = "file_deleted";
    SessionScopeType = "session";
}

/// A file, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct File {
    #[schema(inline)]
    pub r#type: FileType,
    pub id: FileId,
    pub filename: String,
    pub mime_type: String,
    pub size_bytes: u64,
    pub created_at: Timestamp,
    /// Whether clients may have the content: only of what a session has made.
    pub downloadable: bool,
    /// From then on the content is gone.
    #[schema(required)]
    pub expires_at: Option<Timestamp>,
    /// Null for what a client has uploaded.
    #[schema(required)]
    pub scope: Option<FileScope>,
}

/// The session that a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct FileScope {
    #[schema(inline)]
    pub r#type: SessionScopeType,
    pub id: SessionId,
}

/// The answer to a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeletedFile {
    pub id: FileId,
    #[schema(inline)]
    pub r#type: FileDeletedType,
}

impl File {
    /// The media type without parameters.
    #[must_use]
    pub fn essence(&self) -> &str {
        self.mime_type.split(';').next().unwrap_or("").trim_end()
    }
}

/// The name a file gets: the last component of what the client calls it, or `unnamed`.
///
/// # Errors
/// For names that are too long, or that no directory could hold safely.
pub fn clean_name(given: Option<&str>, mime_type: &str) -> Result<String, ApiError> {
    let given = given.unwrap_or("");
    let name = given.rsplit('/').next().unwrap_or("").trim();
    if name.is_empty() {
        return Ok(format!("unnamed{}", extension_of(mime_type)));
    }
    check_name(name)?;
    Ok(name.to_owned())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let count = name.chars().count();
    if count > MAX_NAME {
        return Err(ApiError::invalid(format!(
            "file: the filename must have 1 to {MAX_NAME} characters, has {count}"
        )));
    }
    let forbidden =
        |char: char| char.is_ascii_control() || "<>:\"|?*\\/".chars().any(|bad| bad == char);
    if let Some(bad) = name.chars().find(|char| forbidden(*char)) {
        return Err(ApiError::invalid(format!(
            "file: the filename must not contain {bad:?}"
        )));
    }
    if name == "." || name == ".." {
        return Err(ApiError::invalid(
            "file: the filename must not be `.` or `..`",
        ));
    }
    Ok(())
}

/// The media type a file gets: what the client says, else what the name suggests.
///
/// # Errors
/// When the client says something that is not a media type.
pub fn clean_mime_type(given: Option<&str>, filename: Option<&str>) -> Result<String, ApiError> {
    let given = given.unwrap_or("").trim();
    if given.is_empty() {
        return Ok(guess_mime_type(filename.unwrap_or("")).to_owned());
    }
    let token = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let (essence, parameters) = given.split_once(';').map_or((given, ""), |(a, b)| (a, b));
    let valid = given.len() <= MAX_NAME
        && essence
            .trim_end()
            .split_once('/')
            .is_some_and(|(kind, sub)| token(kind) && token(sub))
        && parameters
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !valid {
        return Err(ApiError::invalid(
            "file: the content type of the part is not a media type such as `text/csv`",
        ));
    }
    Ok(given.to_ascii_lowercase())
}

/// What a file of this name most likely holds.
#[must_use]
pub fn guess_mime_type(filename: &str) -> &'static str {
    let extension = filename.rsplit_once('.').map_or("", |(_, last)| last);
    TYPES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(extension))
        .map_or(BINARY, |(_, mime_type)| mime_type)
}

/// With its dot; empty when the type is not known.
fn extension_of(mime_type: &str) -> String {
    let essence = mime_type.split(';').next().unwrap_or("").trim_end();
    TYPES
        .iter()
        .find(|(_, known)| *known == essence)
        .map(|(extension, _)| format!(".{extension}"))
        .unwrap_or_default()
}

/// Extensions and media types. Of several extensions of one type the usual one comes first.
const TYPES: [(&str, &str); 68] = [
    ("txt", "text/plain"),
    ("log", "text/plain"),
    ("csv", "text/csv"),
    ("tsv", "text/tab-separated-values"),
    ("md", "text/markdown"),
    ("markdown", "text/markdown"),
    ("html", "text/html"),
    ("htm", "text/html"),
    ("css", "text/css"),
    ("js", "text/javascript"),
    ("mjs", "text/javascript"),
    ("ts", "text/x-typescript"),
    ("py", "text/x-python"),
    ("rs", "text/x-rust"),
    ("go", "text/x-go"),
    ("java", "text/x-java"),
    ("c", "text/x-c"),
    ("h", "text/x-c"),
    ("cpp", "text/x-c++"),
    ("rb", "text/x-ruby"),
    ("sh", "application/x-sh"),
    ("sql", "application/sql"),
    ("json", "application/json"),
    ("jsonl", "application/jsonl"),
    ("ndjson", "application/x-ndjson"),
    ("ipynb", "application/x-ipynb+json"),
    ("xml", "application/xml"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("toml", "application/toml"),
    ("tex", "application/x-tex"),
    ("ics", "text/calendar"),
    ("eml", "message/rfc822"),
    ("pdf", "application/pdf"),
    ("rtf", "application/rtf"),
    ("epub", "application/epub+zip"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("svg", "image/svg+xml"),
    ("bmp", "image/bmp"),
    ("ico", "image/vnd.microsoft.icon"),
    ("tif", "image/tiff"),
    ("tiff", "image/tiff"),
    ("mp3", "audio/mpeg"),
    ("wav", "audio/wav"),
    ("ogg", "audio/ogg"),
    ("mp4", "video/mp4"),
    ("webm", "video/webm"),
    ("zip", "application/zip"),
    ("gz", "application/gzip"),
    ("tar", "application/x-tar"),
    ("parquet", "application/vnd.apache.parquet"),
    ("sqlite", "application/vnd.sqlite3"),
    ("doc", "application/msword"),
    ("xls", "application/vnd.ms-excel"),
    ("ppt", "application/vnd.ms-powerpoint"),
    (
        "docx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ),
    (
        "xlsx",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ),
    (
        "pptx",
        "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ),
    ("odt", "application/vnd.oasis.opendocument.text"),
    ("ods", "application/vnd.oasis.opendocument.spreadsheet"),
    ("odp", "application/vnd.oasis.opendocument.presentation"),
    ("woff2", "font/woff2"),
    ("wasm", "application/wasm"),
    ("bin", BINARY),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_component_of_a_name_is_kept() {
        for (given, kept) in [
            ("data.csv", "data.csv"),
            ("a/b/data.csv", "data.csv"),
            ("../../etc/passwd", "passwd"),
            ("/etc/passwd", "passwd"),
            ("  spaced name .txt ", "spaced name .txt"),
            ("Überblick 数据.csv", "Überblick 数据.csv"),
            ("directory/", "unnamed.csv"),
            ("", "unnamed.csv"),
            (" / ", "unnamed.csv"),
            (".hidden", ".hidden"),
            ("...", "..."),
        ] {
            let name = clean_name(Some(given), "text/csv; charset=utf-8");
            assert_eq!(name.as_deref(), Ok(kept), "{given:?}");
        }
        assert_eq!(clean_name(None, "x/unknown").as_deref(), Ok("unnamed"));
        let longest = "ä".repeat(MAX_NAME);
        assert!(clean_name(Some(&longest), BINARY).is_ok());
    }

    #[test]
    fn names_that_no_directory_should_hold_are_refused() {
        let long = "x".repeat(MAX_NAME + 1);
        for bad in [
            "..",
            "a/..",
            ".",
            "C:\\temp\\x",
            "a\\b",
            "a:b",
            "a<b",
            "a>b",
            "a\"b",
            "a|b",
            "a?b",
            "a*b",
            "a\0b",
            "a\nb",
            "a\r\nb: c",
            "a\x1fb",
            "a\x7fb",
            &long,
        ] {
            let error = clean_name(Some(bad), BINARY).unwrap_err();
            assert!(error.message.starts_with("file: "), "{bad:?}: {error}");
        }
    }

    #[test]
    fn media_types_are_given_or_guessed() {
        let clean = |given, name| clean_mime_type(given, name);
        assert_eq!(
            clean(Some("Text/CSV; Charset=UTF-8"), None).as_deref(),
            Ok("text/csv; charset=utf-8")
        );
        assert_eq!(
            clean(None, Some("a.tar.GZ")).as_deref(),
            Ok("application/gzip")
        );
        assert_eq!(clean(None, Some("Makefile")).as_deref(), Ok(BINARY));
        assert_eq!(
            clean(Some(" "), Some("a.json")).as_deref(),
            Ok("application/json")
        );
        let long = format!("text/{}", "x".repeat(300));
        for bad in [
            "text",
            "text/",
            "/plain",
            "a b/c",
            "text/plain\r\nx: y",
            "té/xt",
            "text/plain; ä",
            &long,
        ] {
            assert!(clean(Some(bad), None).is_err(), "{bad:?}");
        }
    }
}
