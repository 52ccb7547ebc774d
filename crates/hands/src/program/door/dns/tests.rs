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
