//! What somebody speaks, told by the first bytes: a pure question, and a look at a stream that takes nothing from it.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::Version;
use super::guard::h2::PREFACE;
use crate::prefixed::Prefixed;

/// A method is no longer than this, and the target behind it begins at once.
const LONGEST_METHOD: usize = 24;
/// Ports of protocols in which the server speaks first, or a client waits: MySQL, SMTP, submission, Galera, PostgreSQL
/// (its TLS request), Redis (may wait after connecting), Elasticsearch transport, memcached, FTP, SSH, IMAP, POP3, NATS.
pub const SERVER_FIRST: [u16; 14] =
    [21, 22, 25, 110, 143, 587, 3306, 4222, 4444, 5432, 6379, 9300, 11211, 27017];

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// HTTP of this version.
    Http(Version),
    /// Something else.
    Other,
    /// Not enough of them yet.
    Unknown,
}

/// What a stream that begins with `bytes` speaks.
pub fn guess(bytes: &[u8]) -> Guess {
    let common = bytes.len().min(PREFACE.len());
    // `PR` could still become PROPFIND, which is HTTP/1.
    if bytes.len() >= 3 && bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() { Guess::Http(Version::Http2) } else { Guess::Unknown };
    }
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    match bytes.get(method) {
        None if method <= LONGEST_METHOD => Guess::Unknown,
        // RFC 9112 §3: a target begins with `/`, a scheme, a host or `*`.
        Some(b' ') if method >= 3 => match bytes.get(method + 1) {
            None => Guess::Unknown,
            Some(b) if b.is_ascii_alphanumeric() || matches!(b, b'/' | b'*' | b'[') => {
                Guess::Http(Version::Http1)
            }
            Some(_) => Guess::Other,
        },
        _ => Guess::Other,
    }
}

/// Looks at the first bytes of `stream` for at most `limit`; those that came are given back. A stream that says nothing in
/// time is `Unknown`.
pub async fn look<S>(stream: S, limit: Duration) -> io::Result<(Prefixed<S>, Guess)>
where
    S: AsyncRead + Unpin,
{
    let mut stream = stream;
    let mut seen = BytesMut::new();
    let looking = async {
        loop {
            match guess(&seen) {
                Guess::Unknown => {}
                known => return Ok(known),
            }
            if stream.read_buf(&mut seen).await? == 0 {
                return Ok::<_, io::Error>(Guess::Other);
            }
        }
    };
    let found = match timeout(limit, looking).await {
        Ok(found) => found?,
        Err(_) => Guess::Unknown,
    };
    Ok((Prefixed::new(Bytes::from(seen), stream), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_http_is_undecided_until_it_is_decided() {
        for (text, at, is) in [
            (&b"GET / HTTP/1.1\r\n"[..], 5, Guess::Http(Version::Http1)),
            (b"OPTIONS * HTTP/1.1\r\n", 9, Guess::Http(Version::Http1)),
            (b"PROPFIND /a HTTP/1.1\r\n", 10, Guess::Http(Version::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24, Guess::Http(Version::Http2)),
            (b"\x16\x03\x01\x02\x00", 1, Guess::Other),
            (b"GET\tx", 4, Guess::Other),
            (b"*1\r\n$4\r\nPING\r\n", 1, Guess::Other),
            (b"SSH-2.0-x\r\n", 5, Guess::Other),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1, Guess::Other),
        ] {
            for length in 0..=text.len() {
                let expected = if length < at { Guess::Unknown } else { is };
                assert_eq!(
                    guess(&text[..length]),
                    expected,
                    "{length} bytes of {:?}",
                    text.escape_ascii().to_string()
                );
            }
        }
    }
}
