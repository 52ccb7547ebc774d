//! The inner half of the door: how programs inside reach the world, though there is no network.
//!
//! ```text
//! program ── any name ──► dns: a fake address that stands for it
//!    │
//!    └── connects ──► redirect ──► carrying ── a substream ──► the server, which decides and dials
//! ```
//!
//! It is set up by PID 1, before anything else runs, in a network namespace with nothing but
//! loopback. The capabilities that this needs are given up right afterwards, for good and for
//! everything that is ever started: no command can undo or bypass it, and if one could, there
//! would still be no other interface. Hands that are an ordinary process set nothing up.
//!
//! Where the kernel or the runtime has no nftables, there are listeners on a few ports and a proxy
//! in place of the redirect ([`ports`]).

mod carrying;
mod dns;
mod names;
mod netlink;
mod ports;
mod redirect;
mod trust;

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    sync::{Arc, OnceLock},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    thread::{CapabilitySet, CapabilitySets},
};
use selfsame_hands::{mux::Opener, wire::DoorState};

use carrying::{Attached, Carrier};
use dns::Resolver;
use names::Names;
use trust::Trust;

/// Where redirected queries and connections arrive: beyond the ports that are given out by
/// themselves, and nobody's in particular.
const DNS_PORT: u16 = 61053;
const CONNECTIONS_PORT: u16 = 61080;
/// What it takes to set the door up, and nothing that runs later may have.
const GIVEN_UP: [CapabilitySet; 3] = [
    CapabilitySet::NET_ADMIN,
    CapabilitySet::NET_BIND_SERVICE,
    // The last, because giving up takes it.
    CapabilitySet::SETPCAP,
];
/// What waits in the kernel for a program to read it, in bytes of one connection.
const SEND_BUFFER: usize = 256 << 10;
/// Connections that have been made and not been taken up yet.
const BACKLOG: i32 = 1024;
/// The file system, when it is the sandbox's own and not somebody's machine.
static TRUST: OnceLock<Trust> = OnceLock::new();
/// The port of the proxy, when programs need one.
static PROXY: OnceLock<u16> = OnceLock::new();
const OWN_NAME: &str = "/proc/sys/kernel/hostname";

/// The door of this sandbox, as far as there is one.
#[derive(Debug)]
pub(crate) struct Door {
    state: DoorState,
    carrier: Option<Arc<Carrier>>,
}

/// What has been set up before anything ran.
#[derive(Debug)]
pub(crate) struct Prepared {
    state: DoorState,
    ways: Option<Ways>,
}

#[derive(Debug)]
struct Ways {
    datagrams: UdpSocket,
    queries: TcpListener,
    /// All connections, or those to the proxy.
    connections: TcpListener,
    /// Where there is no redirect: the usual ports.
    ports: Option<Vec<TcpListener>>,
}

/// Sets up the door and gives up what that takes. To be called before there is any thread: a
/// thread that exists already would keep its capabilities.
///
/// # Errors
/// The capabilities cannot be given up. Nothing may run then.
pub(crate) fn prepare() -> io::Result<Prepared> {
    if !rustix::process::getpid().is_init() {
        return Ok(Prepared::none("the hands are not PID 1"));
    }
    TRUST.get_or_init(|| Trust::new("/"));
    let prepared = match loopback() {
        Err(error) => Prepared::none(&error.to_string()),
        Ok(loopback) => match redirect_all(loopback) {
            Ok(ways) => Prepared {
                state: DoorState::Redirect,
                ways: Some(ways),
            },
            Err(error) => listen_on_ports(&error.to_string()),
        },
    };
    give_up()?;
    Ok(prepared)
}

impl Prepared {
    fn none(reason: &str) -> Self {
        Self {
            state: DoorState::None {
                reason: reason.to_owned(),
            },
            ways: None,
        }
    }
}

/// The loopback interface, when it is the only one.
fn loopback() -> io::Result<u32> {
    match redirect::interfaces()?.as_slice() {
        &[(loopback, true)] => Ok(loopback),
        _ => Err(io::Error::other("there is a network besides loopback")),
    }
}

fn redirect_all(loopback: u32) -> io::Result<Ways> {
    let here = Ipv4Addr::LOCALHOST;
    let ways = Ways {
        datagrams: datagrams(DNS_PORT)?,
        queries: listen(here, DNS_PORT)?,
        connections: listen(here, CONNECTIONS_PORT)?,
        ports: None,
    };
    redirect::rules(DNS_PORT, CONNECTIONS_PORT)?;
    redirect::routes(loopback)
        .and_then(|()| redirect::check(&ways.connections))
        .inspect_err(|_| {
            // There may be none.
            let _ = redirect::no_routes();
        })?;
    // Whichever name server the files say: queries to all of them are redirected.
    if let Err(error) = name_server() {
        eprintln!("selfsame-hands: /etc/resolv.conf, /etc/hosts: {error}");
    }
    Ok(ways)
}

