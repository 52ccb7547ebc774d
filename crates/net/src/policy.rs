//! Which addresses a request on a user's behalf may reach.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use ipnet::IpNet;
use tokio_rustls::rustls::pki_types::CertificateDer;
use url::{Host, Url};

use crate::{
    NetError, address,
    names::{Lookup, Names, StaticHost},
};

/// The address table plus what the operator adds to it. Cheap enough to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    allowed: Vec<IpNet>,
    extra_ca: Vec<reqwest::Certificate>,
    /// The same, as TLS without HTTP wants them.
    extra_roots: Vec<CertificateDer<'static>>,
    names: Names,
}

/// A request that must not be made. Its message may be shown to users: it names only what they gave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("only http and https URLs can be used")]
    Scheme,
    #[error("the URL has no host")]
    NoHost,
    #[error("`{host}` is not a public address ({reason})")]
    Address { host: String, reason: &'static str },
    #[error("too many redirects")]
    TooManyRedirects,
    #[error("a redirect from https to http is not followed")]
    Downgrade,
}

impl Refused {
    /// The refusal in an error of [`Policy::resolve`], if that is what it was.
    #[must_use]
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl Policy {
    /// `allowed`: ranges the operator opens although the table refuses them. `extra_ca`: PEM files
    /// (each may hold several certificates) trusted besides the system's.
    ///
    /// # Errors
    /// When a PEM does not parse.
    pub fn new(allowed: Vec<IpNet>, extra_ca: &[Vec<u8>]) -> Result<Self, NetError> {
        Ok(Self {
            allowed,
            extra_ca: crate::client::certificates(extra_ca)?,
            extra_roots: crate::tls::roots(extra_ca)?,
            names: Names::default(),
        })
    }

    /// Names that the operator resolves himself. Their addresses are judged like any other.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Vec<StaticHost>) -> Self {
        self.names.set_own(hosts);
        self
    }

    /// Asks somebody else than the system's resolver.
    #[must_use]
    pub fn with_lookup(mut self, lookup: Arc<dyn Lookup>) -> Self {
        self.names.set_lookup(lookup);
        self
    }

    pub(crate) fn extra_ca(&self) -> &[reqwest::Certificate] {
        &self.extra_ca
    }

    pub(crate) fn extra_roots(&self) -> &[CertificateDer<'static>] {
        &self.extra_roots
    }

    /// Judges one address. An IPv4 address in IPv6 clothes is judged as IPv4, both ways.
    ///
    /// # Errors
    /// The range it falls into.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), Refused> {
        // A firewall lets a machine's connections to itself pass: what listens on its public address
        // and is closed to the world would be open to us.
        let own = || is_own(ip).then_some("this server");
        let Some(reason) = address::special(ip).or_else(own) else {
            return Ok(());
        };
        let effective = address::effective(ip);
        if self.allowed.iter().any(|net| net.contains(&effective)) {
            return Ok(());
        }
        Err(Refused::Address {
            host: ip.to_string(),
            reason,
        })
    }

    /// What can be said of a URL without asking DNS: scheme, and the address when it is written out
    /// (in any of the forms a URL may have: `0x7f.1`, `2130706433`, `[::ffff:7f00:1]`). For an early
    /// and clear answer when a URL is saved; the guarded client checks again when it connects.
    ///
    /// # Errors
    /// Why a request to it would be refused.
    pub fn check_url(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::Scheme);
        }
        if url.host().is_none() {
            return Err(Refused::NoHost);
        }
        let Some(ip) = literal(url) else {
            return Ok(());
        };
        self.check_ip(ip)
            .map_err(|refused| match (refused, url.host_str()) {
                (Refused::Address { reason, .. }, Some(host)) => Refused::Address {
                    host: host.to_owned(),
                    reason,
                },
                (refused, _) => refused,
            })
    }

    /// The written-out address of `url`, if it has one that must not be reached.
    pub(crate) fn refused_literal(&self, url: &Url) -> Option<Ipv6Addr> {
        let ip = literal(url)?;
        self.check_ip(ip).err()?;
        Some(match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        })
    }

    /// Resolves a name and keeps the addresses that may be reached. `port` is put into each; 0 is the
    /// usual one of the protocol.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::PermissionDenied`] with a [`Refused`] inside when the name has addresses
    /// but none may be reached; else what the resolver says.
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.resolve_holding(host, port, ()).await
    }

    /// [`Policy::resolve`], keeping `held` until the resolver is done, whoever waits for it.
    pub(crate) async fn resolve_holding<H: Send + 'static>(
        &self,
        host: &str,
        port: u16,
        held: H,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut reachable = Vec::new();
        let mut refused = None;
        for addr in self.names.resolve(host, port, held).await? {
            match self.check_ip(addr.ip()) {
                Ok(()) => reachable.push(addr),
                Err(Refused::Address { reason, .. }) => {
                    // The name, not the address: what internal names point to is nobody's business.
                    refused = Some(Refused::Address {
                        host: host.to_owned(),
                        reason,
                    });
                }
                Err(other) => refused = Some(other),
            }
        }
        match refused {
            Some(refused) if reachable.is_empty() => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, refused))
            }
            _ => Ok(reachable),
        }
    }
}

