//! The first flight of a client, read before anything is decided: whom it calls, and every byte that it sent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postern_config::reason::Reason;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::StartHandshake;

use super::Server;
use crate::ahead::ReadAhead;
use crate::prefixed::Prefixed;
use crate::tls::{Failure, Stream, Tcp, acme, boxed};

/// The most that is read for one ClientHello, and what may stand before it. With a post-quantum key share it takes 2 KiB;
/// this is a full record.
pub const MAX_HELLO: usize = 16 * 1024;
/// The alert of RFC 6066 §3 for a name that nobody answers to, before any key is agreed on: type, version, length, fatal.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The alert for a version that is not spoken (RFC 8446 §6.2).
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// For a client to take its refusal.
const GOODBYE: Duration = Duration::from_millis(500);
/// Of a kilobyte each: more than a client sends before it looks.
const LAST_READS: usize = 64;

/// A ClientHello that was read whole.
pub struct Hello {
    accepted: Accepted,
    tcp: TcpStream,
    pub(super) bytes: Bytes,
    name: Option<String>,
}

impl Hello {
    /// Reads one, however it is cut into segments and records. `seen` is what has been read already. Whoever calls this
    /// sets the deadline.
    pub async fn read(mut tcp: TcpStream, seen: &[u8]) -> Result<Self, Failure> {
        let mut acceptor = Acceptor::default();
        let mut bytes = BytesMut::from(seen);
        let mut fed = 0;
        loop {
            while fed < bytes.len() {
                fed += acceptor.read_tls(&mut &bytes[fed..]).map_err(Failure::from)?;
            }
            let step = if bytes.is_empty() { Ok(None) } else { acceptor.accept() };
            match step {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Ok(Self { accepted, tcp, bytes: bytes.freeze(), name });
                }
                Ok(None) if bytes.len() >= MAX_HELLO => {
                    return Err(Failure::new(Reason::NotTls, "the peer's ClientHello is too long"));
                }
                Ok(None) => {}
                Err((error, alert)) => {
                    match is_before_tls12(&bytes) {
                        // The library stumbles over an extension that such a client does not know.
                        true => drop(tcp.write_all(&PROTOCOL_VERSION).await),
                        false => tell(&mut tcp, alert).await,
                    }
                    goodbye(tcp).await;
                    return Err(Failure::from(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
            bytes.reserve((MAX_HELLO - bytes.len()).min(4096));
            let room = MAX_HELLO - bytes.len();
            let mut limited = (&mut tcp).take(room as u64);
            if limited.read_buf(&mut bytes).await? == 0 {
                return Err(Failure::from(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
        }
    }

    /// The server name that the client asks for, in lower case; an address is none.
    pub fn server_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the client offers this application protocol.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.accepted.client_hello().alpn().is_some_and(|mut all| all.any(|p| p == protocol))
    }

    /// Goes on with the handshake as `server`.
    pub async fn accept(self, server: &Server) -> Result<Stream, Failure> {
        let config = server.config.as_ref().map_err(|closed| closed.failure())?;
        let start = StartHandshake::from_parts(self.accepted, ReadAhead::from(Tcp::from(self.tcp)));
        match start.into_stream(Arc::clone(config)).into_fallible().await {
            Ok(stream) => Ok(boxed(stream)),
            Err((error, tcp)) => {
                let failure = Failure::from(error);
                goodbye(tcp).await;
                Err(failure)
            }
        }
    }

    /// The name whose ACME challenge the client asks for; none for every other client.
    pub fn challenged(&self) -> Option<String> {
        acme::challenged(&self.accepted.client_hello()).map(str::to_ascii_lowercase)
    }

    /// Answers an ACME challenge with a handshake, and ends (RFC 8737 §3).
    pub async fn answer(self, answer: &acme::Answer) -> Result<(), Failure> {
        let start = StartHandshake::from_parts(self.accepted, ReadAhead::from(Tcp::from(self.tcp)));
        let mut stream = Box::pin(start.into_stream(answer.config())).await?;
        // The issuer has what it came for, and may have gone.
        let _ = stream.shutdown().await;
        Ok(())
    }

    /// Goes on without us: the stream begins with every byte that was read.
    pub fn into_tcp(self) -> Tcp {
        Prefixed::new(self.bytes, self.tcp)
    }

    /// Tells the client that nobody here has that name, and closes.
    pub async fn refuse_name(mut self) {
        // It may have gone already.
        let _ = self.tcp.write_all(&UNRECOGNIZED_NAME).await;
        goodbye(self.tcp).await;
    }
}

/// Whether these bytes begin a ClientHello whose version is SSL 3.0 or TLS 1.0 or 1.1: record type, record version, length,
/// message type, length, version.
fn is_before_tls12(bytes: &[u8]) -> bool {
    matches!(bytes, [22, 3, _, _, _, 1, _, _, _, 3, 0..=2, ..])
}

/// Closes so that the alert arrives: a TLS 1.3 client may have sent its request by then, and a socket that is closed over
/// unread bytes takes back what was written.
async fn goodbye(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let farewell = async {
        let _ = stream.shutdown().await;
        let mut unread = [0; 1024];
        for _ in 0..LAST_READS {
            if !matches!(stream.read(&mut unread).await, Ok(1..)) {
                return;
            }
        }
    };
    // A client that does not close is not waited for.
    let _ = timeout(GOODBYE, farewell).await;
}

async fn tell(tcp: &mut TcpStream, mut alert: AcceptedAlert) {
    let mut text = Vec::new();
    // Writing to a vector does not fail; the client may have gone already.
    if alert.write_all(&mut text).is_ok() {
        let _ = tcp.write_all(&text).await;
    }
}
