//! From names to addresses: the operator's own names, then the system's resolver.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
};

use tokio::sync::Semaphore;

use crate::hosts::normal;

/// Lookups of this process at once. Each holds a thread for as long as the resolver takes, up to half
/// a minute for a name whose servers are silent.
const MAX_LOOKUPS: usize = 64;

/// Asks for the addresses of a name. It may block.
pub trait Lookup: fmt::Debug + Send + Sync {
    /// # Errors
    /// What the resolver says.
    fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok((name, 0).to_socket_addrs()?.map(|to| to.ip()).collect())
    }
}

/// A name of the operator's own, as in a hosts file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticHost {
    pub name: String,
    pub address: IpAddr,
    /// Takes the place of the ports 80 and 443.
    pub port: Option<u16>,
}

#[derive(Debug, Clone)]
pub(crate) struct Names {
    own: Vec<StaticHost>,
    lookup: Arc<dyn Lookup>,
    permits: Arc<Semaphore>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            own: Vec::new(),
            lookup: Arc::new(SystemLookup),
            permits: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        }
    }
}

impl Names {
    pub(crate) fn set_own(&mut self, own: Vec<StaticHost>) {
        self.own = own;
        for host in &mut self.own {
            host.name = normal(&host.name);
        }
    }

    pub(crate) fn set_lookup(&mut self, lookup: Arc<dyn Lookup>) {
        self.lookup = lookup;
    }

    /// All addresses of `name`. `held` is kept until the resolver has answered, also when nobody
    /// waits for the answer any more: a permit in it bounds what somebody can have in the works.
    pub(crate) async fn resolve<H: Send + 'static>(
        &self,
        name: &str,
        port: u16,
        held: H,
    ) -> io::Result<Vec<SocketAddr>> {
        let name = normal(name);
        let own: Vec<_> = self.own.iter().filter(|host| host.name == name).collect();
        if !own.is_empty() {
            let address = |host: &&StaticHost| {
                let port = match (host.port, port) {
                    // 0 is the usual port of whatever will be spoken.
                    (Some(other), 0 | 80 | 443) => other,
                    _ => port,
                };
                SocketAddr::new(host.address, port)
            };
            return Ok(own.iter().map(address).collect());
        }
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        let lookup = self.lookup.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let _held = (held, permit);
            lookup.lookup(&name)
        });
        let found = asked.await.map_err(io::Error::other)??;
        Ok(found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect())
    }
}
