//! A peer's requests: each spelled in one way, judged by identity, introduced to the app, and forwarded to it.

use std::cell::RefCell;
use std::rc::Rc;

use ::http::request::Parts;
use postern_config::file::proxy::Protocol;
use postern_config::policy::Request as Question;

use super::forward::{self, Answer, Switched, To, within_rate};
use super::note::Note;
use super::pool::Speaks;
use super::refuse::{Fault, Refusal, is_grpc};
use super::request::{self, Target};
use super::{Handler, Request, Response, Version, headers, serve, tunnel};
use crate::finish::Socketed;
use crate::inbound::{App, Caller};
use crate::policy::CurrentPolicy;
use crate::telemetry::{Direction, Outcome, Record};
use crate::worker::Worker;
use crate::worker::open::{Asked, Judged, Open, Subject};

/// Serves a peer's connection to its end.
pub async fn serve(
    worker: &Rc<Worker>,
    open: &Open,
    stream: impl Socketed + 'static,
    version: Version,
    caller: Box<Caller>,
    app: &App,
    record: &mut Record,
) -> Outcome {
    open.note(|about| about.protocol = version.as_str());
    let handler =
        Rc::new(Inbound { worker: Rc::clone(worker), app: app.clone(), caller, tunnel: RefCell::default() });
    let ended = serve::serve(worker, open, stream, version, &handler).await;
    record.detail = ended.detail;
    let begun = handler.tunnel.take();
    let (Some(near), Some(Begun { switched, asked })) = (ended.tunnel, begun) else { return ended.outcome };
    let peer = handler.caller.subject.peer.clone();
    let subject = Rc::new(Subject { peer, judged: Judged::Request(asked) });
    tunnel::carry(worker, open, near, switched.far, Some(subject), Direction::Inbound, record).await
}

/// The handler of one connection's requests.
struct Inbound {
    worker: Rc<Worker>,
    app: App,
    caller: Box<Caller>,
    tunnel: RefCell<Option<Begun>>,
}

/// A tunnel that the last answer began.
struct Begun {
    switched: Switched,
    asked: Box<Asked>,
}

impl Handler for Inbound {
    async fn handle(self: Rc<Self>, request: Box<Request>) -> Response {
        let mut note = Note::new(Direction::Inbound, request.method(), request.headers());
        let mut answered = self.answer(request, &mut note).await;
        if let Ok(answer) = &mut answered {
            headers::remove_denial(answer.response.headers_mut());
        }
        let Caller { source, subject, .. } = &*self.caller;
        note.finish(&self.worker, *source, subject.id(), &self.app.address, answered)
    }

    fn became_tunnel(&self) -> bool {
        self.tunnel.borrow().is_some()
    }
}

impl Inbound {
    async fn answer(&self, mut request: Box<Request>, note: &mut Note) -> Result<Answer, Refusal> {
        let (mut parts, body) = (*request).into_parts();
        let policy = self.worker.shared.snapshots.policy.load_full();
        let policy = policy.ok_or_else(|| Refusal::new(Fault::NotReady, "no policy is held yet"))?;
        within_rate(&self.worker, self.app.rate.as_deref())?;
        let target = request::check(&mut parts, Some(policy.path_rules()))?;
        note.host.clone_from(&target.host);
        let switch = headers::end_hop_of_request(&mut parts, !body.is_empty())?;
        headers::remove_spoofed(&mut parts.headers);
        headers::trace(&mut parts.headers);
        // Before policy, which may ask for any header: it sees those that the app gets.
        self.caller.introduction.apply(&mut parts.headers, self.caller.subject.id());
        note.sees(&parts.uri, &parts.headers);
        self.judge(&policy, &parts, &target, note)?;
        // Held on to, it would keep a replaced policy alive for as long as the app takes.
        drop(policy);
        let asked = switch.is_some().then(|| self.asked(&parts, target));
        let to = To::App(&self.app, self.speaks(&parts));
        *request = Request::from_parts(parts, body);
        let (Some(switch), Some(asked)) = (switch, asked) else {
            return forward::send(&self.worker, &to, request).await;
        };
        let (answer, switched) = forward::switch(&self.worker, &to, request, switch).await?;
        *self.tunnel.borrow_mut() = switched.map(|switched| Begun { switched, asked: Box::new(asked) });
        Ok(answer)
    }

    fn judge(
        &self,
        policy: &CurrentPolicy,
        parts: &Parts,
        target: &Target,
        note: &mut Note,
    ) -> Result<(), Refusal> {
        if self.caller.subject.peer.is_none() && !self.caller.facts.admits_anonymous(policy) {
            return Err(denied("this port no longer takes plain text".to_owned()));
        }
        let verdict = policy.decide_request(&Question {
            connection: self.caller.facts.of(self.caller.subject.id(), policy),
            method: parts.method.as_str(),
            host: &target.host,
            path: parts.uri.path(),
            headers: &parts.headers,
            token: None,
        });
        note.decided(policy, &verdict);
        if verdict.allow {
            return Ok(());
        }
        Err(denied(policy.policy().explain(&verdict)))
    }

    /// The question as it can be put again, for as long as the tunnel lasts.
    fn asked(&self, parts: &Parts, target: Target) -> Asked {
        Asked {
            facts: self.caller.facts.clone(),
            method: parts.method.clone(),
            host: target.host,
            path: parts.uri.path().to_owned(),
            headers: parts.headers.clone(),
            token: None,
        }
    }

    /// What the app gets: gRPC is HTTP/2 wherever it is spoken.
    fn speaks(&self, parts: &Parts) -> Speaks {
        if self.app.protocol == Protocol::Grpc || is_grpc(&parts.headers) {
            Speaks::Http2
        } else {
            Speaks::Http1
        }
    }
}

/// A refusal that can be asked about by its id.
fn denied(detail: String) -> Refusal {
    let denial = Some(ulid::Ulid::new().to_string());
    Refusal { denial, ..Refusal::new(Fault::Denied, detail) }
}
