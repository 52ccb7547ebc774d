//! The OpenAPI document: what the handlers declare, and what is the same for all of them.

use selfsame_types::{ErrorKind, skill::LEGACY_SKILLS_BETA};
use utoipa::{
    Modify, OpenApi, PartialSchema as _, ToSchema,
    openapi::{
        self, ContentBuilder, HeaderBuilder, HttpMethod, ObjectBuilder, Ref, RefOr,
        ResponseBuilder, Server,
        path::{Operation, ParameterBuilder, ParameterIn},
        schema::Type,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::middleware::needs_beta;

/// The body of every error.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes what `ApiError::envelope` writes")]
pub struct ErrorResponse {
    /// Always `error`.
    #[schema(pattern = "^error$")]
    r#type: String,
    error: ErrorBody,
    /// As in the header `request-id`.
    #[schema(required)]
    request_id: Option<String>,
}

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes what `ApiError::envelope` writes")]
pub struct ErrorBody {
    /// `invalid_request_error`, `not_found_error`, ...
    r#type: String,
    message: String,
    details: Option<ErrorDetails>,
}

#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes what `ApiError::envelope` writes")]
pub struct ErrorDetails {
    /// A name for programs to match.
    error_code: String,
}

/// Bytes as they are: an uploaded file, a download.
#[derive(Debug)]
pub struct Binary;

impl utoipa::PartialSchema for Binary {
    fn schema() -> RefOr<openapi::Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(openapi::SchemaFormat::KnownFormat(
                openapi::KnownFormat::Binary,
            )))
            .into()
    }
}

impl ToSchema for Binary {}

/// What the router starts from.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Selfsame",
        description = "A self-hosted managed-agents server."
    ),
    components(schemas(ErrorResponse, ErrorBody, ErrorDetails)),
    security(("bearer" = []), ("api_key" = [])),
    modifiers(&Base)
)]
pub struct Api;

struct Base;

impl Modify for Base {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let mut server = Server::new("/");
        server.description = Some("This server".to_owned());
        document.servers = Some(vec![server]);
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(
            "bearer",
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
        );
        components.add_security_scheme(
            "api_key",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key"))),
        );
        let mut envelope = ResponseBuilder::new().description("An error").content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("ErrorResponse")))
                .build(),
        );
        envelope = envelope.header(
            "request-id",
            HeaderBuilder::new().schema(Some(String::schema())).build(),
        );
        components
            .responses
            .insert("Error".to_owned(), envelope.build().into());
    }
}

/// Adds to every operation what no handler should have to repeat: the beta header, and each error
/// status it can answer with (exact ones: no `default`, no `4XX`).
pub(crate) fn complete(document: &mut openapi::OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let has_id = path.contains('{');
        let beta = needs_beta(path);
        for (method, operation) in [
            (HttpMethod::Get, &mut item.get),
            (HttpMethod::Post, &mut item.post),
            (HttpMethod::Delete, &mut item.delete),
        ] {
            let Some(operation) = operation else { continue };
            if let Some(name) = beta {
                add_beta(operation, name);
            }
            for (prefix, name) in OLDER {
                if path.starts_with(prefix) {
                    add_older(operation, name);
                }
            }
            let mut kinds = vec![
                ErrorKind::InvalidRequest,
                ErrorKind::Authentication,
                ErrorKind::Permission,
                ErrorKind::RateLimit,
                ErrorKind::Internal,
                ErrorKind::Unavailable,
            ];
            if method != HttpMethod::Get {
                kinds.push(ErrorKind::Conflict);
            }
            if has_id || beta.is_some() {
                kinds.push(ErrorKind::NotFound);
            }
            if operation.request_body.is_some() {
                kinds.extend([
                    ErrorKind::Timeout,
                    ErrorKind::TooLarge,
                    ErrorKind::NotImplemented,
                ]);
            }
            for kind in kinds {
                operation
                    .responses
                    .responses
                    .entry(kind.status().to_string())
                    .or_insert_with(|| RefOr::Ref(Ref::from_response_name("Error")));
            }
        }
    }
}

/// Paths that know an older generation of clients, and how such a client shows itself.
const OLDER: [(&str, &str); 1] = [("/v1/skills", LEGACY_SKILLS_BETA)];

fn add_older(operation: &mut Operation, name: &str) {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some([name]));
    let parameter = ParameterBuilder::new()
        .name("anthropic-beta")
        .parameter_in(ParameterIn::Header)
        .required(openapi::Required::False)
        .description(Some(
            "A list, separated by commas; with this name in it the response has its older shape",
        ))
        .schema(Some(schema))
        .build();
    operation
        .parameters
        .get_or_insert_default()
        .push(parameter.into());
}

fn add_beta(operation: &mut Operation, name: &str) {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some([name]));
    let parameter = ParameterBuilder::new()
        .name("anthropic-beta")
        .parameter_in(ParameterIn::Header)
        .required(openapi::Required::True)
        .description(Some(
            "A list, separated by commas, that holds this name; an operator can switch the need off",
        ))
        .schema(Some(schema))
        .build();
    operation
        .parameters
        .get_or_insert_default()
        .push(parameter.into());
}
