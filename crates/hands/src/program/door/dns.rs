//! A resolver that asks nobody: every name has an address, which stands for the name itself.
//!
//! So no query ever leaves the sandbox, and no data can in one. Whether a name exists is found out
//! by the server when it is connected to.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use selfsame_hands::carry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::names::Names;

/// Longest query taken, in bytes: what resolvers send without fragments.
const MAX_QUERY: usize = 1232;
/// How long an answer may be kept. Names are known for much longer.
const TTL: u32 = 60;
/// Connections at once, and time for the next query on one.
const MAX_CONNECTIONS: usize = 32;
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

const HEADER: usize = 12;
const A: u16 = 1;
const PTR: u16 = 12;
const OPT: u16 = 41;
const IXFR: u16 = 251;
const AXFR: u16 = 252;
const ANY: u16 = 255;
const IN: u16 = 1;

const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// What is known inside.
#[derive(Debug)]
pub(super) struct Resolver {
    names: Names,
    /// The sandbox's own name: served inside.
    own: String,
}

/// The one question of a query.
#[derive(Debug, PartialEq, Eq)]
struct Question<'a> {
    id: u16,
    opcode: u8,
    recursion_desired: bool,
    /// Lower case, without a dot at the end; `None` when no host can have it.
    name: Option<String>,
    kind: u16,
    class: u16,
    /// As it was asked, to be repeated in the answer.
    bytes: &'a [u8],
    extended: bool,
}

#[derive(Debug)]
enum Record {
    Address(Ipv4Addr),
    Pointer(Arc<str>),
}

impl Resolver {
    pub(super) fn new(names: Names, own: &str) -> Self {
        Self {
            names,
            own: own.trim().to_ascii_lowercase(),
        }
    }