fn listen_on_ports(reason: &str) -> Prepared {
    let set_up = || -> io::Result<Ways> {
        let here = Ipv4Addr::LOCALHOST;
        let every = Ipv4Addr::UNSPECIFIED;
        let ports = ports::LISTENED.map(|port| listen(every, port));
        let ways = Ways {
            datagrams: datagrams(53)?,
            queries: listen(here, 53)?,
            connections: listen(here, CONNECTIONS_PORT)?,
            ports: Some(ports.into_iter().collect::<io::Result<_>>()?),
        };
        ports::check()?;
        name_server()?;
        Ok(ways)
    };
    match set_up() {
        Ok(ways) => {
            PROXY.get_or_init(|| CONNECTIONS_PORT);
            Prepared {
                state: DoorState::Ports {
                    reason: reason.to_owned(),
                },
                ways: Some(ways),
            }
        }
        Err(error) => Prepared::none(&format!("{reason}; {error}")),
    }
}

fn datagrams(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Not the standard library's listener: it lets only 128 connections wait, and shares its address
/// with those that follow it.
fn listen(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // The kernel would hold megabytes for each program that does not read.
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, port))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Points programs to the resolver, and the sandbox's own name to itself. The files are the
/// runtime's, and it makes them anew at each start.
fn name_server() -> io::Result<()> {
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    let own = own_name();
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = hosts.lines().any(|line| {
        line.split_ascii_whitespace()
            .skip(1)
            .any(|name| name == own)
    });
    if !known && !own.is_empty() {
        let end = if hosts.is_empty() || hosts.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        fs::write("/etc/hosts", format!("{hosts}{end}127.0.0.1\t{own}\n"))?;
    }
    Ok(())
}

fn own_name() -> String {
    let name = fs::read_to_string(OWN_NAME).unwrap_or_default();
    name.trim().to_owned()
}

/// Gives up the capabilities that only the set-up needs: from the bounding set, so that no program
/// can have them, and from the own sets.
fn give_up() -> io::Result<()> {
    for capability in GIVEN_UP {
        if rustix::thread::capability_is_in_bounding_set(capability)? {
            rustix::thread::remove_capability_from_bounding_set(capability)?;
        }
    }
    let kept = |set: CapabilitySet| GIVEN_UP.iter().fold(set, |set, gone| set - *gone);
    let sets = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: kept(sets.effective),
            permitted: kept(sets.permitted),
            // A program that root runs would have these again.
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// Gives up everything: for a relay, which comes from outside with all that the container may have
/// at its start.
pub(crate) fn give_up_all() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, none)?)
}

/// Makes programs inside trust the certificates in `pem`, too. It blocks.
///
/// # Errors
/// They could not be written.
pub(crate) fn trust(pem: &str) -> io::Result<()> {
    TRUST.get().map_or(Ok(()), |trust| trust.set(pem))
}

/// What programs inside are told about the door. The user's own words about the same things count
/// more.
pub(crate) fn environment() -> Vec<(&'static str, OsString)> {
    let trust = TRUST.get().map(Trust::environment).unwrap_or_default();
    let proxy = PROXY
        .get()
        .map(|port| ports::environment(*port, &own_name()));
    let proxy = proxy.unwrap_or_default().into_iter();
    trust
        .into_iter()
        .chain(proxy.map(|(name, value)| (name, value.into())))
        .collect()
}

fn serve(ways: Ways) -> io::Result<Arc<Carrier>> {
    let listener = tokio::net::TcpListener::from_std;
    let names = match &ways.ports {
        None => Names::new(redirect::FIRST, redirect::LAST),
        Some(_) => Names::new(ports::FIRST, ports::LAST),
    };
    let resolver = Arc::new(Resolver::new(names.clone(), &own_name()));
    let datagrams = tokio::net::UdpSocket::from_std(ways.datagrams)?;
    let queries = listener(ways.queries)?;
    let connections = listener(ways.connections)?;
    let carrier = Arc::new(Carrier::new(names));
    tokio::spawn(Arc::clone(&resolver).serve_connections(queries));
    tokio::spawn(async move { resolver.serve_datagrams(datagrams).await });
    match ways.ports {
        None => {
            let carrier = Arc::clone(&carrier);
            tokio::spawn(carrier.accept(connections, carrying::redirected_from));
        }
        Some(listeners) => {
            for port in listeners {
                let carrier = Arc::clone(&carrier);
                tokio::spawn(carrier.accept(listener(port)?, ports::wanted));
            }
            tokio::spawn(ports::proxy(Arc::clone(&carrier), connections));
        }
    }
    Ok(carrier)
}

impl Door {
    /// Starts serving what was prepared. To be called within the runtime.
    pub(crate) fn start(prepared: Prepared) -> io::Result<Self> {
        let Prepared { state, ways } = prepared;
        let carrier = ways.map(serve).transpose()?;
        Ok(Self { state, carrier })
    }

    pub(crate) fn state(&self) -> &DoorState {
        &self.state
    }

    /// Connections go over `opener` for as long as the result lives.
    pub(crate) fn attach(&self, opener: &Opener) -> Option<Attached> {
        Some(self.carrier.as_ref()?.attach(opener.clone()))
    }
}
