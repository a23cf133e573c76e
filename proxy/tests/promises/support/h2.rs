//! HTTP/2 by hand: frames and header blocks exactly as a test wants them, and what came back.

use std::io::Write as _;

use super::client::{Client, read_to_end};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// RFC 9113 §7.
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
pub(crate) struct H2 {
    pub(crate) client: Client,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

impl H2 {
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut stream = self.client.stream();
        stream.write_all(bytes)?;
        stream.flush()
    }

    /// Sends until the other side will have no more: how many were sent.
    pub(crate) fn flood(&mut self, most: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> usize {
        for n in 0..most {
            if self.send(&next(n)).is_err() {
                return n;
            }
        }
        most
    }

    /// Every frame until the end.
    pub(crate) fn rest(&mut self) -> (Vec<Frame>, crate::support::client::End) {
        let (bytes, end) = read_to_end(&mut self.client.stream());
        (frames(&bytes), end)
    }
}

pub(crate) fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        let Some(payload) = bytes.get(9..9 + length) else { break };
        frames.push(Frame { kind: bytes[3], flags: bytes[4], stream, payload: payload.to_vec() });
        bytes = &bytes[9 + length..];
    }
    frames
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(crate) fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

pub(crate) fn goodbye() -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[0; 8])
}

/// HPACK without indexing (RFC 7541 §6.2.2), every string literal.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(n, v)| [&[0, n.len() as u8], *n, &[v.len() as u8], v].concat()).collect()
}

pub(crate) fn request(more: &[(&[u8], &[u8])]) -> Vec<u8> {
    let pseudo: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/honest"), (b":authority", b"shop")];
    block(&[&pseudo[..], more].concat())
}

/// The codes of the GOAWAYs among these.
pub(crate) fn goaways(frames: &[Frame]) -> Vec<u32> {
    frames.iter().filter(|f| f.kind == GOAWAY).map(Frame::code).collect()
}

/// The status of an answer, which stands first in its block (RFC 7541, appendix A, and §5.2 for digits in Huffman's code).
pub(crate) fn status(frames: &[Frame], stream: u32) -> Option<u16> {
    let answer = frames.iter().find(|f| f.kind == HEADERS && f.stream == stream)?;
    let mut block = &answer.payload[..];
    // Changes of the table's size.
    while block[0] & 0xe0 == 0x20 {
        block = &block[1..];
    }
    match block {
        [indexed @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]),
        [_, length, rest @ ..] => Some(digits(&rest[..usize::from(length & 0x7f)], length & 0x80 != 0)),
        _ => None,
    }
}

fn digits(text: &[u8], huffman: bool) -> u16 {
    if !huffman {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let five = (0..5).fold(0, |code, _| code << 1 | bits.next().unwrap());
        // `0` to `2` are 5 bits long, the others 6, from 0b011001.
        let digit = if five < 3 { five } else { (five << 1 | bits.next().unwrap()) - 0b01_1001 + 3 };
        number = number * 10 + digit;
    }
    number
}
