//! stub
use secrecy::SecretString;
use selfsame_sandbox::Outgoing;
use selfsame_types::SessionId;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
pub(crate) const GIT_PROXY: &str = "http://git.selfsame.internal:3128";
#[derive(Debug)]
pub struct Access {
    pub session: SessionId,
    pub network: Network,
    pub repositories: Vec<Repository>,
}
#[derive(Debug)]
pub enum Network {
    Unrestricted,
    Limited {
        allowed_hosts: Vec<String>,
        package_hosts: bool,
        extra_hosts: Vec<String>,
    },
}
#[derive(Debug)]
pub struct Repository {
    pub host: String,
    pub owner: String,
    pub name: String,
    pub token: Option<SecretString>,
}
#[derive(Debug, Clone)]
pub struct Door;
impl Door {
    pub fn git_ca(&self) -> &str {
        ""
    }
    pub async fn serve(
        &self,
        mut outgoing: mpsc::Receiver<Outgoing>,
        access: watch::Receiver<Option<Arc<Access>>>,
    ) {
        while outgoing.recv().await.is_some() {
            let _ = &access;
        }
    }
}
