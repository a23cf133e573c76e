//! As much of an HTTP client as the harness needs: one GET on one connection, blocking, with a deadline.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// An answer that arrived whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The lines of the head behind the status line.
    pub head: String,
    /// The body, as long as the head said.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The request that [`get`] and the load driver send.
pub fn request(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: postern-loadtest\r\nconnection: close\r\n\r\n"
    )
}

/// GETs `path`; the limit holds for connecting, and for each read and write.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, limit).context("cannot connect")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(request(address, path).as_bytes()).context("cannot send")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).context("no whole answer")?;
    parse(&bytes)
}

/// Takes apart all bytes of a connection's answer.
pub fn parse(bytes: &[u8]) -> Result<Answer> {
    ensure!(!bytes.is_empty(), "the connection ended without an answer");
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("the answer ends within its head")?;
    let head = std::str::from_utf8(&bytes[..end]).context("the head is no text")?;
    let body = &bytes[end + 4..];
    let (line, fields) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status line")?;
    let length = fields.lines().find_map(|l| {
        let (name, value) = l.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if let Some(length) = length {
        ensure!(body.len() == length, "the body has {} bytes of {length}", body.len());
    }
    Ok(Answer { status, head: fields.to_owned(), body: body.to_vec() })
}
