//! The proxy in front of an app of HTTP: a client that writes what it is told to, byte for byte, and an app that notes what
//! reaches it.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::client::{Client, End, config, read_to_end, tcp};
use super::eventually;
use super::mesh::{Mesh, Presented};
use super::process::{Options, Proxy};
use super::scene::MARK;
use super::server::Server;

/// What the app has read of one request.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// From the request line to the last header, each line as it came.
    pub(crate) lines: Vec<String>,
    /// The body, out of its chunks.
    pub(crate) body: Vec<u8>,
    /// The trailers.
    pub(crate) trailers: Vec<String>,
    /// Whether it came to its end.
    pub(crate) complete: bool,
}

impl Heard {
    /// The values of a header, in order; `name` in lower case.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.lines[1..].iter().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// The request's target.
    pub(crate) fn target(&self) -> &str {
        self.lines[0].split(' ').nth(1).unwrap()
    }
}

/// One answer as the client read it, or several.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) end: End,
    pub(crate) source: SocketAddr,
}

impl Answer {
    /// The status of the first answer; 0 where there is none.
    pub(crate) fn status(&self) -> u16 {
        let status = self.text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
        status.map_or(0, |digits| digits.parse().unwrap())
    }

    /// How many answers there are, interim ones included.
    pub(crate) fn count(&self) -> usize {
        self.text.matches("HTTP/1.").count()
    }
}

/// A proxy whose inbound listener speaks HTTP, and the app behind it.
pub(crate) struct HttpScene {
    pub(crate) proxy: Proxy,
    pub(crate) honest: Presented,
    heard: Arc<Mutex<Vec<Heard>>>,
    descriptors: usize,
    _app: Server,
}

impl HttpScene {
    /// One with these lines in the proxy's file and these policies.
    pub(crate) fn new(yaml: &str, policies: &[&str]) -> Self {
        Self::answering(yaml, policies, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    }

    /// One whose app answers every request with this.
    pub(crate) fn answering(yaml: &str, policies: &[&str], answer: &'static str) -> Self {
        let mut mesh = Mesh::new();
        mesh.policies = policies.iter().map(|spec| document(spec)).collect();
        let honest = mesh.honest();
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let app = Server::start({
            let heard = Arc::clone(&heard);
            move |tcp, _| serve(tcp, &heard, answer)
        });
        let inbound = format!(
            "inbound: [{{ listen: \"127.0.0.1:0\", app: \"{}\", protocol: http, mtls: permissive }}]",
            app.address
        );
        // The listener that the options make as well leads nowhere.
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let proxy = Proxy::start(&mesh, &Options::new(nowhere, nowhere).yaml(&inbound).yaml(yaml));
        let mut scene = Self { proxy, honest, heard, descriptors: 0, _app: app };
        scene.works();
        scene.descriptors = scene.proxy.descriptors();
        scene
    }

    /// A connection of an honest peer, nothing sent yet.
    pub(crate) fn connect(&self) -> Client {
        let mut config = config(Some(&self.honest));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Client::connect(self.proxy.inbound, config).unwrap()
    }

    /// Sends these bytes on a new connection and reads to its end.
    #[track_caller]
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Answer {
        let mut client = self.connect();
        // A proxy that has refused the first of them need not take the rest.
        let _ = client.send(bytes);
        end_of(client)
    }

    /// The same in plain text.
    pub(crate) fn exchange_plain(&self, bytes: &[u8]) -> Answer {
        let mut tcp = tcp(self.proxy.inbound);
        tcp.write_all(bytes).unwrap();
        let (answer, end) = read_to_end(&mut tcp);
        Answer { text: String::from_utf8(answer).unwrap(), end, source: tcp.local_addr().unwrap() }
    }

    /// Sends a request that must be answered by the app; what the app got.
    #[track_caller]
    pub(crate) fn carries(&self, request: &[u8]) -> Heard {
        let before = self.heard().len();
        let answer = self.exchange(request);
        assert_eq!(answer.status(), 200, "{}: {answer:?}", request.escape_ascii());
        let mut heard = self.heard().split_off(before);
        // A request that was broken off before this one may be noted only now.
        heard.retain(|h| h.complete);
        assert_eq!(heard.len(), 1, "{}: {heard:?}", request.escape_ascii());
        heard.remove(0)
    }

    /// The same, from a request line and headers; the connection ends behind it.
    #[track_caller]
    pub(crate) fn carries_head(&self, head: &str) -> Heard {
        self.carries(format!("{head}Connection: close\r\n\r\n").as_bytes())
    }

    /// These bytes are refused with this status: nothing of them reaches the app or the log, the connection is closed,
    /// a request behind them is not read, and nobody else notices.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, bytes: &[u8]) {
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).escape_debug().to_string();
        let before = self.heard().len();
        let behind = format!("GET /{MARK} HTTP/1.1\r\nHost: {MARK}\r\n\r\n");
        let answer = self.exchange(&[bytes, behind.as_bytes()].concat());
        assert_eq!((answer.status(), answer.count()), (status, 1), "{what}: {answer:?}");
        assert!(!answer.text.contains(MARK), "{what}: the answer repeats what was sent: {answer:?}");
        let heard = self.heard().split_off(before);
        assert!(heard.iter().all(|h| !h.complete), "{what}: the app got {heard:?}");
        self.accounts_for(answer.source, status, &what);
        self.works();
    }

    /// The log says why, in its own words.
    #[track_caller]
    fn accounts_for(&self, source: SocketAddr, status: u16, what: &str) {
        let records = eventually("the connection's log line", || {
            let records = self.proxy.records(source);
            records.iter().any(|r| r["target"] == "connection").then_some(records)
        });
        let says = |r: &Value| r["outcome"] == "bad_request" || r["status"] == status;
        assert!(records.iter().any(|r| says(r) && r["detail"].is_string()), "{what}: {records:?}");
        assert!(!self.proxy.log().concat().contains(MARK), "{what}: the log repeats what was sent");
    }

    /// An honest request on a connection of its own is answered.
    #[track_caller]
    pub(crate) fn works(&self) {
        let heard = self.carries_head("GET /good HTTP/1.1\r\nHost: shop.example\r\n");
        assert_eq!(heard.target(), "/good");
    }

    /// What has reached the app so far.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Descriptors are back where they were.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        eventually("descriptors to come back", || {
            (self.proxy.descriptors() <= self.descriptors).then_some(())
        });
    }
}

