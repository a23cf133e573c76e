//! What the promises share: steady traffic that counts its failures, and the length that a promise is tried for.

#![expect(
    dead_code,
    clippy::expect_used,
    reason = "each test file uses its part, and a broken driver ends the test"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postern_loadtest::http;

/// For one request; far above what a loaded machine needs.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);
/// For what is promised to happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Whether the promises are tried in full length: `POSTERN_FULL=1 cargo test -p postern-loadtest --test rotation`.
pub(crate) fn full() -> bool {
    std::env::var_os("POSTERN_FULL").is_some_and(|v| v == "1")
}

/// Requests at a given rate, each on a connection of its own, whether or not the ones before have ended.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    driver: JoinHandle<Vec<JoinHandle<()>>>,
    failures: mpsc::Receiver<String>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) failures: Vec<String>,
}

impl Traffic {
    /// Starts GETting `/` from `address`.
    pub(crate) fn start(address: SocketAddr, per_second: u32) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (report, failures) = mpsc::channel();
        let (ending, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let driver = std::thread::spawn(move || {
            let started = Instant::now();
            let mut requests = Vec::new();
            for number in 0.. {
                let due = started + Duration::from_secs(1) * number / per_second;
                std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
                if ending.load(Ordering::Relaxed) {
                    break;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let report = report.clone();
                requests.push(std::thread::spawn(move || {
                    let result = http::get(address, "/", REQUEST);
                    let wrong = match result {
                        Ok(answer) if answer.status == 200 => return,
                        Ok(answer) => format!("status {}", answer.status),
                        Err(error) => format!("{error:#}"),
                    };
                    let _ = report.send(format!("{:.2} s: {wrong}", started.elapsed().as_secs_f64()));
                }));
                requests.retain(|r| !r.is_finished());
            }
            requests
        });
        Self { stop, sent, driver, failures }
    }

    /// How many requests were begun.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many failed so far.
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let requests = self.driver.join().expect("the driver does not panic");
        requests.into_iter().for_each(|r| r.join().expect("a request does not panic"));
        Tally { sent: self.sent.load(Ordering::Relaxed), failures: self.failures.try_iter().collect() }
    }
}

/// Waits a given time, where time itself is what is tested.
pub(crate) fn let_pass(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}
