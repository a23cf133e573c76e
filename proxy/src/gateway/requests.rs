//! Requests from outside: each for the host that its connection called, spelled in one way, judged, and led by its route.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue, LOCATION, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{StatusCode, Uri};
use postern_config::file::gateway::Plain;
use postern_config::http::path::Rules;
use postern_config::policy::{Request as Question, Token};

use super::client::{Certificate, Forwarded, Hop};
use super::hosts::Host;
use super::{Front, Route, Way};
use crate::discover::Upstream;
use crate::finish::Socketed;
use crate::http::forward::{self, Answer, Switched, To};
use crate::http::introduce::Introduction;
use crate::http::note::Note;
use crate::http::refuse::{Fault, Refusal};
use crate::http::request::{self, Target};
use crate::http::{Body, Flow, Handler, Request, Response, Version, headers, serve, tunnel};
use crate::jwt::{Admitted, Reason};
use crate::policy::CurrentPolicy;
use crate::telemetry::{Direction, Outcome, Record};
use crate::worker::Worker;
use crate::worker::open::{Asked, Facts, Judged, Open, Subject};

/// Whoever connected, and what is known of the connection.
pub(super) struct Visitor {
    /// The listener.
    pub(super) front: Arc<Front>,
    /// The name that was called by TLS, and its host; none in plain text.
    pub(super) called: Option<(Arc<str>, Arc<Host>)>,
    /// What policy is asked besides the request.
    pub(super) facts: Facts,
    /// The client's address as trusted load balancers tell it.
    pub(super) source: SocketAddr,
    /// The client's certificate, where it presented one.
    pub(super) certificate: Option<Certificate>,
    /// What the service is told of that.
    pub(super) introduction: Introduction,
}

/// Serves a connection to its end.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    open: &Open,
    stream: impl Socketed + 'static,
    version: Version,
    visitor: Visitor,
    record: &mut Record,
) -> Outcome {
    open.note(|about| about.protocol = version.as_str());
    open.prove(Rc::new(Subject { peer: None, judged: Judged::ByRequest(visitor.facts.clone()) }));
    let handler = Rc::new(Edge { worker: Rc::clone(worker), visitor, tunnel: RefCell::default() });
    let ended = serve::serve(worker, open, stream, version, &handler).await;
    record.detail = ended.detail;
    let begun = handler.tunnel.take();
    let (Some(near), Some(Begun { switched, asked })) = (ended.tunnel, begun) else { return ended.outcome };
    let subject = Rc::new(Subject { peer: None, judged: Judged::Request(asked) });
    tunnel::carry(worker, open, near, switched.far, Some(subject), Direction::Inbound, record).await
}

/// The handler of one connection's requests.
struct Edge {
    worker: Rc<Worker>,
    visitor: Visitor,
    tunnel: RefCell<Option<Begun>>,
}

/// A tunnel that the last answer began.
struct Begun {
    switched: Switched,
    asked: Box<Asked>,
}

impl Handler for Edge {
    async fn handle(self: Rc<Self>, request: Box<Request>) -> Response {
        let mut note = Note::new(Direction::Inbound, request.method(), request.headers());
        let mut answered = self.answer(request, &mut note).await;
        if let Ok(answer) = &mut answered {
            headers::remove_denial(answer.response.headers_mut());
        }
        let mut response =
            note.finish(&self.worker, self.visitor.source, None, &self.visitor.front.label, answered);
        // Over TLS alone (RFC 6797 §7.2), and whatever the answer is.
        if let Some(hsts) = self.visitor.called.as_ref().and_then(|(_, host)| host.hsts.clone()) {
            response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
        }
        response
    }

    fn became_tunnel(&self) -> bool {
        self.tunnel.borrow().is_some()
    }

    fn flow(&self) -> Flow {
        Flow::EDGE
    }
}