/// Reads a connection's answers to its end.
#[track_caller]
pub(crate) fn end_of(mut client: Client) -> Answer {
    let source = client.source();
    let (answer, end) = read_to_end(&mut client.stream());
    Answer { text: String::from_utf8(answer).unwrap(), end, source }
}

/// An `AuthorizationPolicy` of this `spec`, written as JSON.
fn document(spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{{"name":"p","namespace":"shop"}},"spec":{spec}}}"#
    )
}

/// Notes and answers the requests of one connection.
fn serve(mut tcp: TcpStream, heard: &Mutex<Vec<Heard>>, answer: &str) {
    while let Some(one) = hear(&mut tcp) {
        let complete = one.complete;
        heard.lock().unwrap().push(one);
        if !complete || tcp.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads one request; none where the connection ends instead.
fn hear(tcp: &mut TcpStream) -> Option<Heard> {
    let lines = lines(tcp)?;
    let mut heard = Heard { lines, body: Vec::new(), trailers: Vec::new(), complete: true };
    if let [length] = heard.values("content-length")[..] {
        let length = length.parse().unwrap();
        heard.complete = take(tcp, length, &mut heard.body);
    } else if heard.values("transfer-encoding") == ["chunked"] {
        let trailers = chunks(tcp, &mut heard.body);
        heard.complete = trailers.is_some();
        heard.trailers = trailers.unwrap_or_default();
    }
    Some(heard)
}

/// Lines up to an empty one.
fn lines(tcp: &mut TcpStream) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        match line(tcp)? {
            line if line.is_empty() => return Some(lines),
            line => lines.push(line),
        }
    }
}

fn line(tcp: &mut TcpStream) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        if !matches!(tcp.read(&mut byte), Ok(1)) {
            return None;
        }
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// Reads chunks to the last; the trailers behind it.
fn chunks(tcp: &mut TcpStream, body: &mut Vec<u8>) -> Option<Vec<String>> {
    loop {
        let size = usize::from_str_radix(&line(tcp)?, 16).unwrap();
        if size == 0 {
            return lines(tcp);
        }
        if !take(tcp, size, body) || !line(tcp)?.is_empty() {
            return None;
        }
    }
}

/// Reads this many bytes; whether they all came.
fn take(tcp: &mut TcpStream, count: usize, body: &mut Vec<u8>) -> bool {
    let begun = body.len();
    let _ = tcp.take(count as u64).read_to_end(body);
    body.len() - begun == count
}
