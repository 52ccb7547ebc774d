//! The sandbox's own network: nothing but loopback, and a redirect of everything else to the hands.
//!
//! ```text
//! address  198.18.0.1/32 on lo           where connections to the world come from
//! route    default dev lo                every address can be connected to
//! nat      output, port 53               to the resolver
//!          output, 127.0.0.0/8 and own   as they are
//!          output, other TCP             to the hands
//! filter   output, what is left          rejected at once
//! ```
//!
//! Made by PID 1 before anything else runs, spoken to the kernel directly: an image needs no
//! programs for it. A rejected packet gets an error in place of silence, so that nothing waits.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};

use rustix::net::{netlink, sockopt};

use super::netlink::{ACKNOWLEDGE, APPEND, Attributes, Batch, CREATE, DUMP, REQUEST, Socket};

/// The address of the sandbox itself, where 127.0.0.1 will not do.
pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The fake addresses, from 198.18.0.0/15, which are nobody's (RFC 2544).
pub(super) const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 0);
pub(super) const LAST: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 255);

/// A place in the world that nobody has (RFC 5737), to try the redirect with.
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);

/// The interfaces of this network namespace: index, and whether it is loopback; only loopback, and
/// those that are up.
pub(super) fn interfaces() -> io::Result<Vec<(u32, bool)>> {
    const GETLINK: u16 = 18;
    const NEWLINK: u16 = 16;
    const UP: u32 = 0x1;
    const LOOPBACK: u32 = 0x8;
    let mut batch = Batch::default();
    batch.message(GETLINK, REQUEST | DUMP, &link(0, 0), |_| {});
    let mut found = Vec::new();
    for (kind, content) in Socket::open(None)?.send(&batch)? {
        let Some([_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3]) = content.first_chunk::<12>() else {
            continue;
        };
        let index = u32::from_ne_bytes([*i0, *i1, *i2, *i3]);
        let flags = u32::from_ne_bytes([*f0, *f1, *f2, *f3]);
        if kind == NEWLINK && flags & (UP | LOOPBACK) != 0 {
            found.push((index, flags & LOOPBACK != 0));
        }
    }
    Ok(found)
}

/// A `struct ifinfomsg` that sets `flags`.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [
        &[0; 4][..],
        &index.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &flags.to_ne_bytes(),
    ]
    .concat()
}

/// Brings loopback up, with an address for connections to the world and a route to all of it.
pub(super) fn routes(loopback: u32) -> io::Result<()> {
    const NEWLINK: u16 = 16;
    const NEWADDR: u16 = 20;
    const NEWROUTE: u16 = 24;
    const INET: u8 = 2;
    let index = loopback.to_ne_bytes();
    let flags = REQUEST | ACKNOWLEDGE;
    let socket = Socket::open(None)?;

    let mut up = Batch::default();
    up.message(NEWLINK, flags, &link(loopback, 1), |_| {});
    socket.send(&up)?;

    let mut address = Batch::default();
    // Family, prefix, flags, scope (the whole world).
    let fixed = [&[INET, 32, 0, 0][..], &index].concat();
    address.message(NEWADDR, flags | CREATE, &fixed, |attributes| {
        attributes.bytes(1, &OWN.octets());
        attributes.bytes(2, &OWN.octets());
    });
    tolerate_existing(socket.send(&address))?;

    let mut route = Batch::default();
    // Family, lengths of destination and source, service; main table, static, link, unicast.
    let fixed = [INET, 0, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    route.message(NEWROUTE, flags | CREATE, &fixed, |attributes| {
        attributes.bytes(4, &index);
        attributes.bytes(7, &OWN.octets());
    });
    tolerate_existing(socket.send(&route))
}

/// Takes the route back: without rules, what goes there would be lost without an answer.
pub(super) fn no_routes() -> io::Result<()> {
    const DELROUTE: u16 = 25;
    let mut route = Batch::default();
    let fixed = [2, 0, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    route.message(DELROUTE, REQUEST | ACKNOWLEDGE, &fixed, |_| {});
    Socket::open(None)?.send(&route).map(drop)
}

fn tolerate_existing<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

/// Redirects queries to port `dns` and connections to port `connections` of 127.0.0.1, and rejects
/// the rest.
pub(super) fn rules(dns: u16, connections: u16) -> io::Result<()> {
    let mut rules = Rules::default();
    rules.table();
    rules.chain(NAT, "nat", -100);
    let here = Ipv4Addr::LOCALHOST;
    for protocol in [UDP, TCP] {
        rules.rule(
            NAT,
            &[To(here, 32), Protocol(protocol), Port(53), Redirect(dns)],
        );
    }
    // Another loopback address may have a name server of the user's own.
    rules.rule(NAT, &[To(here, 8), Accept]);
    rules.rule(NAT, &[To(OWN, 32), Accept]);
    for protocol in [UDP, TCP] {
        rules.rule(NAT, &[Protocol(protocol), Port(53), Redirect(dns)]);
    }
    rules.rule(NAT, &[Protocol(TCP), Redirect(connections)]);
    rules.chain(FILTER, "filter", 0);
    rules.rule(FILTER, &[To(here, 8), Accept]);
    rules.rule(FILTER, &[To(OWN, 32), Accept]);
    rules.rule(FILTER, &[Reject]);
    let socket = Socket::open(Some(netlink::NETFILTER))?;
    socket.send(&rules.finish()).map(drop)
}

/// Whether a connection to the world really comes to `listener`, with its destination.
pub(super) fn check(listener: &TcpListener) -> io::Result<()> {
    let client = TcpStream::connect_timeout(&SocketAddr::V4(NOWHERE), Duration::from_secs(2))?;
    // The listener does not block, and the connection may need a moment to get to it.
    let mut tries = 0;
    let (server, peer) = loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < 1000 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            result => break result?,
        }
    };
    if sockopt::ip_original_dst(&server)? != NOWHERE || peer != client.local_addr()? {
        return Err(io::Error::other("connections are not redirected"));
    }
    Ok(())
}

