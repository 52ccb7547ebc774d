//! The older transport (protocol 2024-11-05): one stream from the server, whose first event names the place
//! that takes messages.

use futures_util::{StreamExt as _, stream::BoxStream};
use rmcp::{
    RoleClient,
    model::ServerJsonRpcMessage,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::{Transport, streamable_http_client::SseError},
};
use rmcp_sse_stream::Sse;
use url::Url;

use super::{error::HttpError, http::Http};

pub(super) struct SseTransport {
    http: Http,
    endpoint: Url,
    events: BoxStream<'static, Result<Sse, SseError>>,
}

impl SseTransport {
    pub(super) async fn open(http: Http) -> Result<Self, HttpError> {
        let mut events = http.listen(|request| request).await?;
        while let Some(Ok(event)) = events.next().await {
            if event.event.as_deref() != Some("endpoint") {
                continue;
            }
            let place = event.data.unwrap_or_default();
            // The credential goes there, too: only to the server's own origin.
            let endpoint = http
                .url()
                .join(place.trim())
                .ok()
                .filter(|endpoint| endpoint.origin() == http.url().origin())
                .ok_or(HttpError::NoEndpoint)?;
            return Ok(Self {
                http,
                endpoint,
                events,
            });
        }
        Err(HttpError::NoEndpoint)
    }
}

impl Transport<RoleClient> for SseTransport {
    type Error = HttpError;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), HttpError>> + Send + 'static {
        let (http, endpoint) = (self.http.clone(), self.endpoint.clone());
        async move {
            let response = http.post(&endpoint, &message, |request| request).await?;
            match response.status() {
                status if status.is_success() => Ok(()),
                status => Err(HttpError::Status(status.as_u16())),
            }
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        // What is no message is passed over; what is broken ends the connection.
        while let Some(Ok(event)) = self.events.next().await {
            if matches!(event.event.as_deref(), None | Some("" | "message"))
                && let Some(message) = event
                    .data
                    .and_then(|data| serde_json::from_str::<ServerJsonRpcMessage>(&data).ok())
            {
                return Some(message);
            }
        }
        None
    }

    async fn close(&mut self) -> Result<(), HttpError> {
        self.events = futures_util::stream::empty().boxed();
        Ok(())
    }
}
