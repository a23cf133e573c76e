//! The words both planes share: what an identity is, what a trust bundle holds, when a certificate
//! is believed, what a policy says, how a file is read and what goes over the wire.
//!
//! Everything here is pure: no socket, no clock, no runtime. A function that needs the time takes it
//! as a value, a function that checks signatures takes the algorithms.
//!
//! Read in this order: [`id`] (names), [`bundle`] (who is trusted), [`svid`] (the one verifier), [`jwt_svid`] (its sibling),
//! [`policy`] (who may), [`reason`] (why not), [`file`](mod@file) (what operators write), [`wire`] (what the planes say
//! to each other), [`enroll`] (how an identity begins), [`attest`](mod@attest) (which identity), [`tpm`] (what a machine's chip says), [`jwt`] (when a token is believed), [`http`] (the small grammars of
//! requests).

pub mod attest;
pub mod bundle;
pub mod enroll;
pub mod file;
pub mod http;
pub mod id;
pub mod json;
pub mod jwt;
pub mod jwt_svid;
pub mod policy;
pub mod reason;
pub mod registry;
pub mod revocation;
pub mod service;
pub mod svid;
pub mod tpm;
pub mod wire;