/// Whether `ip` is an address of this machine, which is what can be bound to. Where the system lets
/// anything be bound to, nothing can be told.
fn is_own(ip: IpAddr) -> bool {
    let binds = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    let nobodys: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    binds(ip) && !binds(nobodys)
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        // `localhost` names loopback by definition, whatever a resolver says.
        Host::Domain(name) => is_localhost(name).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    last.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &Policy, url: &str) -> Result<(), Refused> {
        policy.check_url(&Url::parse(url).unwrap())
    }

    #[test]
    fn literal_hosts_in_every_spelling() {
        let policy = Policy::default();
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://2130706433/",
            "http://127.0.0.1./",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]:8443/x",
            "https://[fe80::1]/",
            "https://[64:ff9b::7f00:1]/",
            "http://169.254.169.254/latest/meta-data",
            "http://user:pw@10.0.0.1/",
            "http://１２７.０.０.１/",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost:1/",
        ] {
            assert!(
                matches!(check(&policy, url), Err(Refused::Address { .. })),
                "{url}"
            );
        }
        assert_eq!(check(&policy, "ftp://example.com/"), Err(Refused::Scheme));
        assert_eq!(check(&policy, "file:///etc/passwd"), Err(Refused::Scheme));
        for url in [
            "https://example.com/",
            "http://8.8.8.8:80/",
            "https://[2606:4700::1111]/",
        ] {
            assert_eq!(check(&policy, url), Ok(()), "{url}");
        }
    }

    #[test]
    fn the_operator_opens_what_is_listed_and_no_more() {
        let policy = Policy::new(
            vec!["10.1.0.0/16".parse().unwrap(), "fd12::/16".parse().unwrap()],
            &[],
        )
        .unwrap();
        for url in [
            "http://10.1.2.3/",
            "http://[::ffff:10.1.2.3]/",
            "http://[64:ff9b::10.1.2.3]/",
            "http://[fd12::1]/",
        ] {
            assert_eq!(check(&policy, url), Ok(()), "{url}");
        }
        for url in [
            "http://10.2.0.1/",
            "http://[fd13::1]/",
            "http://127.0.0.1/",
            "http://localhost/",
        ] {
            assert!(check(&policy, url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_machines_own_addresses_are_told() {
        // Of the own addresses only loopback is sure to be there.
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(is_own("127.3.4.5".parse().unwrap()));
        assert!(!is_own("192.0.2.1".parse().unwrap()));
        assert!(!is_own("2001:db8::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn names_are_judged_by_their_addresses() {
        let error = Policy::default()
            .resolve("localhost", 80)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(
            error
                .to_string()
                .contains("`localhost` is not a public address")
        );

        let open = Policy::new(vec!["127.0.0.0/8".parse().unwrap()], &[]).unwrap();
        let addrs = open.resolve("localhost", 80).await.unwrap();
        assert_eq!(addrs, ["127.0.0.1:80".parse().unwrap()]);
    }
}
