//! What the proxy promises, asked of the real process by real TLS peers; most of them are hostile.
//!
//! No control plane is needed: a proxy resumes from its cache, and the test that wrote the cache holds the keys of every CA
//! in it. Start at [`support::scene`], which says what every refusal must look like.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod acme;
mod cache;
mod command_line;
mod enrolling;
mod expiry;
mod h2_conformance;
mod hostile_certificates;
mod hostile_clients;
mod hostile_servers;
mod http1;
mod http2;
mod http_answers;
mod jwks;
mod jwt;
mod limits;
mod permissive;
mod policy_everywhere;
mod resumption;
mod secrets;
mod stopping;
mod support;
mod truncation;