impl Edge {
    async fn answer(&self, mut request: Box<Request>, note: &mut Note) -> Result<Answer, Refusal> {
        forward::within_rate(&self.worker, self.visitor.front.rate.as_deref())?;
        let (mut parts, body) = (*request).into_parts();
        // An app behind may read `x_user` as `x-user`; whoever removes one would have to know of the other.
        if parts.headers.keys().any(|name| name.as_str().contains('_')) {
            return Err(Refusal::new(Fault::BadRequest, "a header's name has an underscore"));
        }
        let target = request::check(&mut parts, Some(Rules::Strict))?;
        note.host.clone_from(&target.host);
        let hop = Hop {
            source: self.visitor.source,
            secure: self.visitor.called.is_some(),
            trusted_hops: self.visitor.front.trusted_hops,
        };
        let forwarded = Forwarded::read(&parts.headers, &hop)?;
        let client = forwarded.client;
        // Whatever becomes of plain text otherwise: the issuer follows no rule but its own (RFC 8555 §8.3).
        if self.visitor.called.is_none()
            && let Some(page) = self.visitor.front.challenges.http(parts.uri.path())
        {
            return Ok(proof(&page, &self.visitor.front.label));
        }
        let host = self.host(&target.host)?;
        let switch = headers::end_hop_of_request(&mut parts, !body.is_empty())?;
        headers::remove_spoofed(&mut parts.headers);
        forwarded.tell(&mut parts.headers);
        headers::trace(&mut parts.headers);
        note.sees(&parts.uri, &parts.headers);
        if self.visitor.called.is_none() && host.plain == Plain::Redirect {
            return redirect(host, &target.host, &parts.uri, &self.visitor.front.label);
        }
        let admitted = self.admit(host, &parts)?;
        let token = admitted.as_ref().map(|admitted| &admitted.token);
        let policy = self.worker.shared.snapshots.policy.load_full();
        let policy = policy.ok_or_else(|| Refusal::new(Fault::NotReady, "no policy is held yet"))?;
        let facts = Facts { remote_ip: client, ..self.visitor.facts.clone() };
        self.judge(&policy, &facts, (&parts, &target), token, note)?;
        // Held on to, it would keep a replaced policy alive for as long as the service takes.
        drop(policy);
        let asked = switch.is_some().then(|| Asked {
            facts,
            method: parts.method.clone(),
            host: target.host,
            path: parts.uri.path().to_owned(),
            headers: parts.headers.clone(),
            token: token.cloned(),
        });
        if let Some(admitted) = &admitted {
            admitted.strip(&mut parts.headers, &mut parts.uri);
        }
        self.visitor.introduction.apply(&mut parts.headers, None);
        let route = host.routes.find(&parts.method, parts.uri.path(), &parts.headers);
        let route = route.ok_or_else(|| Refusal::new(Fault::NoRoute, "no route of the host matches"))?;
        rewrite(route, &mut parts.uri)?;
        let upstream = self.upstream(route)?;
        let to = To::Service(&upstream);
        *request = Request::from_parts(parts, body);
        let (Some(switch), Some(asked)) = (switch, asked) else {
            return self.send(&to, request, route).await;
        };
        let (answer, switched) = forward::switch(&self.worker, &to, request, switch).await?;
        *self.tunnel.borrow_mut() = switched.map(|switched| Begun { switched, asked: Box::new(asked) });
        Ok(answer)
    }

    /// The host of a request: over TLS the one that was called and no other, whose rules for clients have been kept.
    fn host(&self, name: &str) -> Result<&Arc<Host>, Refusal> {
        let misdirected = |why| Err(Refusal::new(Fault::Misdirected, why));
        match &self.visitor.called {
            Some((called, _)) if **called != *name => {
                misdirected("the host is not the name that TLS was opened for")
            }
            Some((_, host)) => {
                let still_good = match (&self.visitor.certificate, &host.way) {
                    (Some(certificate), Way::Terminate(server)) => {
                        certificate.still_good(server, self.worker.shared.snapshots.clock.now())
                    }
                    _ => true,
                };
                if still_good { Ok(host) } else { misdirected("the client's certificate is no longer good") }
            }
            None => {
                let found = self.visitor.front.hosts.find(name).filter(|host| host.plain != Plain::Refuse);
                found.ok_or_else(|| Refusal::new(Fault::NoRoute, "no host of this gateway has that name"))
            }
        }
    }

