//! Who is at the other end of an open connection, and what policy is asked about it when it changes.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::HeaderMap;
use postern_config::id::SpiffeId;
use postern_config::policy::{Connection, MtlsMode, Request, Token};
use postern_config::svid::Peer;

use crate::policy::CurrentPolicy;

/// Who is at the other end, and what policy says of the connection.
#[derive(Debug)]
pub struct Subject {
    /// The verified peer; none where plain text is accepted.
    pub peer: Option<Arc<Peer>>,
    /// What policy is asked about it.
    pub judged: Judged,
}

/// What policy is asked about an open connection when it changes.
#[derive(Debug)]
pub enum Judged {
    /// Nothing: it is an outbound one.
    Never,
    /// Whether a peer without an identity may still be here: each of its requests is judged when it comes.
    ByRequest(Facts),
    /// The connection itself.
    Connection(Facts),
    /// The one request that made it a tunnel.
    Request(Box<Asked>),
}

/// Where a peer without an identity is admitted, as far as no policy says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Nowhere here.
    Never,
    /// Here: a gateway's host that does not demand a client certificate.
    Always,
    /// Where the port takes plain text, by a pushed document or else by the listener's own choice.
    WherePlainText(MtlsMode),
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
    pub anonymous: Anonymous,
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
            Judged::Never => true,
            Judged::ByRequest(facts) => self.peer.is_some() || facts.admits_anonymous(policy),
            Judged::Connection(facts) => {
                (self.peer.is_some() || facts.admits_anonymous(policy))
                    && policy.still_allows(&facts.of(self.id(), policy))
            }
            Judged::Request(asked) => policy.still_allows_request(&asked.of(self.id(), policy)),
        }
    }
}

impl Facts {
    /// Whether a peer without an identity may be here under `policy`.
    pub fn admits_anonymous(&self, policy: &CurrentPolicy) -> bool {
        match self.anonymous {
            Anonymous::Never => false,
            Anonymous::Always => true,
            Anonymous::WherePlainText(local) => {
                policy.mtls_mode_or(self.destination_port, local) != MtlsMode::Strict
            }
        }
    }

    /// The question itself.
    pub fn of<'a>(&'a self, peer: Option<&'a SpiffeId>, policy: &CurrentPolicy) -> Connection<'a> {
        Connection {
            peer,
            admits_anonymous: self.admits_anonymous(policy),
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
    pub fn of<'a>(&'a self, peer: Option<&'a SpiffeId>, policy: &CurrentPolicy) -> Request<'a> {
        Request {
            connection: self.facts.of(peer, policy),
            method: self.method.as_str(),
            host: &self.host,
            path: &self.path,
            headers: &self.headers,
            token: self.token.as_ref(),
        }
    }
}
