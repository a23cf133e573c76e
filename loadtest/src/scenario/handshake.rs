//! What does a handshake cost, full or resumed?
//!
//! In TLS 1.3 a client is done before the server has looked at its certificate. So the latency ends with our Finished, but
//! the operation succeeds only once the server has ended the connection without an alert.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::drive::{Connector, Done, Failure, Negotiated, Operation};

/// More than this a server does not say to somebody who asks nothing: tickets, perhaps an error page.
const BUFFER: usize = 4096;

pub(super) struct Handshake {
    connector: Connector,
    negotiated: RefCell<Negotiated>,
}

impl Handshake {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, negotiated: RefCell::default() }
    }
}

impl Operation for Handshake {
    type Kept = ();

    async fn once(&self, _: usize, (): &mut ()) -> Result<Done, Failure> {
        let mut stream = self.connector.connect().await?;
        let at = Some(Instant::now());
        if self.negotiated.borrow().version.is_empty() {
            self.negotiated.replace(stream.negotiated());
        }
        let (handshakes, resumed) = stream.handshakes();
        stream.shutdown().await?;
        let mut buffer = [0; BUFFER];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                // Not every server says goodbye in TLS; a refusal would have been an alert.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Done { handshakes, resumed, at, ..Done::default() })
    }

    fn negotiated(&self) -> Negotiated {
        self.negotiated.borrow().clone()
    }
}
