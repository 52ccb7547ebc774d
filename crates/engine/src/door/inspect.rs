//! Whether a connection to an allowed host asks that host for another one.
//!
//! A host behind a large content network answers for thousands of others, and a proxy for all of
//! them. So under `limited` the first bytes of a connection are looked at: the server name of a TLS
//! ClientHello, and the hosts that the head of an HTTP request names. They must be the host that the
//! connection was asked for, or one that is allowed as well. Anything else passes, and nothing waits
//! for the client to speak first.
//!
//! What is encrypted stays so: a host that answers inside TLS for a name other than the one in the
//! ClientHello cannot be told from one that does not.

use std::sync::Arc;

use selfsame_net::{Hosts, hosts::normal};

use super::Access;

/// Most bytes held back while what they begin is not complete.
const MAX_HELD: usize = 64 << 10;

/// Looks at the beginning of one connection.
#[derive(Debug)]
pub(super) struct Inspector {
    access: Arc<Access>,
    host: String,
    package_hosts: Hosts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More bytes are needed.
    NotYet,
    Pass,
}

/// The connection names a host that it does not go to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a connection to `{host}` asks for {asked}")]
pub(super) struct Mismatch {
    host: String,
    asked: String,
    /// Said in plain HTTP, so that it can be answered in it.
    pub(super) is_http: bool,
}

/// What the first bytes of a connection say.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    NotYet,
    /// Nothing that is understood.
    Nothing,
    /// These hosts.
    Hosts(Vec<String>),
    /// It begins as TLS or HTTP and goes on as neither.
    Garbled,
}

impl Inspector {
    /// `None` where a connection may say what it likes.
    pub(super) fn for_access(
        access: &Arc<Access>,
        host: &str,
        package_hosts: &Hosts,
    ) -> Option<Self> {
        access.holds_to_names(host).then(|| Self {
            access: Arc::clone(access),
            host: host.to_owned(),
            package_hosts: package_hosts.clone(),
        })
    }

    /// Judges everything that has come so far.
    pub(super) fn judge(&self, bytes: &[u8]) -> Result<Verdict, Mismatch> {
        let is_tls = bytes.first() == Some(&0x16);
        let said = if is_tls { tls(bytes) } else { http(bytes) };
        let mismatch = |asked: String| Mismatch {
            host: self.host.clone(),
            asked,
            is_http: !is_tls,
        };
        match said {
            Said::NotYet if bytes.len() < MAX_HELD => Ok(Verdict::NotYet),
            Said::NotYet | Said::Garbled => Err(mismatch("something unreadable".to_owned())),
            Said::Nothing => Ok(Verdict::Pass),
            Said::Hosts(hosts) => {
                let allowed = |host: &String| {
                    normal(host) == self.host || self.access.covers(host, &self.package_hosts)
                };
                match hosts.iter().find(|host| !allowed(host)) {
                    None => Ok(Verdict::Pass),
                    Some(other) => Err(mismatch(format!("`{}`", other.escape_default()))),
                }
            }
        }
    }
}

/// Reads big-endian numbers and counted bytes; `None` where there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        Some(taken.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)))
    }

    /// Bytes after a length of so many bytes.
    fn counted(&mut self, length: usize) -> Option<Reader<'a>> {
        let count = self.number(length)?;
        self.take(count).map(Reader)
    }
}

/// The server name of a ClientHello, which may be spread over several records.
fn tls(bytes: &[u8]) -> Said {
    const HANDSHAKE: usize = 22;
    const CLIENT_HELLO: usize = 1;
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Said::Nothing;
    }
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    loop {
        let mut hello = Reader(&message);
        if hello.number(1).is_some_and(|kind| kind != CLIENT_HELLO) {
            return Said::Garbled;
        }
        if let Some(Reader(hello)) = hello.counted(3) {
            return match server_names(hello) {
                Some(names) => Said::Hosts(names),
                None => Said::Garbled,
            };
        }
        let (Some(kind), Some(_version)) = (records.number(1), records.number(2)) else {
            return Said::NotYet;
        };
        match records.counted(2) {
            None => return Said::NotYet,
            Some(Reader(part)) if kind == HANDSHAKE && !part.is_empty() => {
                message.extend_from_slice(part);
            }
            Some(_) => return Said::Garbled,
        }
    }
}

