//! Who is at the other end of an open connection, and what policy is asked about it when it changes.

use std::net::IpAddr;

use ::http::HeaderMap;
use postern_config::id::SpiffeId;
use postern_config::policy::{Connection, Request, Token};
use postern_config::svid::Peer;

use crate::policy::CurrentPolicy;

/// Who is at the other end, and what policy says of the connection.
#[derive(Debug)]
pub struct Subject {
    /// The verified peer; none where plain text is accepted.
    pub peer: Option<Peer>,
    /// What policy is asked about it.
    pub judged: Judged,
}

/// What policy is asked about an open connection when it changes.
#[derive(Debug)]
pub enum Judged {
    /// Nothing: it is an outbound one.
    Never,
    /// Nothing: each of its requests is judged when it comes.
    ByRequest,
    /// The connection itself.
    Connection(Facts),
    /// The one request that made it a tunnel.
    Request(Box<Asked>),
}

/// What policy was asked about a connection, besides its peer.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Where it comes from.
    pub source_ip: IpAddr,
    /// The client's address as trusted hops tell it.
    pub remote_ip: IpAddr,
    /// Where it was accepted.
    pub destination_ip: IpAddr,
    /// The workload's port.
    pub destination_port: u16,
    /// Whether a peer without an identity may be here at all.
    pub admits_anonymous: bool,
    /// The server name of the ClientHello. The mesh sends none.
    pub sni: Option<String>,
}

/// What policy was asked about a request, besides its connection.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its connection.
    pub facts: Facts,
    /// The method.
    pub method: ::http::Method,
    /// The host.
    pub host: String,
    /// The normalised path, without query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The verified token.
    pub token: Option<Token>,
}

impl Subject {
    /// The peer's identity.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref().map(|p| &p.id)
    }

    /// Whether `policy` still admits it.
    pub fn is_admitted(&self, policy: &CurrentPolicy) -> bool {
        match &self.judged {
            Judged::Never | Judged::ByRequest => true,
            Judged::Connection(facts) => policy.still_allows(&facts.of(self.id())),
            Judged::Request(asked) => policy.still_allows_request(&asked.of(self.id())),
        }
    }
}

impl Facts {
    /// The question itself.
    pub fn of<'a>(&'a self, peer: Option<&'a SpiffeId>) -> Connection<'a> {
        Connection {
            peer,
            admits_anonymous: self.admits_anonymous,
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni.as_deref(),
        }
    }
}

impl Asked {
    /// The question itself.
    pub fn of<'a>(&'a self, peer: Option<&'a SpiffeId>) -> Request<'a> {
        Request {
            connection: self.facts.of(peer),
            method: self.method.as_str(),
            host: &self.host,
            path: &self.path,
            headers: &self.headers,
            token: self.token.as_ref(),
        }
    }
}