const TABLE: &str = "selfsame";
const NAT: &str = "nat";
const FILTER: &str = "filter";
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A part of a rule: a condition, or what to do when all conditions before it hold.
#[derive(Debug, Clone, Copy)]
enum Part {
    To(Ipv4Addr, u8),
    Protocol(u8),
    /// Of the destination.
    Port(u16),
    Redirect(u16),
    Accept,
    Reject,
}
use Part::*;

/// An nftables transaction. The numbers are those of `linux/netfilter/nf_tables.h`.
#[derive(Debug)]
struct Rules(Batch);

/// `struct nfgenmsg` for IPv4.
const IPV4: [u8; 4] = [2, 0, 0, 0];
/// The same for the ends of a transaction, which name the subsystem.
const WHOLE: [u8; 4] = [0, 0, 0, 10];
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW_TABLE: u16 = 10 << 8;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const NEW_RULE: u16 = 10 << 8 | 6;
/// The register that verdicts go to, and the one used for all else.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

impl Default for Rules {
    fn default() -> Self {
        let mut batch = Batch::default();
        batch.message(BEGIN, REQUEST, &WHOLE, |_| {});
        Self(batch)
    }
}

impl Rules {
    fn table(&mut self) {
        let flags = REQUEST | ACKNOWLEDGE | CREATE;
        self.0.message(NEW_TABLE, flags, &IPV4, |attributes| {
            attributes.text(1, TABLE);
        });
    }

    /// A chain for what processes here send.
    fn chain(&mut self, name: &str, kind: &str, priority: i32) {
        let flags = REQUEST | ACKNOWLEDGE | CREATE;
        self.0.message(NEW_CHAIN, flags, &IPV4, |attributes| {
            attributes.text(1, TABLE);
            attributes.text(3, name);
            attributes.nest(4, |hook| {
                hook.number(1, 3);
                hook.bytes(2, &priority.to_be_bytes());
            });
            attributes.number(5, 1);
            attributes.text(7, kind);
        });
    }

    fn rule(&mut self, chain: &str, parts: &[Part]) {
        let flags = REQUEST | ACKNOWLEDGE | CREATE | APPEND;
        self.0.message(NEW_RULE, flags, &IPV4, |attributes| {
            attributes.text(1, TABLE);
            attributes.text(2, chain);
            attributes.nest(4, |expressions| {
                for part in parts {
                    part.write(expressions);
                }
            });
        });
    }

    fn finish(mut self) -> Batch {
        self.0.message(END, REQUEST, &WHOLE, |_| {});
        self.0
    }
}

impl Part {
    fn write(self, list: &mut Attributes<'_>) {
        match self {
            To(address, prefix) => {
                load(list, 1, 16, 4);
                let mask = u32::MAX << (32 - u32::from(prefix));
                if prefix < 32 {
                    expression(list, "bitwise", |data| {
                        data.number(1, REGISTER);
                        data.number(2, REGISTER);
                        data.number(3, 4);
                        data.nest(4, |value| value.number(1, mask));
                        data.nest(5, |value| value.number(1, 0));
                    });
                }
                compare(list, &(address.to_bits() & mask).to_be_bytes());
            }
            Protocol(number) => {
                expression(list, "meta", |data| {
                    data.number(1, REGISTER);
                    data.number(2, 16);
                });
                compare(list, &[number]);
            }
            Port(port) => {
                load(list, 2, 2, 2);
                compare(list, &port.to_be_bytes());
            }
            Redirect(port) => {
                expression(list, "immediate", |data| {
                    data.number(1, REGISTER);
                    data.nest(2, |value| value.bytes(1, &port.to_be_bytes()));
                });
                expression(list, "redir", |data| data.number(1, REGISTER));
            }
            Accept => expression(list, "immediate", |data| {
                data.number(1, VERDICT);
                data.nest(2, |value| value.nest(2, |verdict| verdict.number(1, 1)));
            }),
            // ICMP: administratively prohibited.
            Reject => expression(list, "reject", |data| {
                data.number(1, 0);
                data.bytes(2, &[13]);
            }),
        }
    }
}

fn expression(list: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(1, |element| {
        element.text(1, name);
        element.nest(2, fill);
    });
}

/// Loads `length` bytes at `offset` of the network (1) or transport (2) header.
fn load(list: &mut Attributes<'_>, header: u32, offset: u32, length: u32) {
    expression(list, "payload", |data| {
        data.number(1, REGISTER);
        data.number(2, header);
        data.number(3, offset);
        data.number(4, length);
    });
}

fn compare(list: &mut Attributes<'_>, value: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER);
        data.number(2, 0);
        data.nest(3, |wanted| wanted.bytes(1, value));
    });
}
