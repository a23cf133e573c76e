//! The wall clock in the store's unit. Decisions take the time as a value; only shells ask here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A length of time in milliseconds, saturating.
pub fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC, whole seconds, such as `2026-11-22T10:02:11Z`; what no clock can show becomes `?`.
pub fn rfc3339(at_ms: i64) -> String {
    match jiff::Timestamp::from_second(at_ms.div_euclid(1000)) {
        Ok(at) => at.to_string(),
        Err(_) => "?".to_owned(),
    }
}
