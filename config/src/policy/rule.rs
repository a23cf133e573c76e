//! A rule, ready to be asked: groups of alternatives of clauses, and what a connection or a request answers to each.

use std::borrow::Cow;

use super::http::{ClaimPath, HostPattern, PathPattern, RequestPrincipal, Values, canonical_host};
use super::pattern::{IpBlock, NamespacePattern, Port, TextPattern};
use super::{Connection, Request, RuleRef, Token};

/// One rule: every group must be met, each by one of its alternatives.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) at: RuleRef,
    pub(super) groups: Vec<Group>,
}

/// A rule's `from`, `to`, or one `when`: met when all clauses of one alternative hold.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) alternatives: Vec<Vec<Clause>>,
}

/// One field: met when one of the tests holds, or none where it is negated.
#[derive(Debug)]
pub(super) struct Clause {
    /// The field's name in the document, for explanations.
    pub(super) field: Cow<'static, str>,
    pub(super) negated: bool,
    pub(super) tests: Vec<Test>,
}

/// A single value's test. Those from `Host` on need HTTP.
#[derive(Debug)]
pub(super) enum Test {
    Principal(TextPattern),
    Namespace(NamespacePattern),
    Account { namespace: String, account: String },
    TrustDomain(TextPattern),
    SourceIp(IpBlock),
    RemoteIp(IpBlock),
    DestinationIp(IpBlock),
    DestinationPort(Port),
    Sni(HostPattern),
    Host(HostPattern),
    Method(TextPattern),
    Path(PathPattern),
    RequestPrincipal(RequestPrincipal),
    Audience(TextPattern),
    Presenter(TextPattern),
    Claim(ClaimPath, TextPattern),
    Header(::http::HeaderName, Values),
}

/// A connection, or a request with its connection, as the tests see it.
pub(super) struct Question<'a> {
    pub(super) connection: &'a Connection<'a>,
    pub(super) request: Option<&'a Request<'a>>,
    /// The request's host as it is compared.
    pub(super) host: Cow<'a, str>,
    /// The server name of the ClientHello, in the same form.
    pub(super) sni: Option<Cow<'a, str>>,
}

impl<'a> Question<'a> {
    pub(super) fn of_connection(connection: &'a Connection<'a>) -> Self {
        let sni = connection.sni.map(canonical_host);
        Self { connection, request: None, host: Cow::Borrowed(""), sni }
    }

    pub(super) fn of_request(request: &'a Request<'a>) -> Self {
        let host = canonical_host(request.host);
        Self { request: Some(request), host, ..Self::of_connection(&request.connection) }
    }

    pub(super) fn token(&self) -> Option<&'a Token> {
        self.request.and_then(|request| request.token)
    }
}

impl CompiledRule {
    pub(super) fn matches(&self, question: &Question<'_>) -> bool {
        self.groups.iter().all(|group| group.matches(question))
    }

    pub(super) fn has_paths(&self) -> bool {
        let mut clauses = self.groups.iter().flat_map(|g| &g.alternatives).flatten();
        clauses.any(|clause| matches!(clause.tests.first(), Some(Test::Path(_))))
    }
}

impl Group {
    pub(super) fn matches(&self, question: &Question<'_>) -> bool {
        self.alternatives.iter().any(|clauses| clauses.iter().all(|clause| clause.matches(question)))
    }
}

impl Clause {
    pub(super) fn matches(&self, question: &Question<'_>) -> bool {
        self.tests.iter().any(|test| test.matches(question)) != self.negated
    }
}

impl Test {
    fn matches(&self, question: &Question<'_>) -> bool {
        let connection = question.connection;
        let peer = || connection.peer;
        match self {
            Self::Principal(pattern) => peer().is_some_and(|p| pattern.matches(p.principal())),
            Self::Namespace(pattern) => {
                peer().and_then(|p| p.namespace()).is_some_and(|n| pattern.matches(n))
            }
            Self::Account { namespace, account } => peer().is_some_and(|peer| {
                peer.namespace() == Some(namespace) && peer.service_account() == Some(account)
            }),
            Self::TrustDomain(pattern) => peer().is_some_and(|p| pattern.matches(p.trust_domain_str())),
            Self::SourceIp(block) => block.contains(connection.source_ip),
            Self::RemoteIp(block) => block.contains(connection.remote_ip),
            Self::DestinationIp(block) => block.contains(connection.destination_ip),
            Self::DestinationPort(port) => port.0 == connection.destination_port,
            Self::Sni(pattern) => question.sni.as_ref().is_some_and(|sni| pattern.matches(sni)),
            Self::Host(pattern) => question.request.is_some() && pattern.matches(&question.host),
            Self::Method(pattern) => question.request.is_some_and(|r| pattern.matches(r.method)),
            Self::Path(pattern) => question.request.is_some_and(|r| pattern.matches(r.path)),
            Self::RequestPrincipal(pattern) => {
                question.token().is_some_and(|t| pattern.matches(&t.issuer, &t.subject))
            }
            Self::Audience(pattern) => {
                question.token().is_some_and(|t| t.audiences.iter().any(|a| pattern.matches(a)))
            }
            Self::Presenter(pattern) => question
                .token()
                .and_then(|t| t.presenter.as_deref())
                .is_some_and(|presenter| pattern.matches(presenter)),
            Self::Claim(path, pattern) => question.token().is_some_and(|t| path.matches(&t.claims, pattern)),
            Self::Header(name, values) => {
                question.request.is_some_and(|r| values.match_lines(name, r.headers))
            }
        }
    }
}
