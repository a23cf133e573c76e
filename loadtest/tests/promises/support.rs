//! What the promises share: steady traffic, and the length that a promise is tried for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postern_loadtest::http;
use postern_loadtest::load::{Load, Plan};
use postern_loadtest::mesh::{Sidecar, until};

/// For one request; far above what a loaded machine needs.
pub(crate) const REQUEST: Duration = Duration::from_secs(10);
/// For what is promised to happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Whether the promises are tried in full length: `POSTERN_FULL=1 cargo test -p postern-loadtest --test promises -- rotation`.
pub(crate) fn full() -> bool {
    std::env::var_os("POSTERN_FULL").is_some_and(|v| v == "1")
}

/// Requests at a given rate, each on a connection of its own.
pub(crate) fn steady(target: SocketAddr, per_second: u32) -> Load {
    Load::start(Plan { limit: REQUEST, ..Plan::new(target, f64::from(per_second)) }).unwrap()
}

/// Waits until a request through the sidecar's first outbound listener succeeds.
pub(crate) fn reaches(sidecar: &Sidecar) {
    let answered = || http::get(sidecar.outbound(), "/", REQUEST).is_ok_and(|answer| answer.status == 200);
    until(SOON, || answered().then_some(())).unwrap();
}

/// Waits a given time, where time itself is what is tested.
pub(crate) fn let_pass(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}
