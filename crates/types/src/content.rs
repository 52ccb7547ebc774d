//! Content blocks that clients send. They are checked and then kept as they were sent.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, FileId, check, wire};

/// Most documents by file id in one request.
pub const MAX_FILE_DOCUMENTS: usize = 100;
/// Largest image, in base64.
pub const MAX_IMAGE_ENCODED: usize = 5 << 20;
/// Largest PDF, in bytes.
pub const MAX_PDF: usize = 20 << 20;
/// Longest address of an image or document.
const MAX_URL: usize = 2048;

wire::literals! {
    TextType = "text";
    ImageType = "image";
    DocumentType = "document";
    SearchResultType = "search_result";
    Base64Type = "base64";
    UrlType = "url";
    FileType = "file";
    PlainTextMediaType = "text/plain";
    PdfMediaType = "application/pdf";
}

/// What `user.message` may hold.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("text" = "#/components/schemas/TextBlock"),
    ("image" = "#/components/schemas/ImageBlock"),
    ("document" = "#/components/schemas/DocumentBlock"),
)))]
pub enum MessageBlock {
    Text(TextBlock),
    Image(ImageBlock),
    Document(DocumentBlock),
}

wire::tagged_union! { MessageBlock:
    "text" => Text,
    "image" => Image,
    "document" => Document,
}

/// What a tool's result may hold.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("text" = "#/components/schemas/TextBlock"),
    ("image" = "#/components/schemas/ImageBlock"),
    ("document" = "#/components/schemas/DocumentBlock"),
    ("search_result" = "#/components/schemas/SearchResultBlock"),
)))]
pub enum ToolResultBlock {
    Text(TextBlock),
    Image(ImageBlock),
    Document(DocumentBlock),
    SearchResult(SearchResultBlock),
}

