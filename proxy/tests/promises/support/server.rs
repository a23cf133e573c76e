//! A TCP server whose behaviour a test can change: the app behind the proxy, or the upstream in front of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};

use super::PATIENCE;
use super::client::{ALPN, End, provider, read_to_end};
use super::mesh::Presented;

type Behaviour = Arc<dyn Fn(TcpStream, &Seen) + Send + Sync>;

/// What a server has seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// Every byte that arrived, as it stood on the wire, in order of arrival.
    pub(crate) raw: Mutex<Vec<u8>>,
    /// Application data out of TLS.
    pub(crate) plain: Mutex<Vec<u8>>,
    /// How connections were accepted and ended, in order.
    pub(crate) accepted: Mutex<u64>,
    pub(crate) ends: Mutex<Vec<End>>,
}

impl Seen {
    pub(crate) fn connections(&self) -> u64 {
        *self.accepted.lock().unwrap()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.raw.lock().unwrap().len()
    }

    fn end(&self, end: End) {
        self.ends.lock().unwrap().push(end);
    }
}

/// A listening server; each connection gets a thread.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    behaviour: Arc<Mutex<Behaviour>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// A server that behaves like this.
    pub(crate) fn start(behaviour: impl Fn(TcpStream, &Seen) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let behaviour: Arc<Mutex<Behaviour>> = Arc::new(Mutex::new(Arc::new(behaviour)));
        let stop = Arc::<AtomicBool>::default();
        std::thread::spawn({
            let (seen, behaviour, stop) = (Arc::clone(&seen), Arc::clone(&behaviour), Arc::clone(&stop));
            move || {
                for tcp in listener.incoming().map_while(Result::ok) {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    *seen.accepted.lock().unwrap() += 1;
                    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
                    tcp.set_nodelay(true).unwrap();
                    let (seen, act) = (Arc::clone(&seen), Arc::clone(&behaviour.lock().unwrap()));
                    std::thread::spawn(move || act(tcp, &seen));
                }
            }
        });
        Self { address, seen, behaviour, stop }
    }

    /// The app: sends back what it gets.
    pub(crate) fn echo() -> Self {
        Self::start(echo)
    }

    /// An upstream that speaks the mesh's TLS and presents this.
    pub(crate) fn presenting(presented: &Presented) -> Self {
        Self::start(tls(server_config(presented)))
    }

    /// From the next connection on.
    pub(crate) fn behave(&self, behaviour: impl Fn(TcpStream, &Seen) + Send + Sync + 'static) {
        *self.behaviour.lock().unwrap() = Arc::new(behaviour);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
    }
}

/// A socket that notes what it reads.
struct Noting<'a>(TcpStream, &'a Seen);

impl Read for Noting<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(into)?;
        self.1.raw.lock().unwrap().extend_from_slice(&into[..count]);
        Ok(count)
    }
}

impl Write for Noting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    // rustls hands over an answer and the alert behind it in one call.
    fn write_vectored(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Sends back what it gets, until the other side ends.
pub(crate) fn echo(tcp: TcpStream, seen: &Seen) {
    let mut stream = Noting(tcp, seen);
    seen.end(repeat(&mut stream, |_| ()));
    let _ = stream.0.shutdown(std::net::Shutdown::Write);
}

/// Reads to the end and no more.
pub(crate) fn listen(tcp: TcpStream, seen: &Seen) {
    let (_, end) = read_to_end(&mut Noting(tcp, seen));
    seen.end(end);
}

/// Goes through the handshake and sends back what it gets.
pub(crate) fn tls(config: ServerConfig) -> impl Fn(TcpStream, &Seen) + Send + Sync + 'static {
    let config = Arc::new(config);
    move |tcp, seen| {
        let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tcp = Noting(tcp, seen);
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let end = repeat(&mut stream, |bytes| seen.plain.lock().unwrap().extend_from_slice(bytes));
        tls.send_close_notify();
        let _ = tls.write_tls(&mut tcp);
        seen.end(end);
    }
}

fn repeat(stream: &mut (impl Read + Write), note: impl Fn(&[u8])) -> End {
    let mut some = [0; 16 * 1024];
    loop {
        let moved = match stream.read(&mut some) {
            Ok(0) => return End::Clean,
            Ok(count) => {
                note(&some[..count]);
                stream.write_all(&some[..count]).and_then(|()| stream.flush())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = moved {
            return End::of(&error);
        }
    }
}

/// A server of the mesh that presents this and asks for nothing.
pub(crate) fn server_config(presented: &Presented) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(presented.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// Presents one chain to everybody.
#[derive(Debug)]
pub(crate) struct Always(pub(crate) Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
