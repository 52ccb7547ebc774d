//! A TCP connection to a host that somebody else named.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, task::JoinSet, time};

use crate::policy::{Policy, Refused};

/// A name's further addresses are not tried.
const MAX_ADDRESSES: usize = 8;
/// Head start of one address before the next one (RFC 8305).
const STAGGER: Duration = Duration::from_millis(250);
/// Until an address has answered, and until the resolver has.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("`{0}` has no address")]
    Unknown(String, #[source] Option<io::Error>),
    #[error("no connection to `{0}`")]
    Unreachable(String, #[source] io::Error),
    #[error("no connection to `{0}`: no answer in time")]
    Timeout(String),
}

impl Policy {
    /// Connects to a name or a written-out address. Each address is judged, and the ones that passed
    /// are the ones that are tried: a name that answers differently the next time changes nothing.
    ///
    /// `held` is kept while the resolver is busy, even if this is dropped meanwhile.
    ///
    /// # Errors
    /// [`DialError`]; its message may be shown to whoever named the host.
    pub async fn dial<H: Send + 'static>(
        &self,
        host: &str,
        port: u16,
        held: H,
    ) -> Result<TcpStream, DialError> {
        let late = || DialError::Timeout(host.to_owned());
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => {
                self.check_ip(ip)?;
                vec![SocketAddr::new(ip, port)]
            }
            Err(_) => time::timeout(PATIENCE, self.resolve_holding(host, port, held))
                .await
                .map_err(|_| late())?
                .map_err(|error| match Refused::inside(&error) {
                    Some(refused) => refused.clone().into(),
                    None => DialError::Unknown(host.to_owned(), Some(error)),
                })?,
        };
        if addresses.is_empty() {
            return Err(DialError::Unknown(host.to_owned(), None));
        }
        let stream = time::timeout(PATIENCE, race(addresses))
            .await
            .map_err(|_| late())?
            .map_err(|error| DialError::Unreachable(host.to_owned(), error))?;
        Ok(stream)
    }
}

/// Connects to the first that answers.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = alternating(addresses).into_iter().take(MAX_ADDRESSES);
    let mut attempts = JoinSet::new();
    let mut failure = None;
    let mut next = waiting.next();
    loop {
        if let Some(address) = next.take() {
            attempts.spawn(connect(address));
        }
        tokio::select! {
            done = attempts.join_next() => match done {
                Some(Ok(Ok(stream))) => return Ok(stream),
                // The first address is the preferred one: its error tells most.
                Some(Ok(Err(error))) => {
                    failure.get_or_insert(error);
                    next = waiting.next();
                }
                Some(Err(error)) => {
                    failure.get_or_insert(io::Error::other(error));
                    next = waiting.next();
                }
                None => {
                    let none = || io::Error::from(io::ErrorKind::AddrNotAvailable);
                    return Err(failure.unwrap_or_else(none));
                }
            },
            () = time::sleep(STAGGER) => next = waiting.next(),
        }
    }
}

