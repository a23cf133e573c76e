//! The questions that can be asked of a server, one file each; [`drive`](crate::drive) asks them at a rate.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::drive::{Clock, Connector, Plan, Seen, play as drive};

mod bytes;
mod connect_request;
mod handshake;
mod idle;
mod requests;

pub(crate) use idle::run as idle;

/// One question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// A full handshake and an orderly end on each connection
    Handshake,
    /// The same, resumed by a ticket of an earlier connection
    Resume,
    /// A new connection, a full handshake and one request on it
    ConnectRequest,
    /// Requests on connections that are kept
    Requests,
    /// Bytes there and back on connections that are kept: the peer sends back what it gets (or, over HTTP, answers)
    Bytes,
    /// Connections that stand open and carry nothing
    Idle,
}

impl Scenario {
    /// Whether connections outlive an operation.
    pub fn keeps_connections(self) -> bool {
        matches!(self, Self::Requests | Self::Bytes)
    }

    /// Whether it means nothing without TLS.
    pub fn needs_tls(self) -> bool {
        matches!(self, Self::Handshake | Self::Resume)
    }

    pub(crate) fn resumes(self) -> bool {
        self == Self::Resume
    }

    /// What is offered as application protocol. HTTP/1.1 offers nothing: every server takes it without.
    pub(crate) fn alpn(self, protocol: Protocol) -> &'static [&'static str] {
        match protocol {
            Protocol::H1 | Protocol::Raw => &[],
            Protocol::H2 | Protocol::Grpc => &["h2"],
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "handshake",
            Self::Resume => "resume",
            Self::ConnectRequest => "connect-request",
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::Idle => "idle",
        })
    }
}

/// What requests are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1
    H1,
    /// HTTP/2
    H2,
    /// A unary gRPC call with an empty message
    Grpc,
    /// No HTTP: bytes, which come back
    Raw,
}

/// Plays one thread's share.
pub(crate) fn play(
    plan: &Plan,
    connector: Connector,
    clock: Clock,
    number: usize,
    workers: usize,
) -> Result<Seen> {
    match plan.scenario {
        // Nothing of what stands idle is repeated; it does not come here.
        Scenario::Handshake | Scenario::Resume | Scenario::Idle => {
            drive(plan, handshake::Handshake::new(connector), clock, number, workers)
        }
        Scenario::ConnectRequest => {
            drive(plan, connect_request::ConnectRequest::new(plan, connector)?, clock, number, workers)
        }
        Scenario::Bytes if plan.protocol == Protocol::Raw => {
            drive(plan, bytes::Bytes::new(plan, connector), clock, number, workers)
        }
        Scenario::Requests | Scenario::Bytes => {
            drive(plan, requests::Requests::new(plan, connector)?, clock, number, workers)
        }
    }
}
