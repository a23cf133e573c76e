//! Waiting for a condition, with a deadline and without a fixed pause.

use std::time::{Duration, Instant};

/// Between two looks; short beside everything that is waited for, long beside a look.
const STEP: Duration = Duration::from_millis(10);

/// Asks until `look` gives a value; `None` once `limit` has passed.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::park_timeout(STEP);
    }
}