fn server_names(hello: &[u8]) -> Option<Vec<String>> {
    const SERVER_NAME: usize = 0;
    let mut hello = Reader(hello);
    let _version_and_random = hello.take(2 + 32)?;
    let _session = hello.counted(1)?;
    let _ciphers = hello.counted(2)?;
    let _compressions = hello.counted(1)?;
    let mut names = Vec::new();
    if hello.0.is_empty() {
        return Some(names);
    }
    let mut extensions = hello.counted(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut extension = extensions.counted(2)?;
        if kind == SERVER_NAME {
            let mut list = extension.counted(2)?;
            while !list.0.is_empty() {
                let _host_name = list.number(1)?;
                let name = list.counted(2)?.0;
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }
    Some(names)
}

/// The hosts that the head of an HTTP/1 request names: in its target and in its `Host` fields.
/// Read as a lenient server might.
fn http(bytes: &[u8]) -> Said {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    // Empty lines before a request are to be ignored.
    let blank = bytes.iter().take_while(|byte| b"\r\n".contains(byte));
    let bytes = &bytes[blank.count()..];
    let method = bytes.iter().take_while(|byte| is_token(byte)).count();
    match bytes.get(method) {
        None => {
            return match method {
                0..=32 => Said::NotYet,
                _ => Said::Nothing,
            };
        }
        Some(b' ' | b'\t') if method > 0 => {}
        Some(_) => return Said::Nothing,
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        let is_text = |byte: &u8| *byte >= b' ' && *byte != 0x7f || b"\r\t".contains(byte);
        return match bytes.iter().all(is_text) {
            true => Said::NotYet,
            false => Said::Nothing,
        };
    };
    let line = String::from_utf8_lossy(&bytes[..end]);
    let mut words = line.split_ascii_whitespace().skip(1);
    let (Some(target), Some(version)) = (words.next(), words.next()) else {
        return Said::Nothing;
    };
    if !version.to_ascii_uppercase().starts_with("HTTP/1") {
        return Said::Nothing;
    }
    let mut hosts = Vec::new();
    if target.starts_with('/') || target == "*" {
        // The fields alone say it.
    } else if let Some((_, rest)) = target.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        hosts.push(without_port(authority));
    } else {
        hosts.push(without_port(target));
    }
    let mut rest = &bytes[end + 1..];
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Said::NotYet;
        };
        let line = String::from_utf8_lossy(&rest[..end]);
        rest = &rest[end + 1..];
        if line.trim().is_empty() {
            return Said::Hosts(hosts);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.trim().eq_ignore_ascii_case("host")
            && !value.trim().is_empty()
        {
            hosts.push(without_port(value.trim()));
        }
    }
}

