//! What the tests stand on: a mesh without a control plane, the real proxy as a process, and peers that obey the test.

use std::time::{Duration, Instant};

pub(crate) mod behind;
pub(crate) mod client;
pub(crate) mod forge;
pub(crate) mod h2;
pub(crate) mod http;
pub(crate) mod hyper;
pub(crate) mod issuer;
pub(crate) mod mesh;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod scene;
pub(crate) mod sealed;
pub(crate) mod server;
pub(crate) mod web;

/// For whatever must happen; generous, since tests share few processors. Only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a condition.
const STEP: Duration = Duration::from_millis(2);

/// Looks until there is a value; panics once [`PATIENCE`] has ended.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited for {what} in vain");
        std::thread::park_timeout(STEP);
    }
}
