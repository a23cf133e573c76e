//! The proxy between an app and an upstream, and the outcome that every refused peer must have (`O` in the list of
//! negative cases).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};

use serde_json::Value;

use super::client::{Client, End, config, tcp};
use super::eventually;
use super::mesh::{Mesh, Presented};
use super::metrics::{ended, failed, ok, open};
use super::process::{Options, Proxy};
use super::server::{Server, server_config, tls};

/// Stands in whatever a hostile peer sends; none of it may reach a log or the other side.
pub(crate) const MARK: &str = "EVILMARK";

/// A proxy, the app behind it and the upstream that it calls.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) app: Server,
    pub(crate) upstream: Server,
    pub(crate) proxy: Proxy,
    honest: Presented,
    descriptors: usize,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(|options| options)
    }

    pub(crate) fn with(change: impl FnOnce(Options) -> Options) -> Self {
        let mesh = Mesh::new();
        let honest = mesh.honest();
        let (app, upstream) = (Server::echo(), Server::presenting(&honest));
        let proxy = Proxy::start(&mesh, &change(Options::new(app.address, upstream.address)));
        let mut scene = Self { mesh, app, upstream, proxy, honest, descriptors: 0 };
        scene.inbound_works();
        scene.outbound_works();
        scene.descriptors = scene.proxy.descriptors();
        scene
    }

    /// An honest client gets through.
    #[track_caller]
    pub(crate) fn inbound_works(&self) {
        let client = Client::connect(self.proxy.inbound, config(Some(&self.honest))).unwrap();
        self.echoes(client, b"ping");
    }

    /// This client gets its answer and an orderly end; returns the connection's log line.
    #[track_caller]
    pub(crate) fn echoes(&self, client: Client, bytes: &[u8]) -> Value {
        let source = client.source();
        assert_eq!(client.echo(bytes), (bytes.to_vec(), End::Clean));
        let record = self.proxy.record(source);
        assert_eq!(record["outcome"], "completed", "{record}");
        record
    }

    /// The app reaches an honest upstream.
    #[track_caller]
    pub(crate) fn outbound_works(&self) {
        self.upstream.behave(tls(server_config(&self.honest)));
        self.outbound_reaches(b"ping");
    }

    /// The app reaches the upstream as it is.
    #[track_caller]
    pub(crate) fn outbound_reaches(&self, message: &[u8]) {
        let mut app = tcp(self.proxy.outbound);
        let source = app.local_addr().unwrap();
        app.write_all(message).unwrap();
        app.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        app.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, message);
        assert_eq!(self.proxy.record(source)["outcome"], "completed");
    }

    /// Descriptors are back where they were.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        eventually("descriptors to come back", || {
            (self.proxy.descriptors() <= self.descriptors).then_some(())
        });
    }

    /// Lets a hostile client act on the inbound listener; it returns its own address.
    #[track_caller]
    pub(crate) fn refuses_client(&self, reason: &str, act: impl FnOnce(SocketAddr) -> SocketAddr) {
        self.refuses("inbound", reason, || act(self.proxy.inbound));
        self.inbound_works();
        self.nothing_is_left();
    }

    /// Has the app call an upstream that behaves as it was told to. The app must see an end, and never a byte.
    #[track_caller]
    pub(crate) fn refuses_server(&self, reason: &str) {
        self.refuses("outbound", reason, || {
            let mut app = tcp(self.proxy.outbound);
            // Sent at once: a proxy that fell back to plain text would pass it on.
            let mut answer = Vec::new();
            let end = app.write_all(MARK.as_bytes()).and_then(|()| app.read_to_end(&mut answer));
            assert_eq!(End::of(&end.unwrap_err()), End::Reset);
            assert_eq!(answer, b"", "nothing of the upstream's reaches the app");
            app.local_addr().unwrap()
        });
        let raw = self.upstream.seen.raw.lock().unwrap();
        assert!(!raw.windows(MARK.len()).any(|w| w == MARK.as_bytes()), "plain text left the proxy");
        drop(raw);
        self.outbound_works();
        self.nothing_is_left();
    }

    /// One handshake fails for this reason, and nothing else happens.
    #[track_caller]
    fn refuses(&self, direction: &str, reason: &str, act: impl FnOnce() -> SocketAddr) {
        let before = self.proxy.metrics();
        let reached = (self.app.seen.connections(), self.app.seen.bytes());
        let leaked = self.upstream.seen.plain.lock().unwrap().len();
        let source = act();
        let count = ended(direction, "handshake_failed");
        eventually("the failed handshake's count", || {
            (self.proxy.metrics().of(&count) > before.of(&count)).then_some(())
        });
        // A scrape is no snapshot: what came before that count may be missing beside it.
        let after = self.proxy.metrics();
        let expected = BTreeMap::from([(count, 1), (failed(direction, reason), 1)]);
        assert_eq!(after.moved_since(&before), expected);
        assert_eq!(after.of(&open(direction)), 0);
        assert_eq!(after.of(&ok(direction)), before.of(&ok(direction)));
        assert_eq!((self.app.seen.connections(), self.app.seen.bytes()), reached, "the app was reached");
        assert_eq!(self.upstream.seen.plain.lock().unwrap().len(), leaked, "the upstream was sent data");

        let record = self.proxy.record(source);
        let said = ["direction", "outcome", "reason"].map(|field| record[field].as_str().unwrap_or_default());
        assert_eq!(said, [direction, "handshake_failed", reason], "{record}");
        assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&0.into(), &0.into()), "{record}");
        assert_eq!(self.proxy.records(source).len(), 1, "one line for one connection");
        let log = self.proxy.log().concat();
        assert!(!log.contains(MARK), "the log repeats what the peer sent");
    }
}
