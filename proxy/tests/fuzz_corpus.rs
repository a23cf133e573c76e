//! Replays the corpora of the fuzz targets through their own bodies, so that what fuzzing found stays fixed.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test prepares must succeed")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::path::Path;

use postern_proxy::http::guard::{h1, h2};

/// Runs `body` over a corpus; each has its seeds.
fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(inputs.len() >= 3, "{target} has {} seeds", inputs.len());
    for input in inputs {
        println!("{}", input.display());
        body(&std::fs::read(&input).unwrap());
    }
}

#[test]
fn http1() {
    replay("http1", bodies::http1);
}

#[test]
fn http2() {
    replay("http2", bodies::http2);
}
