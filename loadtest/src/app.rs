//! A TCP program of our own, for tests and demos where no foreign one shall stand behind a sidecar.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;

/// The longest head of a request that [`App::http`] reads.
const MAX_HEAD: usize = 16 * 1024;
/// For reaching its own listener when it stops.
const WAKE: Duration = Duration::from_secs(1);

/// A listener on a free loopback port, mostly with a thread per connection. Dropped, it closes all of them.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    accepted: AtomicU64,
    /// A second handle of every open connection, to end those whose handler waits for a peer.
    open: Mutex<HashMap<u64, TcpStream>>,
}

impl App {
    /// Hands every connection to `serve`, on a thread of its own.
    pub fn start(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free loopback port")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let acceptor = std::thread::Builder::new()
            .name("app".to_owned())
            .spawn(move || accept(&listener, &for_thread, &serve))?;
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Answers every HTTP request with `body`, one request a connection.
    pub fn http(body: &str) -> Result<Self> {
        let body = body.to_owned();
        Self::start(move |stream| answer(stream, &body))
    }

    /// Answers every HTTP request with `body`, on connections that are kept; bodies of requests are read and dropped.
    pub fn http_kept(body: &str) -> Result<Self> {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
        Self::start(move |stream| answer_again(stream, &answer))
    }

    /// Sends back what it gets; half-closes when the peer does.
    pub fn echo() -> Result<Self> {
        Self::start(|stream| {
            std::io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)
        })
    }

    /// Sends back what it gets, over thousands of connections at once: tasks in place of threads.
    pub fn echo_for_many() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free loopback port")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            loop {
                let accepted = listener.accept().await;
                if for_thread.stopping.load(Ordering::Relaxed) {
                    return;
                }
                let Ok((mut stream, _)) = accepted else { continue };
                for_thread.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        };
        // Its tasks end with the runtime.
        let thread = std::thread::Builder::new().name("app".to_owned());
        let acceptor = thread.spawn(move || runtime.block_on(serve))?;
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it was given.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // The acceptor sees the flag when a connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, WAKE);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept<F>(listener: &TcpListener, shared: &Shared, serve: &F)
where
    F: Fn(TcpStream) -> std::io::Result<()> + Sync,
{
    // The scope ends when every handler has.
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            if shared.stopping.load(Ordering::Relaxed) {
                break;
            }
            let Ok(stream) = stream else { continue };
            let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
            let Ok(second) = stream.try_clone() else { continue };
            open(shared).insert(number, second);
            scope.spawn(move || {
                // What a peer does to its connection is the test's business, not the app's.
                let _ = serve(stream);
                open(shared).remove(&number);
            });
        }
        for stream in open(shared).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

fn open(shared: &Shared) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
    shared.open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut stream: TcpStream, body: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut buffer)?;
        if n == 0 || head.len() + n > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..n]);
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.shutdown(Shutdown::Write)
}

fn answer_again(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    loop {
        let (mut length, mut head, mut ends) = (0, 0, false);
        loop {
            line.clear();
            let n = reader.read_line(&mut line)?;
            head += n;
            if n == 0 || head > MAX_HEAD {
                return Ok(());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                if line == "\r\n" {
                    break;
                }
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "connection" => ends |= value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        stream.write_all(answer)?;
        if ends {
            return stream.shutdown(Shutdown::Write);
        }
    }
}
