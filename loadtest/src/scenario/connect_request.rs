//! What does a caller cost that comes, asks once and goes? Connection, full handshake, one request, end.

use std::cell::RefCell;
use std::io::ErrorKind;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Protocol;
use super::requests::Requests;
use crate::drive::{Connector, Done, Failure, Negotiated, Operation, Plan, Reason};
use crate::http;

/// The largest answer that is taken.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

pub(super) struct ConnectRequest {
    connector: Connector,
    /// The whole request; none over HTTP/2, which `requests` speaks.
    request: Option<Vec<u8>>,
    requests: Requests,
    negotiated: RefCell<Negotiated>,
}

impl ConnectRequest {
    pub(super) fn new(plan: &Plan, connector: Connector) -> Result<Self> {
        let requests = Requests::new(plan, connector.clone())?;
        let request = match plan.protocol {
            Protocol::H1 => Some(requests.h1_bytes()?),
            Protocol::Raw => Some(vec![b'x'; plan.size.max(1)]),
            Protocol::H2 | Protocol::Grpc => None,
        };
        Ok(Self { connector, request, requests, negotiated: RefCell::default() })
    }

    async fn h1(&self, request: &[u8]) -> Result<Done, Failure> {
        let mut stream = self.connector.connect().await?;
        if self.negotiated.borrow().version.is_empty() {
            self.negotiated.replace(stream.negotiated());
        }
        let (handshakes, resumed) = stream.handshakes();
        stream.write_all(request).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        loop {
            if answer.len() > MAX_ANSWER {
                return Err(Failure::new(Reason::BadAnswer, format!("an answer above {MAX_ANSWER} bytes")));
            }
            match stream.read_buf(&mut answer).await {
                Ok(0) => break,
                Ok(_) => {}
                // Whether the answer is whole is seen below; not every server says goodbye in TLS.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error.into()),
            }
        }
        if answer.is_empty() {
            return Err(Failure::new(Reason::Closed, "the connection ended without an answer"));
        }
        let whole = http::parse(&answer).map_err(|e| {
            let reason = if answer.starts_with(b"HTTP/1") { Reason::Closed } else { Reason::BadAnswer };
            Failure::new(reason, format!("{e:#}"))
        })?;
        if !(200..300).contains(&whole.status) {
            return Err(Failure::new(Reason::Status, whole.status.to_string()));
        }
        let (sent, received) = (self.requests.size(), whole.body.len() as u64);
        Ok(Done { handshakes, resumed, requests: 1, sent, received, at: None })
    }

    /// So many bytes there and back.
    async fn raw(&self, bytes: &[u8]) -> Result<Done, Failure> {
        let mut stream = self.connector.connect().await?;
        if self.negotiated.borrow().version.is_empty() {
            self.negotiated.replace(stream.negotiated());
        }
        let (handshakes, resumed) = stream.handshakes();
        super::bytes::there_and_back(&mut stream, bytes.len()).await?;
        stream.shutdown().await?;
        let sent = bytes.len() as u64;
        Ok(Done { handshakes, resumed, requests: 1, sent, received: sent, at: None })
    }
}

impl Operation for ConnectRequest {
    type Kept = ();

    async fn once(&self, _: usize, (): &mut ()) -> Result<Done, Failure> {
        match &self.request {
            Some(bytes) if self.requests.is_raw() => self.raw(bytes).await,
            Some(request) => self.h1(request).await,
            None => self.requests.on_a_new_connection().await,
        }
    }

    fn negotiated(&self) -> Negotiated {
        let own = self.negotiated.borrow().clone();
        if own == Negotiated::default() { self.requests.negotiated() } else { own }
    }
}
