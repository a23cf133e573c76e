//! An established TLS 1.3 connection whose next records the test seals itself: what no honest library would send.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ClientConfig, ConnectionTrafficSecrets};

use super::client::{Client, provider};

pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const DATA: u8 = 23;

/// The client's half of a connection.
pub(crate) struct Sealed {
    pub(crate) tcp: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

/// A record as it stands on the wire.
pub(crate) fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3], &length[..], body].concat()
}

impl Sealed {
    /// Goes through the handshake; rustls has no part in what follows.
    pub(crate) fn connect(to: SocketAddr, mut config: ClientConfig) -> Self {
        config.enable_secret_extraction = true;
        let mut client = Client::connect(to, config).unwrap();
        client.send(b"hello").unwrap();
        assert_eq!(client.receive(5), b"hello");
        let suite = client.tls.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, provider().cipher_suites[0].suite());
        let (sequence, secrets) = client.tls.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("another cipher") };
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
        Self { tcp: client.tcp, key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    pub(crate) fn source(&self) -> SocketAddr {
        self.tcp.local_addr().unwrap()
    }

    /// A record of this kind, sealed as the next one.
    pub(crate) fn seal(&mut self, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(n, s)| *n ^= s);
        self.sequence += 1;
        let mut inner = [body, &[kind]].concat();
        let header = [DATA, 3, 3, ((inner.len() + 16) >> 8) as u8, (inner.len() + 16) as u8];
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).unwrap();
        [&header[..], &inner].concat()
    }

    pub(crate) fn send(&mut self, record: &[u8]) {
        self.tcp.write_all(record).unwrap();
    }
}
