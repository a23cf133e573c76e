//! The edge gateway, seen from outside with curl and openssl: names, certificates, passthrough, the PROXY protocol.

mod acme;
mod browser;
mod edge;
mod hello;
mod jwt;
mod passthrough;
mod reload;
mod requests;
mod web;
