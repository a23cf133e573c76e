//! The PROXY protocol, versions 1 and 2: the addresses that a load balancer in front saw (HAProxy's proxy-protocol.txt).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, its CRLF included (§2.1).
pub const MAX_V1: usize = 107;
/// The longest body of version 2 that is accepted. Addresses take 216 bytes at most; the rest is TLVs, of which real
/// senders write a few hundred bytes. The format's own bound is 64 KiB, more than a stranger should make us hold.
pub const MAX_V2_BODY: usize = 4096;

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_HEAD: usize = 16;
/// The TLV with a checksum over the whole header (§2.2.4).
const TYPE_CRC32C: u8 = 0x03;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A header's beginning: ask again with more bytes.
    Incomplete,
    /// A whole header.
    Complete(Header),
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it takes; what follows is the connection's own data.
    pub len: usize,
    /// Who connected to the load balancer and where; `None` where it does not say (`UNKNOWN`, `LOCAL`, `UNSPEC`, a Unix
    /// socket), and the connection's own addresses hold. An IPv4-mapped IPv6 address is given as the IPv4 one.
    pub addresses: Option<Addresses>,
    /// Version 2's `LOCAL`: the load balancer itself connects, for instance to check our health.
    pub local: bool,
}

/// The two ends of the connection that the load balancer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client's.
    pub source: SocketAddr,
    /// The load balancer's.
    pub destination: SocketAddr,
}

/// Why the bytes are no header. The connection is then closed: on such a port there is no other way to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyProtocolError {
    /// Neither signature.
    #[error("the connection does not begin with a PROXY protocol header")]
    NoHeader,
    /// Version 1: no CRLF within 107 bytes, or a CR or LF alone.
    #[error("the PROXY line does not end in CRLF within 107 bytes  (proxy-protocol §2.1)")]
    LineEnd,
    /// Version 1: not `TCP4|TCP6 source destination port port` with single spaces, or not `UNKNOWN`.
    #[error("the PROXY line is not `PROXY TCP4|TCP6 address address port port`  (proxy-protocol §2.1)")]
    Line,
    /// Version 2: a version that is not 2.
    #[error("the PROXY header's version is not 2  (proxy-protocol §2.2)")]
    Version,
    /// Version 2: neither LOCAL nor PROXY.
    #[error("the PROXY header's command is neither LOCAL nor PROXY  (proxy-protocol §2.2)")]
    Command,
    /// Version 2: a family and transport that TCP connections do not have.
    #[error(
        "the PROXY header's address family or transport is not one of a TCP connection  (proxy-protocol §2.2)"
    )]
    Family,
    /// Version 2: longer than [`MAX_V2_BODY`].
    #[error("the PROXY header is longer than 4096 bytes")]
    TooLong,
    /// Version 2: shorter than its addresses.
    #[error("the PROXY header is too short for its addresses  (proxy-protocol §2.2)")]
    TooShort,
    /// Version 2: TLVs that overrun the header, or a checksum that is not four bytes, or two of them.
    #[error("the PROXY header's TLVs do not fit in it  (proxy-protocol §2.2)")]
    Tlv,
    /// Version 2: a wrong CRC32c.
    #[error("the PROXY header's checksum is wrong  (proxy-protocol §2.2.4)")]
    Checksum,
}

/// Reads the header at the beginning of `bytes`. Looks at no more than the header, and gives up as early as it can.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ProxyProtocolError> {
    if bytes.starts_with(V2) {
        parse_v2(bytes)
    } else if bytes.starts_with(V1) {
        parse_v1(bytes)
    } else if V1.starts_with(bytes) || V2.starts_with(bytes) {
        Ok(Parsed::Incomplete)
    } else {
        Err(ProxyProtocolError::NoHeader)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, ProxyProtocolError> {
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = window.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
        return if window.len() < MAX_V1 { Ok(Parsed::Incomplete) } else { Err(ProxyProtocolError::LineEnd) };
    };
    match window[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if window.len() < MAX_V1 => return Ok(Parsed::Incomplete),
        _ => return Err(ProxyProtocolError::LineEnd),
    }
    let line = std::str::from_utf8(&window[V1.len()..end]).map_err(|_| ProxyProtocolError::Line)?;
    let addresses = match line.split_once(' ') {
        Some(("TCP4", rest)) => Some(v1_addresses::<Ipv4Addr>(rest)?),
        Some(("TCP6", rest)) => Some(v1_addresses::<Ipv6Addr>(rest)?),
        // What follows UNKNOWN is to be ignored.
        Some(("UNKNOWN", _)) => None,
        None if line == "UNKNOWN" => None,
        _ => return Err(ProxyProtocolError::Line),
    };
    Ok(Parsed::Complete(Header { len: end + 2, addresses, local: false }))
}

