//! Every address range that is not the public Internet.
//!
//! From the IANA special-purpose registries for IPv4 and IPv6, plus the few public addresses that are
//! known to answer only from inside a cloud machine. When in doubt a range is listed: nothing a user
//! may want to reach lives in any of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range and why it is refused, as error messages say it.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub net: &'static str,
    pub reason: &'static str,
}

const fn range(net: &'static str, reason: &'static str) -> Range {
    Range { net, reason }
}

/// The ranges, most telling reason first where they overlap.
pub const SPECIAL: &[Range] = &[
    // IPv4
    range("0.0.0.0/8", "this network"),
    range("10.0.0.0/8", "private"),
    range("100.100.100.200/32", "cloud metadata"),
    range("100.64.0.0/10", "carrier-grade NAT"),
    range("127.0.0.0/8", "loopback"),
    range("168.63.129.16/32", "cloud metadata"),
    range("169.254.169.254/32", "cloud metadata"),
    range("169.254.170.2/32", "cloud metadata"),
    range("169.254.0.0/16", "link-local"),
    range("172.16.0.0/12", "private"),
    range("192.0.0.192/32", "cloud metadata"),
    range("192.0.0.0/24", "protocol assignments"),
    range("192.0.2.0/24", "documentation"),
    range("192.31.196.0/24", "AS112"),
    range("192.52.193.0/24", "AMT"),
    range("192.88.99.0/24", "6to4 relay"),
    range("192.168.0.0/16", "private"),
    range("192.175.48.0/24", "AS112"),
    range("198.18.0.0/15", "benchmarking"),
    range("198.51.100.0/24", "documentation"),
    range("203.0.113.0/24", "documentation"),
    range("224.0.0.0/4", "multicast"),
    range("255.255.255.255/32", "broadcast"),
    range("240.0.0.0/4", "reserved"),
    // IPv6. IPv4-mapped addresses and the well-known NAT64 prefix are judged by the IPv4 address
    // they carry, see `special`.
    range("::/128", "unspecified"),
    range("::1/128", "loopback"),
    range("::/96", "IPv4-compatible"),
    range("::ffff:0:0:0/96", "IPv4-translated"),
    range("64:ff9b:1::/48", "local NAT64"),
    range("100::/64", "discard"),
    range("100:0:0:1::/64", "dummy prefix"),
    range("2001::/32", "Teredo"),
    range("2001:2::/48", "benchmarking"),
    range("2001:10::/28", "ORCHID"),
    range("2001:20::/28", "ORCHIDv2"),
    range("2001::/23", "protocol assignments"),
    range("2001:db8::/32", "documentation"),
    range("2002::/16", "6to4"),
    range("2620:4f:8000::/48", "AS112"),
    range("3fff::/20", "documentation"),
    range("5f00::/16", "segment routing"),
    range("fd00:ec2::254/128", "cloud metadata"),
    range("fd20:ce::254/128", "cloud metadata"),
    range("fc00::/7", "unique local"),
    range("fe80::/10", "link-local"),
    range("fec0::/10", "site-local"),
    range("ff00::/8", "multicast"),
];

/// The address a packet to `ip` would end at, as far as the address itself says: the IPv4 address
/// inside an IPv4-mapped or NAT64 one, else `ip`.
#[must_use]
pub fn effective(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => embedded_v4(v6).map_or(ip, IpAddr::V4),
    }
}

fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    if let Some(v4) = v6.to_ipv4_mapped() {
        return Some(v4);
    }
    let o = v6.octets();
    // 64:ff9b::/96 (RFC 6052): on an IPv6-only host with DNS64 every public IPv4 host looks like this.
    (o[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0])
        .then(|| Ipv4Addr::new(o[12], o[13], o[14], o[15]))
}

/// Why `ip` is not an address of the public Internet; `None` when it is one.
#[must_use]
pub fn special(ip: IpAddr) -> Option<&'static str> {
    let ip = effective(ip);
    if let Some((_, reason)) = table().iter().find(|(net, _)| net.contains(&ip)) {
        return Some(reason);
    }
    match ip {
        // Only 2000::/3 is handed out as global unicast; what is added elsewhere one day is not ours
        // to trust before someone has looked.
        IpAddr::V6(v6) if v6.segments()[0] & 0xe000 != 0x2000 => Some("not global unicast"),
        _ => None,
    }
}

fn table() -> &'static [(IpNet, &'static str)] {
    static TABLE: std::sync::OnceLock<Vec<(IpNet, &'static str)>> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| {
        SPECIAL
            .iter()
            .map(|r| {
                (
                    r.net.parse().expect("constant range, held by a test"),
                    r.reason,
                )
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn every_range_is_refused_at_both_ends() {
        for r in SPECIAL {
            let net: IpNet = r.net.parse().unwrap_or_else(|e| panic!("{}: {e}", r.net));
            assert_eq!(net, net.trunc(), "{} has host bits", r.net);
            assert!(special(net.network()).is_some(), "first of {}", r.net);
            assert!(special(net.broadcast()).is_some(), "last of {}", r.net);
        }
    }

    /// Neighbours of the ranges: refusing too much is a bug too.
    #[test]
    fn the_public_internet_is_not_refused() {
        for s in [
            "1.0.0.0",
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "203.0.114.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:db7:ffff::1",
            "2001:4860:4860::8888",
            "2003::1",
            "2606:4700:4700::1111",
            "2a00:1450:4001:81b::200e",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(special(ip(s)), None, "{s}");
        }
    }

    #[test]
    fn disguises_are_seen_through() {
        for (s, reason) in [
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:7f00:1", "loopback"),
            ("::ffff:10.1.2.3", "private"),
            ("::ffff:169.254.169.254", "cloud metadata"),
            ("64:ff9b::127.0.0.1", "loopback"),
            ("64:ff9b::a9fe:a9fe", "cloud metadata"),
            ("64:ff9b::192.168.0.1", "private"),
            ("64:ff9b:1::1", "local NAT64"),
            ("::127.0.0.1", "IPv4-compatible"),
            ("::ffff:0:127.0.0.1", "IPv4-translated"),
            ("2002:7f00:1::", "6to4"),
            ("2002:808:808::1", "6to4"),
            ("2001:0:1:2:3:4:80ff:fffe", "Teredo"),
            ("fe80::1", "link-local"),
            ("fd00:ec2::254", "cloud metadata"),
            ("fdab::1", "unique local"),
            ("ff02::1", "multicast"),
            ("4000::1", "not global unicast"),
            ("e000::1", "not global unicast"),
            ("200::1", "not global unicast"),
            ("0.0.0.0", "this network"),
            ("100.100.100.200", "cloud metadata"),
            ("100.64.0.1", "carrier-grade NAT"),
            ("255.255.255.255", "broadcast"),
        ] {
            assert_eq!(special(ip(s)), Some(reason), "{s}");
        }
    }
}
