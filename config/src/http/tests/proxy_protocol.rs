use proptest::prelude::*;

use crate::http::proxy_protocol::{
    Addresses, Header, MAX_V2_BODY, Parsed, ProxyProtocolError as Error, crc32c, parse,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn addresses(source: &str, destination: &str) -> Option<Addresses> {
    Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &len, body].concat()
}

fn v4_body(tlvs: &[u8]) -> Vec<u8> {
    [&[10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0x01, 0xbb], tlvs].concat()
}

fn complete(header: &[u8], addresses: Option<Addresses>, local: bool) {
    let expected = Parsed::Complete(Header { len: header.len(), addresses, local });
    assert_eq!(parse(header), Ok(expected), "{header:?}");
    assert_eq!(
        parse(&[header, b"GET / HTTP/1.1\r\n"].concat()),
        Ok(expected),
        "what follows is not looked at"
    );
    for cut in 0..header.len() {
        assert_eq!(parse(&header[..cut]), Ok(Parsed::Incomplete), "{cut} bytes of {header:?}");
    }
}

#[test]
fn version_1() {
    let v4 = addresses("192.168.0.1:56324", "192.168.0.11:443");
    complete(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", v4, false);
    complete(
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n",
        addresses("255.255.255.255:65535", "255.255.255.255:0"),
        false,
    );
    complete(b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n", addresses("[2001:db8::1]:1", "[::1]:2"), false);
    complete(b"PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n", addresses("10.0.0.1:1", "[::1]:2"), false);
    complete(b"PROXY UNKNOWN\r\n", None, false);
    let longest = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), 107);
    complete(longest.as_bytes(), None, false);
}

#[test]
fn version_1_is_exact() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 1\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 1 2 \r\n",
        "PROXY TCP4  10.0.0.1 10.0.0.2 1 2\r\n",
        "PROXY  TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        "PROXY TCP4 10.0.0.01 10.0.0.2 1 2\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 01 2\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 +1 2\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 65536 2\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2  2\r\n",
        "PROXY TCP4 10.0.0.1 10.0.0.2 1 -2\r\n",
        "PROXY TCP4 10.0.1 10.0.0.2 1 2\r\n",
        "PROXY TCP4 ::1 ::2 1 2\r\n",
        "PROXY TCP6 10.0.0.1 10.0.0.2 1 2\r\n",
        "PROXY TCP6 [::1] ::2 1 2\r\n",
        "PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n",
        "PROXY tcp4 10.0.0.1 10.0.0.2 1 2\r\n",
        "PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY TCP4\t10.0.0.1 10.0.0.2 1 2\r\n",
        "PROXY TCP4 10.0.0.\u{0661} 10.0.0.2 1 2\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(Error::Line), "{line:?}");
    }
    assert_eq!(parse(b"PROXY TCP4 \xff\r\n"), Err(Error::Line));
    for line in [
        "PROXY UNKNOWN\n",
        "PROXY UNKNOWN\rx",
        "PROXY UNKNOWN\r\r\n",
        "PROXY TCP4 10.0.0.1\n10.0.0.2 1 2\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(Error::LineEnd), "{line:?}");
    }
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
    assert_eq!(parse(&endless.as_bytes()[..106]), Ok(Parsed::Incomplete));
    assert_eq!(parse(&endless.as_bytes()[..107]), Err(Error::LineEnd));
    let one_too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!((one_too_long.len(), parse(one_too_long.as_bytes())), (108, Err(Error::LineEnd)));
}

#[test]
fn version_2() {
    let v4 = addresses("10.0.0.1:12345", "10.0.0.2:443");
    complete(&v2(0x21, 0x11, &v4_body(&[])), v4, false);
    // NOOP, an unique id, an authority.
    complete(&v2(0x21, 0x11, &v4_body(&[4, 0, 0, 5, 0, 2, 1, 2, 2, 0, 1, b'x'])), v4, false);
    let v6_body = [&[0u8; 15][..], &[1], &[0; 15], &[2], &[0, 1, 0, 2]].concat();
    complete(&v2(0x21, 0x21, &v6_body), addresses("[::1]:1", "[::2]:2"), false);
    let mapped = [&[0u8; 10][..], &[255, 255, 10, 0, 0, 9], &[0; 15], &[2], &[0, 1, 0, 2]].concat();
    complete(&v2(0x21, 0x21, &mapped), addresses("10.0.0.9:1", "[::2]:2"), false);
    complete(&v2(0x21, 0x31, &[7; 216]), None, false);
    complete(&v2(0x21, 0x00, &[]), None, false);
    complete(&v2(0x21, 0x00, &[9; 7]), None, false);
    complete(&v2(0x20, 0x00, &[]), None, true);
    complete(&v2(0x20, 0x11, &v4_body(&[])), None, true);
    complete(&v2(0x20, 0xff, &[9; 7]), None, true);
    complete(&v2(0x21, 0x11, &v4_body(&tlv(4, MAX_V2_BODY - 15))), v4, false);
}

