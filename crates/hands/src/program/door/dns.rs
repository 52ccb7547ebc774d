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
mod tests {
    use super::*;

    fn resolver() -> Resolver {
        let names = Names::new(
            Ipv4Addr::new(198, 18, 1, 0),
            Ipv4Addr::new(198, 19, 255, 255),
        );
        Resolver::new(names, "Sandbox\n")
    }

    fn query(name: &[u8], kind: u16) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split(|byte| *byte == b'.').filter(|l| !l.is_empty()) {
            query.push(label.len() as u8);
            query.extend_from_slice(label);
        }
        query.push(0);
        query.extend_from_slice(&kind.to_be_bytes());
        query.extend_from_slice(&IN.to_be_bytes());
        query
    }

    /// The code and the data of the record, if there is one.
    fn ask(resolver: &Resolver, name: &str, kind: u16) -> (u8, Option<Vec<u8>>) {
        let query = query(name.as_bytes(), kind);
        let answer = resolver.answer(&query).unwrap();
        assert_eq!(answer[..2], query[..2]);
        assert_eq!(answer[2], 0x81);
        assert_eq!(answer[HEADER..query.len()], query[HEADER..]);
        let count = u16::from_be_bytes([answer[6], answer[7]]);
        let data = (count == 1).then(|| answer[query.len() + 12..].to_vec());
        assert!(count <= 1 && (count == 1 || answer.len() == query.len()));
        (answer[3] & 0xf, data)
    }

    #[test]
    fn every_host_has_an_address_and_nothing_else() {
        let resolver = resolver();
        let (code, address) = ask(&resolver, "Example.COM", A);
        assert_eq!(
            (code, address.as_deref()),
            (NO_ERROR, Some(&[198, 18, 1, 1][..]))
        );
        assert_eq!(ask(&resolver, "example.com", A).1, address);
        assert_eq!(ask(&resolver, "example.com", ANY).1, address);
        assert_ne!(ask(&resolver, "www.example.com", A).1, address);
        // AAAA, MX, TXT, SRV, HTTPS, CNAME, SOA, NS.
        for kind in [28, 15, 16, 33, 65, 5, 6, 2] {
            assert_eq!(ask(&resolver, "example.com", kind), (NO_ERROR, None));
        }
        assert_eq!(ask(&resolver, "", 2), (NO_ERROR, None));
        assert_eq!(ask(&resolver, "", A), (NO_ERROR, None));
        assert_eq!(ask(&resolver, "example.com", AXFR), (REFUSED, None));
    }

    #[test]
    fn what_is_local_stays_inside() {
        let resolver = resolver();
        let here = Some(vec![127, 0, 0, 1]);
        for name in [
            "localhost",
            "LocalHost",
            "app.localhost",
            "sandbox",
            "SANDBOX",
        ] {
            assert_eq!(ask(&resolver, name, A), (NO_ERROR, here.clone()), "{name}");
            assert_eq!(ask(&resolver, name, 28), (NO_ERROR, None));
        }
        assert_ne!(ask(&resolver, "notlocalhost", A).1, here);
        for name in [
            "1.2.3.4",
            "a b.c",
            "x\u{7f}.org",
            "a.invalid",
            "x.onion",
            "4.3.2.1.ip6.arpa",
        ] {
            assert_eq!(ask(&resolver, name, A), (NO_SUCH_NAME, None), "{name}");
        }
        assert!(ask(&resolver, "device.home.arpa", A).1.is_some());
    }

    #[test]
    fn addresses_have_their_names() {
        let resolver = resolver();
        let example = Some(b"\x07example\x03com\0".to_vec());
        ask(&resolver, "example.com", A);
        assert_eq!(
            ask(&resolver, "1.1.18.198.in-addr.arpa", PTR),
            (NO_ERROR, example)
        );
        assert_eq!(
            ask(&resolver, "1.1.18.198.in-addr.arpa", A),
            (NO_ERROR, None)
        );
        let localhost = Some(b"\x09localhost\0".to_vec());
        assert_eq!(
            ask(&resolver, "1.0.0.127.in-addr.arpa", PTR),
            (NO_ERROR, localhost)
        );
        for name in [
            "2.1.18.198",
            "8.8.8.8",
            "01.1.18.198",
            "+1.1.18.198",
            "1.1.1.18.198",
            "1.18.198",
            "256.1.18.198",
        ] {
            let name = format!("{name}.in-addr.arpa");
            assert_eq!(ask(&resolver, &name, PTR), (NO_SUCH_NAME, None), "{name}");
        }
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let resolver = resolver();
        let good = query(b"example.com", A);
        assert!(resolver.answer(&good).is_some());
        for length in 0..good.len() {
            assert_eq!(resolver.answer(&good[..length]), None, "{length}");
        }
        let with = |at: usize, byte: u8| {
            let mut query = good.clone();
            query[at] = byte;
            query
        };
        // A response, no question, two, an answer, an authority, records that are not there.
        for bad in [
            with(2, 0x81),
            with(5, 0),
            with(5, 2),
            with(7, 1),
            with(9, 1),
            with(11, 1),
            with(11, 3),
        ] {
            assert_eq!(resolver.answer(&bad), None);
        }
        // A pointer in the name, to itself too, and labels of unknown kinds.
        for byte in [0xc0, 0x40, 0x80, 64] {
            assert_eq!(resolver.answer(&with(HEADER, byte)), None);
        }
        // Names of 253 characters, and of 254.
        let long = "a.".repeat(126) + "b";
        assert!(resolver.answer(&query(long.as_bytes(), A)).is_some());
        assert_eq!(resolver.answer(&query((long + "b").as_bytes(), A)), None);
        // A label with a dot in it is another name than the one that it looks like.
        let mut dotted = good.clone();
        dotted[HEADER + 1 + 3] = b'.';
        assert_eq!(resolver.answer(&dotted).unwrap()[3] & 0xf, NO_SUCH_NAME);
        // Another operation, another class.
        assert_eq!(
            resolver.answer(&with(2, 0x28)).unwrap()[3] & 0xf,
            NOT_IMPLEMENTED
        );
        assert_eq!(
            resolver.answer(&with(good.len() - 1, 3)).unwrap()[3] & 0xf,
            REFUSED
        );
    }

    #[test]
    fn extended_queries_get_extended_answers() {
        let resolver = resolver();
        let mut query = query(b"example.com", A);
        query[11] = 1;
        let cookie = [0, 10, 0, 2, 1, 2];
        query.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, cookie.len() as u8]);
        query.extend_from_slice(&cookie);
        let answer = resolver.answer(&query).unwrap();
        assert_eq!(answer[11], 1);
        assert_eq!(
            answer[answer.len() - 11..],
            [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]
        );
    }

    /// Random bytes, reproducible.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    #[test]
    fn noise_harms_nothing() {
        let resolver = resolver();
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let (mut answered, mut dropped) = (0, 0);
        for round in 0..200_000_u64 {
            let mut bytes = if round % 2 == 0 {
                query(
                    b"some.name.example",
                    [A, PTR, OPT, ANY][round as usize / 2 % 4],
                )
            } else {
                (0..noise.next() % 80).map(|_| noise.next() as u8).collect()
            };
            for _ in 0..noise.next() % 4 {
                if !bytes.is_empty() {
                    let at = noise.next() as usize % bytes.len();
                    bytes[at] = noise.next() as u8;
                }
            }
            match resolver.answer(&bytes) {
                None => dropped += 1,
                Some(answer) => {
                    answered += 1;
                    assert!((HEADER + 5..=512).contains(&answer.len()));
                    assert_eq!(answer[..2], bytes[..2]);
                    assert_eq!(answer[2] & 0x80, 0x80);
                    // Never a query itself: two resolvers could talk for ever.
                    assert_eq!(resolver.answer(&answer), None);
                }
            }
        }
        assert!(
            answered > 10_000 && dropped > 10_000,
            "{answered} {dropped}"
        );
    }

    #[tokio::test]
    async fn datagrams_and_connections() {
        let resolver = Arc::new(resolver());
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
        let served = Arc::clone(&resolver);
        tokio::spawn(async move { served.serve_datagrams(socket).await });
        tokio::spawn(Arc::clone(&resolver).serve_connections(listener));

        let query = query(b"example.com", A);
        let expected = resolver.answer(&query).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"junk", udp).await.unwrap();
        client.send_to(&[0; 5000], udp).await.unwrap();
        client.send_to(&query, udp).await.unwrap();
        let mut answer = [0; 600];
        let (length, _) = client.recv_from(&mut answer).await.unwrap();
        assert_eq!(answer[..length], expected);

        let mut client = TcpStream::connect(tcp).await.unwrap();
        for _ in 0..2 {
            client.write_u16(query.len() as u16).await.unwrap();
            client.write_all(&query).await.unwrap();
            let mut answer = vec![0; usize::from(client.read_u16().await.unwrap())];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, expected);
        }
        client.write_u16(60_000).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}
