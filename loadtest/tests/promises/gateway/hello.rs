//! A ClientHello by hand: sent in pieces, behind a PROXY header, or with whatever comes next.

/// A TLS 1.3 ClientHello that asks for `name`, as one handshake message without its record.
fn message(name: Option<&str>) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = name {
        extensions.extend(extension(0, &sized16(&[&[0][..], &sized16(name.as_bytes())].concat())));
    }
    extensions.extend(extension(10, &sized16(&[0, 0x1d])));
    extensions.extend(extension(13, &sized16(&[4, 3, 8, 4])));
    extensions.extend(extension(43, &[2, 3, 4]));
    let share = [&[0, 0x1d][..], &sized16(&[9; 32])].concat();
    extensions.extend(extension(51, &sized16(&share)));
    // Version, random, no session, two cipher suites, no compression.
    let body =
        [&[3, 3][..], &[7; 32], &[0], &[0, 4, 0x13, 1, 0x13, 2], &[1, 0], &sized16(&extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1][..], &length[1..], &body].concat()
}

/// The ClientHello in one record.
pub(crate) fn client_hello(name: Option<&str>) -> Vec<u8> {
    in_records(name, usize::from(u16::MAX))
}

/// The ClientHello in records that hold `size` bytes each.
pub(crate) fn in_records(name: Option<&str>, size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1][..], &sized16(part)].concat();
    message(name).chunks(size).flat_map(record).collect()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized16(body)].concat()
}

fn sized16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}
