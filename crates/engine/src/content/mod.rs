//! Images and documents that messages name by a file's id or by an address.
//!
//! The log keeps what the client sent. What it stands for is read once and pinned for the session: a
//! file's content when the event that names it is accepted, an address's before the model is shown it. From
//! then on the model sees the same bytes in every request, whatever becomes of the file or the page.

mod accept;
mod cache;
mod resolve;

use selfsame_store::ContentKind;
use selfsame_types::content::{MAX_IMAGE_ENCODED, MAX_PDF};

pub(crate) use accept::check;
pub(crate) use cache::Cache;
pub(crate) use resolve::resolve;

use crate::web::{Kind, looks_like_text, named_kind, sniff};

/// Largest text that is shown as a document, in bytes.
const MAX_TEXT: usize = 10 << 20;
/// Enough of a content to tell what it is, in bytes.
const HEAD: usize = 4096;

/// Largest content of a media type that models are shown.
fn limit(media_type: &str) -> usize {
    match media_type {
        "application/pdf" => MAX_PDF,
        "text/plain" => MAX_TEXT,
        _ => MAX_IMAGE_ENCODED / 4 * 3,
    }
}

/// What a content is for a block of `kind`, by its first bytes and by what it was declared to be. An error
/// says what is wrong with it.
fn media_type(
    kind: ContentKind,
    head: &[u8],
    declared: &str,
    size: u64,
) -> Result<&'static str, String> {
    let declared = declared.split(';').next().unwrap_or_default().trim();
    let is_text = || {
        matches!(
            named_kind(&declared.to_ascii_lowercase()),
            Some(Kind::Text | Kind::Html)
        ) || looks_like_text(head)
    };
    let media_type = match (kind, sniff(head)) {
        (ContentKind::Image, Some(Kind::Image(media_type))) => media_type,
        (ContentKind::Image, _) => {
            return Err("is not an image; PNG, JPEG, GIF and WebP are".to_owned());
        }
        (ContentKind::Document, Some(Kind::Pdf)) => "application/pdf",
        (ContentKind::Document, Some(Kind::Image(_))) => {
            return Err("is an image, not a document; use an `image` block".to_owned());
        }
        (ContentKind::Document, _) if is_text() => "text/plain",
        (ContentKind::Document, _) => {
            return Err("is not a document; PDFs and texts are".to_owned());
        }
    };
    let limit = limit(media_type);
    if size > limit as u64 {
        return Err(match media_type {
            "application/pdf" | "text/plain" => format!(
                "is too large: a {} may have at most {} MiB",
                if media_type == "text/plain" {
                    "text"
                } else {
                    "PDF"
                },
                limit >> 20
            ),
            _ => "is too large: an image may have at most 5 MiB in base64".to_owned(),
        });
    }
    Ok(media_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContentKind::{Document, Image};

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

    #[test]
    fn contents_are_what_they_are_and_not_what_they_are_called() {
        for (kind, head, declared, expected) in [
            (Image, PNG, "image/png", Ok("image/png")),
            (Image, PNG, "text/plain", Ok("image/png")),
            (Image, &b"\xff\xd8\xff\xe0"[..], "", Ok("image/jpeg")),
            (Image, b"GIF89a", "", Ok("image/gif")),
            (Image, b"RIFF\0\0\0\0WEBPVP8 ", "", Ok("image/webp")),
            (Image, b"<svg", "image/png", Err("not an image")),
            (Image, b"%PDF-1.4", "image/png", Err("not an image")),
            (Image, b"", "image/png", Err("not an image")),
            (Document, b"%PDF-1.4", "text/plain", Ok("application/pdf")),
            (
                Document,
                b"a,b\n1,2\n",
                "text/csv; charset=utf-8",
                Ok("text/plain"),
            ),
            (Document, b"{}", "application/json", Ok("text/plain")),
            (
                Document,
                b"words",
                "application/octet-stream",
                Ok("text/plain"),
            ),
            (Document, b"", "application/octet-stream", Ok("text/plain")),
            (
                Document,
                PNG,
                "application/pdf",
                Err("use an `image` block"),
            ),
            (
                Document,
                b"PK\x03\x04\0\0",
                "application/zip",
                Err("not a document"),
            ),
        ] {
            let found = media_type(kind, head, declared, 100);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{declared}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{declared}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn sizes_are_limited() {
        for (kind, head, most) in [
            (Image, PNG, 3_932_160),
            (Document, &b"%PDF-"[..], 20 << 20),
            (Document, b"text", 10 << 20),
        ] {
            assert!(media_type(kind, head, "", most).is_ok());
            let error = media_type(kind, head, "", most + 1).unwrap_err();
            assert!(error.contains("too large"), "{error}");
        }
        // An image of the most bytes has 5 MiB in base64.
        assert_eq!(3_932_160 / 3 * 4, 5 << 20);
    }
}
