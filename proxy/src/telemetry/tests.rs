//! The telemetry thread's end.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::snapshot::Snapshots;

#[test]
fn what_was_recorded_last_still_reaches_the_collector() {
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (heard, hears) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut tcp, _) = collector.accept().unwrap();
        let mut preface = [0; 24];
        tcp.read_exact(&mut preface).unwrap();
        heard.send(preface).unwrap();
    });
    let metrics = Arc::new(Metrics::new(&Arc::new(Snapshots::default()), &Default::default()));
    let (telemetry, writer) = start(metrics, Some(&endpoint)).unwrap();
    let source = SocketAddr::from(([127, 0, 0, 1], 1));
    telemetry.finish(Record::new(Direction::Inbound, source, "app".into()));
    drop(telemetry);
    let stopping = std::thread::spawn(move || writer.join());
    let preface = hears.recv_timeout(Duration::from_secs(3)).expect("the last export never left");
    assert!(preface.starts_with(b"PRI * HTTP/2"));
    stopping.join().unwrap();
}
