//! Which addresses the control plane never connects to by itself, whatever name led there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services that do not live on link-local addresses: Alibaba, Azure's host, AWS over IPv6.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Why an address is not connected to; `None` where it is.
///
/// Private networks are not among them: issuers and vaults within the house live there. Loopback is for URLs that an operator
/// wrote; link-local and metadata addresses lead to services that believe whoever reaches them.
pub(super) fn forbidden(address: IpAddr, allow_loopback: bool) -> Option<&'static str> {
    let address = match address {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let metadata = match address {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => v6 == METADATA_V6,
    };
    match address {
        a if a.is_loopback() && !allow_loopback => Some("a loopback address, reached by a redirect"),
        _ if link_local => Some("a link-local address"),
        _ if metadata => Some("a metadata service"),
        a if a.is_unspecified() => Some("no address"),
        a if a.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("a broadcast address"),
        // 0.0.0.0/8 is "this network" (RFC 1122 §3.2.1.3).
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("no address"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let o = v6.octets();
    let last = Ipv4Addr::new(o[12], o[13], o[14], o[15]);
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last),
        [0, 0, 0, 0, 0, 0, hi, lo] if (hi, lo) != (0, 0) && (hi, lo) != (0, 1) => Some(last),
        [0x2002, ..] => Some(Ipv4Addr::new(o[2], o[3], o[4], o[5])),
        _ => None,
    }
}
