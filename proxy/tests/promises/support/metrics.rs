//! `/metrics` as numbers by series.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// One scrape.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) text: String,
    series: BTreeMap<String, f64>,
}

/// One answer of the proxy's own endpoints: status line, headers and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(tcp, "GET {path} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    answer
}

impl Metrics {
    pub(crate) fn scrape(address: SocketAddr) -> Self {
        let text = get(address, "/metrics").split_once("\r\n\r\n").unwrap().1.to_owned();
        let series = text.lines().filter(|l| !l.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { series: series.collect(), text }
    }

    /// The value of a series, its labels in the order in which they are written; 0 where it is absent.
    pub(crate) fn of(&self, series: &str) -> u64 {
        self.series.get(series).map_or(0, |v| *v as u64)
    }

    /// The names of all series.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.series.keys().map(String::as_str).collect()
    }

    /// The counters of handshakes, connections, bytes and everything else that moved since `earlier`, and by how much. How
    /// a chain was verified changes nothing that anybody outside could see, and is left out.
    pub(crate) fn moved_since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        let counters = self.series.iter().filter(|(name, _)| name.contains("_total"));
        let counters = counters.filter(|(name, _)| !name.starts_with("postern_verified_chain_"));
        let moved = counters.map(|(name, value)| (name.clone(), *value as u64 - earlier.of(name)));
        moved.filter(|(_, by)| *by > 0).collect()
    }
}

pub(crate) fn failed(direction: &str, reason: &str) -> String {
    format!("postern_handshakes_total{{direction=\"{direction}\",result=\"failed\",reason=\"{reason}\"}}")
}

pub(crate) fn ok(direction: &str) -> String {
    format!("postern_handshakes_total{{direction=\"{direction}\",result=\"ok\",reason=\"\"}}")
}

pub(crate) fn ended(direction: &str, outcome: &str) -> String {
    format!("postern_connections_total{{direction=\"{direction}\",outcome=\"{outcome}\"}}")
}

pub(crate) fn open(direction: &str) -> String {
    format!("postern_open_connections{{direction=\"{direction}\"}}")
}
