//! A proxy in front of an app that a test writes itself, where what matters is the app's side: what reached it as bytes, or
//! what it answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::client::{Client, End, config, read_to_end, tcp};
use super::h2::{H2, PREFACE, SETTINGS, frame};
use super::mesh::{Mesh, Presented};
use super::process::{Options, Proxy};
use super::server::{Seen, Server};

/// The answer of an app that has nothing to say.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A proxy whose inbound listeners all lead to one app.
pub(crate) struct Behind {
    pub(crate) proxy: Proxy,
    pub(crate) app: Server,
    pub(crate) honest: Presented,
    /// One for each of the wanted listeners.
    pub(crate) listeners: Vec<SocketAddr>,
}

impl Behind {
    /// One with these listeners (`protocol: http`, or more fields), these lines in the file and these policies (`spec`s).
    pub(crate) fn new(
        listeners: &[&str],
        yaml: &str,
        policies: &[&str],
        app: impl Fn(TcpStream, &Seen) + Send + Sync + 'static,
    ) -> Self {
        let mut mesh = Mesh::new();
        mesh.policies = policies.iter().map(|spec| document(spec)).collect();
        let honest = mesh.honest();
        let app = Server::start(app);
        let listener =
            |more: &&str| format!("{{ listen: \"127.0.0.1:0\", app: \"{}\", {more} }}", app.address);
        let inbound = listeners.iter().map(listener).collect::<Vec<_>>().join(", ");
        // The listener that the options make as well leads nowhere.
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let options = Options::new(nowhere, nowhere).yaml(&format!("inbound: [{inbound}]")).yaml(yaml);
        let proxy = Proxy::start(&mesh, &options);
        let address = |n: usize| proxy.ready["inbound"][n].as_str().unwrap().parse().unwrap();
        let listeners = (0..listeners.len()).map(address).collect();
        Self { proxy, app, honest, listeners }
    }

    /// An honest peer's connection to the first listener that offers these protocols.
    pub(crate) fn connect(&self, alpn: &[&[u8]]) -> Client {
        self.connect_to(self.listeners[0], alpn).unwrap()
    }

    pub(crate) fn connect_to(&self, to: SocketAddr, alpn: &[&[u8]]) -> Result<Client, End> {
        let mut config = config(Some(&self.honest));
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Client::connect(to, config)
    }

    /// Sends these bytes as HTTP/1 and reads to the end.
    pub(crate) fn http1(&self, bytes: &[u8]) -> (String, End) {
        let mut client = self.connect(&[b"http/1.1"]);
        // Who has refused the first of them need not take the rest.
        let _ = client.send(bytes);
        let (answer, end) = read_to_end(&mut client.stream());
        (String::from_utf8_lossy(&answer).into_owned(), end)
    }

    /// An HTTP/2 client that has said hello.
    pub(crate) fn http2(&self) -> H2 {
        let mut h2 = H2 { client: self.connect(&[b"h2"]) };
        h2.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).unwrap();
        h2
    }

    /// The same in plain text: sends and reads to the end.
    pub(crate) fn plain(&self, to: SocketAddr, bytes: &[u8]) -> (Vec<u8>, End) {
        let mut tcp = tcp(to);
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        read_to_end(&mut tcp)
    }

    /// An honest request is answered with 200.
    #[track_caller]
    pub(crate) fn works(&self) {
        let (answer, _) = self.http1(b"GET /good HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }

    /// The resident memory of the proxy in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// Reads one head, byte for byte; none where the connection ends instead.
pub(crate) fn head(tcp: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(tcp.read(&mut byte), Ok(1)) {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// The target of a head.
pub(crate) fn target(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

/// An `AuthorizationPolicy` of this `spec`, written as JSON.
fn document(spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{{"name":"p","namespace":"shop"}},"spec":{spec}}}"#
    )
}