/// IPv6 and IPv4 by turns, in the resolver's order otherwise: when one family leads nowhere, the
/// second attempt is of the other one.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // A connection may be silent for hours, but one whose peer has vanished must not stay.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20))
        .with_retries(5);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::net::TcpListener;

    use super::*;
    use crate::{Lookup, StaticHost};

    /// Answers the first question with one list, further ones with another.
    #[derive(Debug)]
    struct Changing {
        asked: AtomicUsize,
        first: Vec<IpAddr>,
        then: Vec<IpAddr>,
    }

    impl Lookup for Changing {
        fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            match self.asked.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(self.first.clone()),
                _ => Ok(self.then.clone()),
            }
        }
    }

    fn changing(first: &[&str], then: &[&str]) -> Arc<Changing> {
        let parse = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
        Arc::new(Changing {
            asked: AtomicUsize::new(0),
            first: parse(first),
            then: parse(then),
        })
    }

    fn loopback_open() -> Policy {
        Policy::new(vec!["127.0.0.1/32".parse().unwrap()], &[]).unwrap()
    }

    #[tokio::test]
    async fn a_name_is_asked_once_and_what_was_checked_is_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The second answer is an address that nothing listens on and nobody may reach.
        let names = changing(&["127.0.0.1"], &["127.0.0.2"]);
        let policy = loopback_open().with_lookup(names.clone());
        let stream = policy.dial("rebind.example", port, ()).await.unwrap();
        assert_eq!(
            stream.peer_addr().unwrap().ip(),
            IpAddr::from([127, 0, 0, 1])
        );
        assert!(stream.nodelay().unwrap());
        assert_eq!(names.asked.load(Ordering::Relaxed), 1);
        // The next connection is judged anew.
        let error = policy.dial("rebind.example", port, ()).await.unwrap_err();
        assert!(matches!(error, DialError::Refused(_)), "{error:?}");
    }

    #[tokio::test]
    async fn addresses_that_are_refused_are_not_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let names = changing(&["127.0.0.2", "::1", "127.0.0.1"], &["169.254.169.254"]);
        let policy = loopback_open().with_lookup(names);
        let stream = policy.dial("mixed.example", port, ()).await.unwrap();
        assert_eq!(
            stream.peer_addr().unwrap().ip(),
            IpAddr::from([127, 0, 0, 1])
        );
        let error = policy.dial("mixed.example", 80, ()).await.unwrap_err();
        let message = "`mixed.example` is not a public address (cloud metadata)";
        assert_eq!(error.to_string(), message);
        for literal in ["10.0.0.1", "::ffff:10.0.0.1", "::1", "0.0.0.0"] {
            let error = policy.dial(literal, port, ()).await.unwrap_err();
            assert!(
                matches!(error, DialError::Refused(_)),
                "{literal}: {error:?}"
            );
        }
        assert!(policy.dial("127.0.0.1", port, ()).await.is_ok());
    }

    #[tokio::test]
    async fn an_address_that_fails_is_followed_by_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let names = changing(&["::1", "127.0.0.9", "127.0.0.1"], &[]);
        let policy = Policy::new(open, &[]).unwrap().with_lookup(names);
        let stream = policy.dial("many.example", port, ()).await.unwrap();
        assert_eq!(
            stream.peer_addr().unwrap().ip(),
            IpAddr::from([127, 0, 0, 1])
        );
        let error = policy.dial("none.example", port, ()).await.unwrap_err();
        assert!(matches!(error, DialError::Unknown(_, None)), "{error:?}");
        drop(listener);
        let error = policy.dial("127.0.0.1", port, ()).await.unwrap_err();
        assert!(matches!(error, DialError::Unreachable(..)), "{error:?}");
    }

    #[tokio::test]
    async fn the_operators_names_come_first_and_are_judged_like_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = |name: &str, address: &str, port| StaticHost {
            name: name.to_owned(),
            address: address.parse().unwrap(),
            port,
        };
        let names = changing(&[], &[]);
        let policy = loopback_open()
            .with_hosts(vec![
                own("Web.example", "127.0.0.1", Some(port)),
                own("db.example", "127.0.0.1", None),
                own("inside.example", "10.0.0.1", None),
            ])
            .with_lookup(names.clone());
        for asked in [80, 443, port] {
            let stream = policy.dial("web.example", asked, ()).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap().port(), port);
        }
        assert!(policy.dial("db.example", port, ()).await.is_ok());
        assert!(policy.dial("web.example", 1, ()).await.is_err());
        let error = policy.dial("inside.example", 80, ()).await.unwrap_err();
        assert!(matches!(error, DialError::Refused(_)), "{error:?}");
        assert_eq!(names.asked.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn families_take_turns() {
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 1);
        let given = ["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"].map(address);
        let mixed = ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"].map(address);
        assert_eq!(alternating(given.to_vec()), mixed);
    }
}