fn tlv(kind: u8, len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap();
    [&[kind][..], &len.to_be_bytes(), &vec![0; usize::from(len)]].concat()
}

#[test]
fn version_2_is_exact() {
    for (header, error) in [
        (v2(0x11, 0x11, &v4_body(&[])), Error::Version),
        (v2(0x31, 0x11, &v4_body(&[])), Error::Version),
        (v2(0x22, 0x11, &v4_body(&[])), Error::Command),
        (v2(0x21, 0x12, &v4_body(&[])), Error::Family),
        (v2(0x21, 0x01, &v4_body(&[])), Error::Family),
        (v2(0x21, 0x10, &v4_body(&[])), Error::Family),
        (v2(0x21, 0x41, &v4_body(&[])), Error::Family),
        (v2(0x21, 0x11, &v4_body(&[])[..11]), Error::TooShort),
        (v2(0x21, 0x21, &[0; 35]), Error::TooShort),
        (v2(0x21, 0x31, &[0; 215]), Error::TooShort),
        (v2(0x21, 0x11, &v4_body(&[4])), Error::Tlv),
        (v2(0x21, 0x11, &v4_body(&[4, 0])), Error::Tlv),
        (v2(0x21, 0x11, &v4_body(&[4, 0, 1])), Error::Tlv),
        (v2(0x21, 0x11, &v4_body(&[4, 255, 255, 0])), Error::Tlv),
        (v2(0x21, 0x11, &v4_body(&tlv(3, 3))), Error::Tlv),
        (v2(0x21, 0x11, &v4_body(&[tlv(3, 4), tlv(3, 4)].concat())), Error::Tlv),
        (v2(0x21, 0x11, &v4_body(&tlv(3, 4))), Error::Checksum),
        (v2(0x21, 0x00, &[0; MAX_V2_BODY + 1]), Error::TooLong),
        // The length is refused before the bytes are there.
        ([SIGNATURE, &[0x20, 0, 255, 255]].concat(), Error::TooLong),
    ] {
        assert_eq!(parse(&header), Err(error), "{:?}", &header[..header.len().min(40)]);
    }
}

#[test]
fn a_checksum_is_checked() {
    // The check value of the CRC catalogues.
    assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
    let mut header = v2(0x21, 0x11, &v4_body(&[tlv(4, 2), tlv(3, 4), tlv(4, 1)].concat()));
    let sum = crc32c(header.iter().copied()).to_be_bytes();
    let at = 16 + 12 + 5 + 3;
    header[at..at + 4].copy_from_slice(&sum);
    complete(&header, addresses("10.0.0.1:12345", "10.0.0.2:443"), false);
    for i in 16..header.len() {
        let mut flipped = header.clone();
        flipped[i] ^= 1;
        assert!(parse(&flipped).is_err() || header[i] == 3, "byte {i} is not covered");
    }
}

#[test]
fn other_protocols_are_refused_at_their_first_other_byte() {
    for bytes in [
        &b"GET / HTTP/1.1"[..],
        b"P ",
        b"PROXX",
        b"\r\n\r\nX",
        b"\x16\x03\x01",
        b"\0",
        b"proxy TCP4",
        b"\nPROXY ",
    ] {
        assert_eq!(parse(bytes), Err(Error::NoHeader), "{bytes:?}");
    }
    assert_eq!(parse(b""), Ok(Parsed::Incomplete));
}

proptest! {
    #[test]
    fn nothing_panics_and_nothing_is_read_twice(
        start in prop_oneof![Just(&b""[..]), Just(SIGNATURE), Just(&b"PROXY TCP4 "[..]), Just(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20"[..])],
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let bytes = [start, &bytes].concat();
        if let Ok(Parsed::Complete(header)) = parse(&bytes) {
            prop_assert!(header.len <= bytes.len());
            prop_assert_eq!(parse(&bytes[..header.len]), Ok(Parsed::Complete(header)));
            prop_assert_eq!(parse(&bytes[..header.len - 1]), Ok(Parsed::Incomplete));
        }
    }

    #[test]
    fn version_1_says_what_was_written(source: std::net::SocketAddrV4, destination: std::net::SocketAddrV4) {
        let line = format!("PROXY TCP4 {} {} {} {}\r\n", source.ip(), destination.ip(), source.port(), destination.port());
        let addresses = Some(Addresses { source: source.into(), destination: destination.into() });
        prop_assert_eq!(parse(line.as_bytes()), Ok(Parsed::Complete(Header { len: line.len(), addresses, local: false })));
    }
}
