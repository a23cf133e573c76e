//! The end-to-end promises, against real processes; one file each, one binary, so that they are linked once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod admin;
mod apps;
mod clock;
mod demo;
mod gateway;
mod harness;
mod http;
mod outage;
mod permissive;
mod programs;
mod push;
mod readme;
mod resilience;
mod rotation;
mod support;
mod takeover;
mod telemetry;
