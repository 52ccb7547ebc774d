//! What programs do not reach, and cannot change.

use crate::harness::{echo, inside, serve};

#[tokio::test]
async fn what_is_not_carried_fails_at_once() {
    inside(async |inside| {
        let seen = serve(inside.sandbox.outgoing().unwrap(), |_| None);
        let said = inside
            .python(
                "
def send(family, place, kind=socket.SOCK_DGRAM, protocol=0):
    with socket.socket(family, kind, protocol) as s:
        return s.sendto(b'\\x08' + bytes(7), place)
t('refused', lambda: ask('refused.example'))
t('unknown', lambda: ask('198.19.77.77'))
t('v6', lambda: dial('2001:db8::1'))
t('udp', lambda: send(socket.AF_INET, ('192.0.2.1', 443)))
t('udp6', lambda: send(socket.AF_INET6, ('2001:db8::1', 53)))
t('multicast', lambda: send(socket.AF_INET, ('239.1.1.1', 5353)))
t('ping', lambda: send(socket.AF_INET, ('192.0.2.1', 0), socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
t('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
t('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
",
            )
            .await;
        let expected = [
            "refused ECONNRESET",
            "unknown ECONNRESET",
            "v6 EADDRNOTAVAIL",
            "udp EPERM",
            "udp6 EADDRNOTAVAIL",
            "multicast EPERM",
            "ping EPERM",
            "raw EPERM",
            "packet EPERM",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        assert_eq!(*seen.lock().unwrap(), ["refused.example:80"]);
    })
    .await;
}

#[tokio::test]
async fn nothing_inside_can_move_the_door() {
    inside(async |inside| {
        let echo = echo().await;
        serve(inside.sandbox.outgoing().unwrap(), move |_| Some(echo));
        // NET_ADMIN, NET_RAW and SETPCAP are in no set, of commands, of PID 1 and of the relay.
        let sets = "grep -h '^Cap' /proc/self/status /proc/1/status";
        let kept = "00000000800000fb";
        let none = "0000000000000000";
        let expected = [none, kept, kept, kept, none].repeat(2).join("\n");
        assert_eq!(inside.bash(&format!("{sets} | cut -f2")).await, expected);
        let relay = "grep -hE '^Cap(Prm|Eff)' /proc/$(pgrep -f 'hands connect')/status | cut -f2";
        assert_eq!(inside.bash(relay).await, format!("{none}\n{none}"));

        // Each of these would move it, and is not let; the first only looks, as a control.
        let said = inside
            .python(
                "
def netlink(protocol, kind, flags, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as s:
        s.settimeout(2)
        s.send(struct.pack('=IHHII', 16 + len(body), kind, flags, 1, 0) + body)
        reply = s.recv(65536)
    kind, = struct.unpack_from('=H', reply, 4)
    if kind == 2:
        code, = struct.unpack_from('=i', reply, 16)
        if code:
            raise OSError(-code, '')
    return kind
t('links', lambda: netlink(0, 18, 0x301, bytes(16)))
t('link down', lambda: netlink(0, 16, 5, struct.pack('=iiII', 0, 1, 0, 1)))
t('address', lambda: netlink(0, 20, 0x405, struct.pack('=BBBBIHHI', 2, 8, 0, 0, 1, 8, 1, 10)))
t('route', lambda: netlink(0, 25, 5, bytes([2] + 11 * [0])))
t('nftables', lambda: netlink(12, 0x10, 5, bytes([0, 0, 0, 10])))
relay = [pid for pid in os.listdir('/proc') if pid.isdigit()
         and open(f'/proc/{pid}/cmdline').read().startswith('/selfsame/hands\\0connect')]
t('relays', lambda: len(relay))
for pid in ['1'] + relay:
    t('memory', lambda: open(f'/proc/{pid}/mem'))
    t('descriptors', lambda: os.readlink(f'/proc/{pid}/fd/0'))
    t('namespace', lambda: os.setns(os.open(f'/proc/{pid}/ns/net', os.O_RDONLY)))
t('own namespace', lambda: os.unshare(os.CLONE_NEWNET))
t('users', lambda: os.unshare(os.CLONE_NEWUSER))
",
            )
            .await;
        let hidden = ["memory EACCES", "descriptors EACCES", "namespace EACCES"];
        let expected = [
            &[
                "links 16",
                "link down EPERM",
                "address EPERM",
                "route EPERM",
                "nftables EPERM",
                "relays 1",
            ][..],
            &hidden,
            &hidden,
            &["own namespace EPERM", "users EPERM"],
        ]
        .concat();
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        // Of PID 1, only signals that it has a handler for arrive.
        inside.bash("kill -KILL 1; kill -STOP 1; kill -HUP 1").await;
        let said = inside
            .python(
                "
def take(kind, host, port):
    s = socket.socket(socket.AF_INET, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((host, port))
    if kind == socket.SOCK_STREAM:
        s.listen()
    return s
for port in (61080, 61053):
    for host in ('127.0.0.1', '0.0.0.0'):
        t('tcp', lambda: take(socket.SOCK_STREAM, host, port))
t('udp', lambda: take(socket.SOCK_DGRAM, '127.0.0.1', 61053))
t('udp', lambda: take(socket.SOCK_DGRAM, '0.0.0.0', 61053))
# Port 53 can be had, but queries do not come to it.
taken = [take(kind, host, 53) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM) for host in ('127.0.0.1', '0.0.0.0')]
t('name', lambda: socket.gethostbyname('still.example')[:7])
t('through', lambda: ask('still.example', 80, b'there'))
",
            )
            .await;
        let expected = [
            "tcp EADDRINUSE",
            "tcp EADDRINUSE",
            "tcp EADDRINUSE",
            "tcp EADDRINUSE",
            "udp EADDRINUSE",
            "udp EADDRINUSE",
            "name 198.18.",
            "through b'there'",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    })
    .await;
}