    /// The request's token, if it has one; one that does not hold ends the request.
    fn admit(&self, host: &Host, parts: &Parts) -> Result<Option<Admitted>, Refusal> {
        let now_ms = self.worker.shared.snapshots.clock.now_ms();
        host.jwt.admit(&parts.headers, parts.uri.query(), now_ms).map_err(|refused| {
            let fault = match refused.reason {
                Reason::KeysUnavailable => Fault::KeysUnavailable,
                _ => Fault::Unauthenticated,
            };
            let provider = refused.provider.as_deref().unwrap_or("none");
            let detail = format!("JWT: {} (provider {provider})", refused.reason.as_str());
            Refusal { challenge: refused.challenge(), ..Refusal::new(fault, detail) }
        })
    }

    fn judge(
        &self,
        policy: &CurrentPolicy,
        facts: &Facts,
        (parts, target): (&Parts, &Target),
        token: Option<&Token>,
        note: &mut Note,
    ) -> Result<(), Refusal> {
        let verdict = policy.decide_request(&Question {
            connection: facts.of(None, policy),
            method: parts.method.as_str(),
            host: &target.host,
            path: parts.uri.path(),
            headers: &parts.headers,
            token,
        });
        note.decided(policy, &verdict);
        if verdict.allow {
            return Ok(());
        }
        let denial = Some(ulid::Ulid::new().to_string());
        Err(Refusal { denial, ..Refusal::new(Fault::Denied, policy.policy().explain(&verdict)) })
    }

    fn upstream(&self, route: &Route) -> Result<Arc<Upstream>, Refusal> {
        let upstream = self.worker.shared.snapshots.services.load().of(&route.service).cloned();
        let unknown = || Refusal::new(Fault::NoEndpoint, "the control plane knows no service of this name");
        upstream.ok_or_else(unknown)
    }

    async fn send(&self, to: &To<'_>, request: Box<Request>, route: &Route) -> Result<Answer, Refusal> {
        let sending = forward::send(&self.worker, to, request);
        match route.timeout {
            None => sending.await,
            Some(limit) => tokio::time::timeout(limit, sending)
                .await
                .unwrap_or_else(|_| Err(Refusal::new(Fault::Timeout, "the route's timeout has passed"))),
        }
    }
}

/// Puts the route's prefix in place.
fn rewrite(route: &Route, uri: &mut Uri) -> Result<(), Refusal> {
    let path = route.rewritten(uri.path());
    if path == uri.path() {
        return Ok(());
    }
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    *uri = target.parse().map_err(|_| Refusal::new(Fault::Internal, "the rewritten path is no path"))?;
    Ok(())
}

/// The answer to an ACME server.
fn proof(page: &str, from: &Arc<str>) -> Answer {
    let mut response = Response::new(Body::whole(page.to_owned()));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Answer { response, from: Arc::clone(from) }
}

/// To the same place over TLS. Nothing behind the gateway is asked, so policy is not.
fn redirect(host: &Host, name: &str, uri: &Uri, from: &Arc<str>) -> Result<Answer, Refusal> {
    let port = match host.redirect.port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let target = uri.path_and_query().map_or("/", |t| t.as_str());
    let location = HeaderValue::try_from(format!("https://{name}{port}{target}"))
        .map_err(|_| Refusal::new(Fault::BadRequest, "the target cannot be redirected to"))?;
    let mut response = Response::default();
    *response.status_mut() =
        StatusCode::from_u16(host.redirect.code).unwrap_or(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(LOCATION, location);
    Ok(Answer { response, from: Arc::clone(from) })
}