wire::tagged_union! { ToolResultBlock:
    "text" => Text,
    "image" => Image,
    "document" => Document,
    "search_result" => SearchResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextBlock {
    #[schema(inline)]
    pub r#type: TextType,
    #[schema(min_length = 1)]
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBlock {
    #[schema(inline)]
    pub r#type: ImageType,
    pub source: ImageSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentBlock {
    #[schema(inline)]
    pub r#type: DocumentType,
    pub source: DocumentSource,
    pub title: Option<String>,
    pub context: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchResultBlock {
    #[schema(inline)]
    pub r#type: SearchResultType,
    /// The URL it was found at.
    pub source: String,
    pub title: String,
    pub citations: Citations,
    pub content: Vec<TextBlock>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Citations {
    pub enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("base64" = "#/components/schemas/Base64Image"),
    ("url" = "#/components/schemas/UrlSourceRef"),
    ("file" = "#/components/schemas/FileSource"),
)))]
pub enum ImageSource {
    Base64(Base64Image),
    Url(UrlSourceRef),
    File(FileSource),
}

wire::tagged_union! { ImageSource:
    "base64" => Base64,
    "url" => Url,
    "file" => File,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(discriminator(property_name = "type", mapping(
    ("base64" = "#/components/schemas/Base64Document"),
    ("text" = "#/components/schemas/PlainTextSource"),
    ("url" = "#/components/schemas/UrlSourceRef"),
    ("file" = "#/components/schemas/FileSource"),
)))]
pub enum DocumentSource {
    Base64(Base64Document),
    Text(PlainTextSource),
    Url(UrlSourceRef),
    File(FileSource),
}

wire::tagged_union! { DocumentSource:
    "base64" => Base64,
    "text" => Text,
    "url" => Url,
    "file" => File,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImageMediaType {
    #[serde(rename = "image/png")]
    Png,
    #[serde(rename = "image/jpeg")]
    Jpeg,
    #[serde(rename = "image/gif")]
    Gif,
    #[serde(rename = "image/webp")]
    Webp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Base64Image {
    #[schema(inline)]
    pub r#type: Base64Type,
    pub media_type: ImageMediaType,
    #[schema(min_length = 1)]
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Base64Document {
    #[schema(inline)]
    pub r#type: Base64Type,
    #[schema(inline)]
    pub media_type: PdfMediaType,
    #[schema(min_length = 1)]
    pub data: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlainTextSource {
    #[schema(inline)]
    pub r#type: TextType,
    #[schema(inline)]
    pub media_type: PlainTextMediaType,
    #[schema(min_length = 1)]
    pub data: String,
}

/// The server fetches it once, before the model is shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlSourceRef {
    #[schema(inline)]
    pub r#type: UrlType,
    #[schema(min_length = 1, max_length = 2048)]
    pub url: String,
}

/// A file of this workspace, as it is when the event is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    #[schema(inline)]
    pub r#type: FileType,
    #[schema(min_length = 1, max_length = 128)]
    pub file_id: String,
}

impl MessageBlock {
    /// `at` is the block's place inside its event.
    pub(crate) fn validate(&self, at: &str) -> Result<(), ApiError> {
        match self {
            Self::Text(block) => block.validate(at),
            Self::Image(block) => block.source.validate(&format!("{at}.source")),
            Self::Document(block) => block.source.validate(&format!("{at}.source")),
        }
    }

    /// A document that is named by a file's id.
    pub(crate) fn is_file_document(&self) -> bool {
        matches!(
            self,
            Self::Document(DocumentBlock {
                source: DocumentSource::File(_),
                ..
            })
        )
    }
}

impl ToolResultBlock {
    /// `at` is the block's place inside its event.
    pub(crate) fn validate(&self, at: &str) -> Result<(), ApiError> {
        match self {
            Self::Text(block) => block.validate(at),
            Self::Image(block) => block.source.validate(&format!("{at}.source")),
            Self::Document(block) => block.source.validate(&format!("{at}.source")),
            Self::SearchResult(block) => block
                .content
                .iter()
                .enumerate()
                .try_for_each(|(index, text)| text.validate(&format!("{at}.content[{index}]"))),
        }
    }

    /// A document that is named by a file's id.
    pub(crate) fn is_file_document(&self) -> bool {
        matches!(
            self,
            Self::Document(DocumentBlock {
                source: DocumentSource::File(_),
                ..
            })
        )
    }
}

impl TextBlock {
    pub(crate) fn validate(&self, at: &str) -> Result<(), ApiError> {
        not_empty(&self.text, &format!("{at}.text"))
    }
}

impl ImageSource {
    fn validate(&self, at: &str) -> Result<(), ApiError> {
        match self {
            Self::Base64(source) if source.data.len() > MAX_IMAGE_ENCODED => {
                Err(ApiError::invalid(format!(
                    "{at}.data: an image may have at most 5 MiB in base64, this has {} bytes",
                    source.data.len()
                )))
            }
            Self::Base64(source) => base64_data(&source.data, at).map(drop),
            Self::Url(source) => source.validate(at),
            Self::File(source) => source.validate(at),
        }
    }
}

impl DocumentSource {
    fn validate(&self, at: &str) -> Result<(), ApiError> {
        match self {
            Self::Base64(source) => match base64_data(&source.data, at)? {
                size if size > MAX_PDF => Err(ApiError::invalid(format!(
                    "{at}.data: a PDF may have at most 20 MiB, this has {size} bytes"
                ))),
                _ => Ok(()),
            },
            Self::Text(source) => not_empty(&source.data, &format!("{at}.data")),
            Self::Url(source) => source.validate(at),
            Self::File(source) => source.validate(at),
        }
    }
}

impl FileSource {
    /// Whether there is such a file is another question.
    fn validate(&self, at: &str) -> Result<(), ApiError> {
        check::text(format_args!("{at}.file_id"), &self.file_id, 1..=128)?;
        match self.file_id.parse::<FileId>() {
            Ok(_) => Ok(()),
            Err(error) => Err(ApiError::invalid(format!(
                "{at}.file_id: `{}` is {error}",
                check::excerpt(&self.file_id)
            ))),
        }
    }
}

impl UrlSourceRef {
    fn validate(&self, at: &str) -> Result<(), ApiError> {
        check::http_url(format_args!("{at}.url"), &self.url)?;
        if self.url.len() > MAX_URL {
            return Err(ApiError::invalid(format!(
                "{at}.url: may have at most {MAX_URL} bytes"
            )));
        }
        Ok(())
    }
}

fn not_empty(text: &str, at: &str) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(format!("{at}: must not be empty")));
    }
    Ok(())
}

/// How many bytes it stands for.
fn base64_data(data: &str, at: &str) -> Result<usize, ApiError> {
    let at = format!("{at}.data");
    not_empty(data, &at)?;
    match STANDARD.decode(data) {
        Ok(bytes) => Ok(bytes.len()),
        Err(_) => Err(ApiError::invalid(format!(
            "{at}: must be standard base64 with padding and without line breaks"
        ))),
    }
}
