//! The app behind every server: answers `GET /N` with N bytes, on one thread of the rig, so that it costs as little as it can.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// The longest head of a request that it reads.
const MAX_HEAD: usize = 16 * 1024;
/// The longest answer.
const MAX_BODY: usize = 64 << 20;
/// What a large answer is written by.
const PIECE: usize = 256 * 1024;
/// Connections that may wait while a storm comes in.
const BACKLOG: u32 = 4096;

/// The app. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Listens on a free loopback port.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            socket.listen(BACKLOG).context("no free loopback port")?
        };
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = accept(listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has already been printed.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                // What a server does to its connection shows on the other side of it.
                tokio::task::spawn_local(async move { drop(serve(stream).await) });
            }
            // Out of descriptors: others end meanwhile.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut held = Vec::with_capacity(1024);
    let mut buffer = [0; 4096];
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            let n = stream.read(&mut buffer).await?;
            if n == 0 || held.len() > MAX_HEAD {
                return Ok(());
            }
            held.extend_from_slice(&buffer[..n]);
        };
        let head = String::from_utf8_lossy(&held[..end]).into_owned();
        held.drain(..end);
        let close = answer(&mut stream, &head, &mut held).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

/// Answers one request; whether the connection ends with it.
async fn answer(stream: &mut TcpStream, head: &str, held: &mut Vec<u8>) -> std::io::Result<bool> {
    let field = |wanted: &str| {
        head.lines().skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    // A body is taken and thrown away.
    let mut owed = field("content-length").and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
    let have = owed.min(held.len());
    held.drain(..have);
    owed -= have;
    let mut sink = vec![0; PIECE.min(owed)];
    while owed > 0 {
        let most = sink.len().min(owed);
        let n = stream.read(&mut sink[..most]).await?;
        if n == 0 {
            return Ok(true);
        }
        owed -= n;
    }
    let path = head.split(' ').nth(1).unwrap_or("/");
    let length = path.trim_start_matches('/').parse::<usize>().unwrap_or(2).min(MAX_BODY);
    let close = field("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
    let kept = if close { "connection: close\r\n" } else { "" };
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n{kept}\r\n");
    let mut first = head.into_bytes();
    let small = length.min(PIECE);
    first.resize(first.len() + small, b'x');
    stream.write_all(&first).await?;
    let mut left = length - small;
    let piece = vec![b'x'; PIECE.min(left)];
    while left > 0 {
        let most = piece.len().min(left);
        stream.write_all(&piece[..most]).await?;
        left -= most;
    }
    Ok(close)
}