    /// Answers one query. Nothing for what is none.
    pub(super) fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let question = parse(query)?;
        let (code, record) = self.resolve(&question);
        Some(render(&question, code, record.as_ref()))
    }

    fn resolve(&self, question: &Question<'_>) -> (u8, Option<Record>) {
        if question.opcode != 0 {
            return (NOT_IMPLEMENTED, None);
        }
        if !matches!(question.class, IN | ANY) || matches!(question.kind, IXFR | AXFR) {
            return (REFUSED, None);
        }
        let Some(name) = question.name.as_deref() else {
            return (NO_SUCH_NAME, None);
        };
        let below = |parent: &str| {
            name.strip_suffix(parent)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(reversed) = name.strip_suffix(".in-addr.arpa") {
            return match self.reverse(reversed) {
                Some(name) if matches!(question.kind, PTR | ANY) => {
                    (NO_ERROR, Some(Record::Pointer(name)))
                }
                Some(_) => (NO_ERROR, None),
                None => (NO_SUCH_NAME, None),
            };
        }
        if ["in-addr.arpa", "ip6.arpa", "invalid", "onion"]
            .into_iter()
            .any(below)
        {
            return (NO_SUCH_NAME, None);
        }
        // Everything else exists, and has an IPv4 address and nothing more.
        if name.is_empty() || !matches!(question.kind, A | ANY) {
            return (NO_ERROR, None);
        }
        if below("localhost") || name == self.own {
            return (NO_ERROR, Some(Record::Address(Ipv4Addr::LOCALHOST)));
        }
        match self.names.address(name) {
            Some(address) => (NO_ERROR, Some(Record::Address(address))),
            None => (SERVER_FAILURE, None),
        }
    }

    fn reverse(&self, reversed: &str) -> Option<Arc<str>> {
        let mut parts = reversed.split('.');
        let mut octet = || -> Option<u8> {
            let part = parts.next()?;
            let value = part.parse().ok()?;
            // One spelling each: `+1` and `01` are no labels of an address.
            (part == format!("{value}")).then_some(value)
        };
        let [d, c, b, a] = [octet()?, octet()?, octet()?, octet()?];
        if parts.next().is_some() {
            return None;
        }
        let address = Ipv4Addr::new(a, b, c, d);
        self.names
            .name(address)
            .or_else(|| address.is_loopback().then(|| "localhost".into()))
    }

    /// Answers datagrams, for ever.
    pub(super) async fn serve_datagrams(&self, socket: UdpSocket) {
        // One byte more, so that what is too long shows.
        let mut query = [0; MAX_QUERY + 1];
        loop {
            match socket.recv_from(&mut query).await {
                Ok((length, from)) => {
                    if length <= MAX_QUERY
                        && let Some(answer) = self.answer(&query[..length])
                    {
                        // One that cannot be sent is asked for again.
                        let _ = socket.send_to(&answer, from).await;
                    }
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Answers connections, for ever.
    pub(super) async fn serve_connections(self: Arc<Self>, listener: TcpListener) {
        let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
                continue;
            };
            let resolver = Arc::clone(&self);
            tokio::spawn(async move {
                while let Ok(Some(())) = timeout(QUERY_TIMEOUT, resolver.one(&mut stream)).await {}
                drop(seat);
            });
        }
    }

    /// One query on a connection; `None` at its end and when it is none.
    async fn one(&self, stream: &mut TcpStream) -> Option<()> {
        let length = usize::from(stream.read_u16().await.ok()?);
        if length > MAX_QUERY {
            return None;
        }
        let mut query = vec![0; length];
        stream.read_exact(&mut query).await.ok()?;
        let answer = self.answer(&query)?;
        let mut message = u16::try_from(answer.len()).ok()?.to_be_bytes().to_vec();
        message.extend_from_slice(&answer);
        stream.write_all(&message).await.ok()
    }
}

/// Reads a query strictly: one question, no compression, at most an OPT record behind it.
fn parse(query: &[u8]) -> Option<Question<'_>> {
    let number = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?))
    };
    let flags = number(2)?;
    let (questions, answers, authorities, additional) =
        (number(4)?, number(6)?, number(8)?, number(10)?);
    let is_response = flags & 0x8000 != 0;
    if query.len() > MAX_QUERY
        || is_response
        || questions != 1
        || answers != 0
        || authorities != 0
        || additional > 2
    {
        return None;
    }
    let mut at = HEADER;
    let mut name = String::new();
    let mut dotted = false;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // The two highest bits would make it a pointer; there is nothing to point to.
        if length > 63 || at + length - HEADER > carry::MAX_NAME + 1 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in query.get(at..at + length)? {
            // A dot inside a label is no boundary of labels.
            dotted |= *byte == b'.';
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        at += length;
    }
    let (kind, class) = (number(at)?, number(at + 2)?);
    at += 4;
    let bytes = query.get(HEADER..at)?;
    let mut extended = false;
    for _ in 0..additional {
        // The root's name, a type, and three fields before the length of the data.
        if *query.get(at)? != 0 {
            return None;
        }
        extended |= number(at + 1)? == OPT;
        let length = usize::from(number(at + 9)?);
        at += 11 + length;
        if at > query.len() {
            return None;
        }
    }
    let known = !dotted && (name.is_empty() || carry::is_host_name(&name));
    Some(Question {
        id: number(0)?,
        opcode: (flags >> 11 & 0xf) as u8,
        recursion_desired: flags & 0x0100 != 0,
        name: known.then_some(name),
        kind,
        class,
        bytes,
        extended,
    })
}

fn render(question: &Question<'_>, code: u8, record: Option<&Record>) -> Vec<u8> {
    let mut answer = Vec::with_capacity(HEADER + question.bytes.len() + 64);
    answer.extend_from_slice(&question.id.to_be_bytes());
    // A response, recursion available.
    let mut flags = 0x8080 | u16::from(question.opcode) << 11 | u16::from(code);
    if question.recursion_desired {
        flags |= 0x0100;
    }
    let counts = [
        1,
        u16::from(record.is_some()),
        0,
        u16::from(question.extended),
    ];
    for field in [flags].into_iter().chain(counts) {
        answer.extend_from_slice(&field.to_be_bytes());
    }
    answer.extend_from_slice(question.bytes);
    if let Some(record) = record {
        let (kind, data) = match record {
            Record::Address(address) => (A, address.octets().to_vec()),
            Record::Pointer(name) => (PTR, wire_name(name)),
        };
        // The question's name, by a pointer.
        answer.extend_from_slice(&[0xc0, HEADER as u8]);
        answer.extend_from_slice(&kind.to_be_bytes());
        answer.extend_from_slice(&IN.to_be_bytes());
        answer.extend_from_slice(&TTL.to_be_bytes());
        // At most 255.
        answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
        answer.extend_from_slice(&data);
    }
    if question.extended {
        answer.push(0);
        answer.extend_from_slice(&OPT.to_be_bytes());
        answer.extend_from_slice(&(MAX_QUERY as u16).to_be_bytes());
        answer.extend_from_slice(&[0; 6]);
    }
    answer
}

/// `name`, which is one of a host, as labels with their lengths.
fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests;