fn without_port(authority: &str) -> String {
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let end = match host.strip_prefix('[') {
        Some(_) => host.find(']').map(|at| at + 1),
        None => host.find(':'),
    };
    host[..end.unwrap_or(host.len())].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use selfsame_types::SessionId;

    use super::*;
    use crate::door::Network;

    fn inspector() -> Inspector {
        let access = Arc::new(Access {
            session: SessionId::new(),
            network: Network::Limited {
                allowed_hosts: Hosts::parse(["allowed.example", "*.cdn.example"]).unwrap(),
                package_hosts: true,
                extra_hosts: Hosts::parse(["mcp.example"]).unwrap(),
            },
            repositories: Vec::new(),
            wallet: None,
        });
        let package_hosts = Hosts::parse(["pypi.org"]).unwrap();
        Inspector::for_access(&access, "allowed.example", &package_hosts).unwrap()
    }

    /// A ClientHello with these server names, in records of at most so many bytes.
    fn client_hello(names: &[&str], record: usize) -> Vec<u8> {
        let counted = |length: usize, bytes: &[u8]| {
            let count = (bytes.len() as u64).to_be_bytes();
            [&count[8 - length..], bytes].concat()
        };
        let list: Vec<u8> = names
            .iter()
            .flat_map(|name| [&[0], &*counted(2, name.as_bytes())].concat())
            .collect();
        let other = [&[0, 16], &*counted(2, b"\0\x03\x02h2")].concat();
        let sni = match names {
            [] => Vec::new(),
            _ => [&[0, 0], &*counted(2, &counted(2, &list))].concat(),
        };
        let hello = [
            &[3, 3],
            &[7; 32][..],
            &counted(1, &[1; 32]),
            &counted(2, &[0x13, 1, 0x13, 2]),
            &counted(1, &[0]),
            &counted(2, &[other, sni].concat()),
        ]
        .concat();
        let message = [&[1][..], &counted(3, &hello)].concat();
        message
            .chunks(record)
            .flat_map(|part| [&[22, 3, 1], &*counted(2, part)].concat())
            .collect()
    }

    #[test]
    fn server_names_are_found_in_however_many_records() {
        for record in [1, 7, 50, 16_000] {
            for (names, passes) in [
                (&["allowed.example"][..], true),
                (&["ALLOWED.example"], true),
                (&["x.cdn.example"], true),
                (&["pypi.org"], true),
                (&["mcp.example"], true),
                (&[], true),
                (&["evil.example"], false),
                (&["allowed.example", "evil.example"], false),
                (&["allowed.example.evil.example"], false),
                (&["allowed.example\0.evil.example"], false),
                (&[""], false),
            ] {
                let bytes = client_hello(names, record);
                let inspector = inspector();
                let verdict = inspector.judge(&bytes);
                assert_eq!(verdict.is_ok(), passes, "{names:?} {verdict:?}");
                for cut in 1..bytes.len() {
                    assert_eq!(inspector.judge(&bytes[..cut]), Ok(Verdict::NotYet), "{cut}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_hello_is_told_apart() {
        let inspector = inspector();
        assert!(inspector.judge(&[22, 3, 1, 0, 1, 2]).is_err());
        assert!(inspector.judge(&[22, 3, 1, 0, 4, 1, 0, 0, 0]).is_err());
        assert!(inspector.judge(&[22, 3, 1, 0, 0]).is_err());
        assert_eq!(inspector.judge(&[22, 9]), Ok(Verdict::Pass));
        // Never complete: it is not held for ever.
        let mut endless = vec![22, 3, 1, 0xff, 0xff];
        endless.resize(MAX_HELD, 0);
        assert!(inspector.judge(&endless).is_err());
    }

    #[test]
    fn requests_must_name_the_host_they_go_to() {
        let inspector = inspector();
        for passes in [
            "GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: ALLOWED.example.:8080\r\nX: y\r\n\r\n",
            "GET http://allowed.example:80/x HTTP/1.1\r\nhost: allowed.example\r\n\r\n",
            "OPTIONS * HTTP/1.1\nHost: a.cdn.example\n\n",
            "\r\nGET / HTTP/1.0\r\n\r\n",
            "GET /?u=http://evil.example HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
            // Other protocols.
            "SSH-2.0-OpenSSH_9.9\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "EHLO evil.example\r\n",
            "PING\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "\0\0\0\x08\x04\u{2}16/",
            "a \0\0\0",
        ] {
            assert_eq!(
                inspector.judge(passes.as_bytes()),
                Ok(Verdict::Pass),
                "{passes:?}"
            );
        }
        for refused in [
            "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: allowed.example\r\nHost: evil.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHOST : evil.example\r\n\r\n",
            "GET / HTTP/1.1\nX: y\n Host: evil.example\n\n",
            "GET http://evil.example/ HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
            "GET http://allowed.example@evil.example/ HTTP/1.1\r\n\r\n",
            "GET  https://evil.example?x HTTP/1.0\r\n\r\n",
            "FOO\thttp://evil.example/ http/1.1\r\n\r\n",
            "CONNECT evil.example:443 HTTP/1.1\r\nHost: allowed.example\r\n\r\n",
            "CONNECT 10.0.0.1:22 HTTP/1.1\r\n\r\n",
            "CONNECT [::1]:22 HTTP/1.1\r\n\r\n",
            "GET evil.example HTTP/1.1\r\n\r\n",
        ] {
            let verdict = inspector.judge(refused.as_bytes());
            assert!(verdict.is_err_and(|m| m.is_http), "{refused:?}");
        }
        for incomplete in [
            "",
            "G",
            "GET",
            "GET /x",
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nHost: ev",
        ] {
            let verdict = inspector.judge(incomplete.as_bytes());
            assert_eq!(verdict, Ok(Verdict::NotYet), "{incomplete:?}");
        }
    }

    #[test]
    fn only_limited_networks_and_names_are_held_to_it() {
        let mut access = (*inspector().access).clone();
        let with = |access: &Access, host| {
            Inspector::for_access(&Arc::new(access.clone()), host, &Hosts::default()).is_some()
        };
        assert!(with(&access, "allowed.example"));
        assert!(!with(&access, "192.0.2.1"));
        access.network = Network::Unrestricted;
        assert!(!with(&access, "allowed.example"));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), tls in any::<bool>()) {
            let inspector = inspector();
            let mut start = if tls { vec![22, 3, 1] } else { b"GET ".to_vec() };
            start.extend(bytes);
            let _ = inspector.judge(&start);
            let mut hello = client_hello(&["allowed.example"], 60);
            let at = usize::from(start[start.len() / 2]) % hello.len();
            hello[at] = start[start.len() - 1];
            let _ = inspector.judge(&hello);
        }
    }
}
