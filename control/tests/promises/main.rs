//! What the control plane promises, asked of a real process over real sockets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails fails its test"
)]

mod api;
mod attestation;
mod audit;
mod backup;
mod callers;
mod ceremony;
mod certificates;
mod crash;
mod enrollment;
mod exchange;
mod federation;
mod harness;
mod identities;
mod jwt;
mod keys;
mod lint;
mod lists;
mod operators;
mod platform;
mod policies;
mod public;
mod renewal;
mod watching;
