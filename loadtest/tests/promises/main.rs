//! The end-to-end promises, against real processes; one file each, one binary, so that they are linked once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod admin;
mod apps;
mod attestation;
mod auto;
mod canary;
mod clock;
mod control_clock;
mod demo;
mod federation;
mod fleet;
mod gateway;
mod grpc;
mod h2load;
mod harness;
mod http;
mod http_clients;
mod outage;
mod peers;
mod permissive;
mod policy_push;
mod programs;
mod push;
mod python;
mod readme;
mod replicas;
mod resilience;
mod revocation;
mod rig;
mod roll;
mod root_rotation;
mod rotation;
mod storage;
mod support;
mod takeover;
mod telemetry;
mod tpm;
mod websocket;
