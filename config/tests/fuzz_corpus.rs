//! Replays the corpora of the fuzz targets through their own bodies, so that what fuzzing found stays fixed.

#![expect(clippy::unwrap_used, reason = "what a test prepares must succeed")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::path::Path;

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
fn spiffe_id() {
    replay("spiffe_id", bodies::spiffe_id);
}

#[test]
fn join_string() {
    replay("join_string", bodies::join_string);
}

#[test]
fn bundle() {
    replay("bundle", bodies::bundle);
}

#[test]
fn jwt_svid() {
    replay("jwt_svid", bodies::jwt_svid);
}

#[test]
fn chain() {
    replay("chain", bodies::chain);
}

#[test]
fn policy() {
    replay("policy", bodies::policy);
}

#[test]
fn proxy_config() {
    replay("proxy_config", bodies::proxy_config);
}

#[test]
fn path() {
    replay("path", bodies::path);
}

#[test]
fn authority() {
    replay("authority", bodies::authority);
}

#[test]
fn proxy_protocol() {
    replay("proxy_protocol", bodies::proxy_protocol);
}

#[test]
fn traceparent() {
    replay("traceparent", bodies::traceparent);
}

#[test]
fn xfcc() {
    replay("xfcc", bodies::xfcc);
}
