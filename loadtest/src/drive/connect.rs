//! One connection to the target, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::client_config;
use super::{Failure, Negotiated, Plan, Reason};

/// How connections are made; cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector {
    target: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// What was made.
pub(crate) enum Stream {
    Plain(TcpStream),
    // Its buffers would make every future that holds one large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connector {
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let Some(tls) = &plan.tls else { return Ok(Self { target: plan.target, tls: None }) };
        let config = client_config(tls, plan.scenario.alpn(plan.protocol), plan.scenario.resumes())?;
        let name = match &tls.server_name {
            Some(name) => ServerName::try_from(name.clone())
                .with_context(|| format!("{name:?} is neither a DNS name nor an address"))?,
            None => ServerName::IpAddress(plan.target.ip().into()),
        };
        Ok(Self { target: plan.target, tls: Some((TlsConnector::from(Arc::new(config)), name)) })
    }

    pub(crate) async fn connect(&self) -> Result<Stream, Failure> {
        let tcp = TcpStream::connect(self.target).await?;
        tcp.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else { return Ok(Stream::Plain(tcp)) };
        let tls = connector.connect(name.clone(), tcp).await.map_err(of_handshake)?;
        Ok(Stream::Tls(Box::new(tls)))
    }
}

/// An end within the handshake is the server's doing, whatever the stream calls it.
fn of_handshake(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Failure::new(Reason::Closed, "the connection ended within the handshake")
        }
        _ => error.into(),
    }
}

impl Stream {
    /// What was agreed on.
    pub(crate) fn negotiated(&self) -> Negotiated {
        let Self::Tls(tls) = self else { return Negotiated::default() };
        let connection = tls.get_ref().1;
        let debug = |value: Option<String>| value.unwrap_or_default();
        Negotiated {
            version: debug(connection.protocol_version().map(|v| format!("{v:?}"))),
            suite: debug(connection.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite()))),
            kx: debug(connection.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name()))),
            alpn: debug(connection.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned())),
        }
    }

    /// Whether there was a handshake, and whether it was resumed.
    pub(crate) fn handshakes(&self) -> (u64, u64) {
        let Self::Tls(tls) = self else { return (0, 0) };
        match tls.get_ref().1.handshake_kind() {
            Some(HandshakeKind::Resumed) => (0, 1),
            _ => (1, 0),
        }
    }

    /// Whether the server has spoken ALPN `h2`.
    pub(crate) fn is_h2(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2"))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
