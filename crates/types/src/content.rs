//! Content blocks that clients send. They are checked and then kept as they were sent.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, check, wire};

/// Most documents by file id in one request.
pub const MAX_FILE_DOCUMENTS: usize = 100;

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

/// The model's provider fetches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UrlSourceRef {
    #[schema(inline)]
    pub r#type: UrlType,
    #[schema(min_length = 1)]
    pub url: String,
}

/// Not offered by this server yet.
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
            Self::Base64(source) => base64_data(&source.data, at),
            Self::Url(source) => check::http_url(format_args!("{at}.url"), &source.url),
            Self::File(source) => Err(source.refuse(at)),
        }
    }
}

impl DocumentSource {
    fn validate(&self, at: &str) -> Result<(), ApiError> {
        match self {
            Self::Base64(source) => base64_data(&source.data, at),
            Self::Text(source) => not_empty(&source.data, &format!("{at}.data")),
            Self::Url(source) => check::http_url(format_args!("{at}.url"), &source.url),
            Self::File(source) => Err(source.refuse(at)),
        }
    }
}

impl FileSource {
    fn refuse(&self, at: &str) -> ApiError {
        check::text(format_args!("{at}.file_id"), &self.file_id, 1..=128)
            .err()
            .unwrap_or_else(|| {
                ApiError::not_implemented(format!(
                    "{at}: this server does not offer files yet; send the content as `base64`, \
                     `url` or `text`"
                ))
            })
    }
}

fn not_empty(text: &str, at: &str) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(format!("{at}: must not be empty")));
    }
    Ok(())
}

fn base64_data(data: &str, at: &str) -> Result<(), ApiError> {
    let at = format!("{at}.data");
    not_empty(data, &at)?;
    match STANDARD.decode(data) {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError::invalid(format!(
            "{at}: must be standard base64 with padding and without line breaks"
        ))),
    }
}
