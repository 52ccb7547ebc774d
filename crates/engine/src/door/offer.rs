//! A connection that a program inside wants: the sandbox's own, or a test's.

use selfsame_sandbox::{Carried, Outgoing};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection that waits for an answer. Dropping it refuses it; dropping its stream before both
/// directions have ended resets the program's connection.
pub trait Offer: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn host(&self) -> &str;
    fn port(&self) -> u16;
    fn accept(self) -> impl Future<Output = Self::Stream> + Send;
    fn refuse(self, message: &str) -> impl Future<Output = ()> + Send;
}

impl Offer for Outgoing {
    type Stream = Carried;

    fn host(&self) -> &str {
        &self.host
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn accept(self) -> impl Future<Output = Carried> + Send {
        Self::accept(self)
    }

    fn refuse(self, message: &str) -> impl Future<Output = ()> + Send {
        Self::refuse(self, message)
    }
}