fn v1_addresses<A: std::str::FromStr + Into<IpAddr>>(text: &str) -> Result<Addresses, ProxyProtocolError> {
    let mut words = text.split(' ');
    let mut word = || words.next().ok_or(ProxyProtocolError::Line);
    let address = |word: &str| word.parse::<A>().map(Into::into).map_err(|_| ProxyProtocolError::Line);
    let (source, destination) = (address(word()?)?, address(word()?)?);
    let (source_port, destination_port) = (v1_port(word()?)?, v1_port(word()?)?);
    if words.next().is_some() {
        return Err(ProxyProtocolError::Line);
    }
    Ok(Addresses::new((source, source_port), (destination, destination_port)))
}

fn v1_port(text: &str) -> Result<u16, ProxyProtocolError> {
    let decimal = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| decimal).ok_or(ProxyProtocolError::Line)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, ProxyProtocolError> {
    // Each byte is judged as soon as it is there.
    let local = match bytes.get(V2.len()) {
        None => return Ok(Parsed::Incomplete),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(0x22..=0x2f) => return Err(ProxyProtocolError::Command),
        Some(_) => return Err(ProxyProtocolError::Version),
    };
    let Some(&family) = bytes.get(V2.len() + 1) else { return Ok(Parsed::Incomplete) };
    let addresses_len = match family {
        // A LOCAL header's family is to be ignored.
        _ if local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return Err(ProxyProtocolError::Family),
    };
    let Some(&[high, low]) = bytes.get(V2.len() + 2..V2_HEAD) else { return Ok(Parsed::Incomplete) };
    let body_len = usize::from(u16::from_be_bytes([high, low]));
    if body_len > MAX_V2_BODY {
        return Err(ProxyProtocolError::TooLong);
    }
    let len = V2_HEAD + body_len;
    if body_len < addresses_len {
        return Err(ProxyProtocolError::TooShort);
    }
    let Some(header) = bytes.get(..len) else { return Ok(Parsed::Incomplete) };
    let (block, _) = header[V2_HEAD..].split_at(addresses_len);
    let addresses = match (family, block) {
        (0x11, block) => v2_addresses::<4>(block),
        (0x21, block) => v2_addresses::<16>(block),
        _ => None,
    };
    // Without addresses there is no telling where TLVs begin: the whole body is to be skipped.
    if addresses_len > 0 {
        check_tlvs(header, V2_HEAD + addresses_len)?;
    }
    Ok(Parsed::Complete(Header { len, addresses, local }))
}

/// Source, destination, source port, destination port; `None` only if `block` is too short.
fn v2_addresses<const N: usize>(block: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    Some(Addresses::new(
        (IpAddr::from(*source), u16::from_be_bytes(*source_port)),
        (IpAddr::from(*destination), u16::from_be_bytes(*destination_port)),
    ))
}

impl Addresses {
    fn new(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let end = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
        Self { source: end(source), destination: end(destination) }
    }
}

/// Walks the TLVs from `at` to the end of `header`, and checks the checksum if there is one.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), ProxyProtocolError> {
    let mut checksum_at = None;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(ProxyProtocolError::Tlv) };
        let value_len = usize::from(u16::from_be_bytes([high, low]));
        let value_at = at + 3;
        at = value_at + value_len;
        if at > header.len() {
            return Err(ProxyProtocolError::Tlv);
        }
        if kind == TYPE_CRC32C && (value_len != 4 || checksum_at.replace(value_at).is_some()) {
            return Err(ProxyProtocolError::Tlv);
        }
    }
    let Some(at) = checksum_at else { return Ok(()) };
    // The sum was taken over the header with zeros in its own place.
    let zeroed = header.iter().enumerate().map(|(i, b)| if (at..at + 4).contains(&i) { 0 } else { *b });
    if header[at..at + 4] == crc32c(zeroed).to_be_bytes() {
        Ok(())
    } else {
        Err(ProxyProtocolError::Checksum)
    }
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit: a header is short and comes once per connection.
pub(super) fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}
