//! The app's own requests, each to an endpoint of the listener's service that proves the expected identity.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::forward::{self, Answer, Switched, To, within_rate};
use super::note::Note;
use super::refuse::{Fault, Refusal};
use super::{Handler, Request, Response, Version, headers, request, serve, tunnel};
use crate::finish::Socketed;
use crate::outbound::{Destination, Exit};
use crate::telemetry::{Direction, Outcome, Record};
use crate::upstream::rate::RateLimit;
use crate::worker::Worker;
use crate::worker::open::Open;

/// Serves a connection of the app to its end.
pub async fn serve(
    worker: &Rc<Worker>,
    open: &Open,
    stream: impl Socketed + 'static,
    version: Version,
    exit: &Exit,
    record: &mut Record,
) -> Outcome {
    open.note(|about| about.protocol = version.as_str());
    let source = record.source;
    let handler = Rc::new(Outbound {
        worker: Rc::clone(worker),
        to: exit.to.clone(),
        rate: exit.rate.clone(),
        source,
        tunnel: RefCell::default(),
    });
    let ended = serve::serve(worker, open, stream, version, &handler).await;
    record.detail = ended.detail;
    let begun = handler.tunnel.take();
    match (ended.tunnel, begun) {
        (Some(near), Some(Switched { far, peer, permits: _permits })) => {
            tunnel::carry(worker, open, near, far, peer, Direction::Outbound, record).await
        }
        _ => ended.outcome,
    }
}

/// The handler of one connection's requests.
struct Outbound {
    worker: Rc<Worker>,
    to: Destination,
    rate: Option<Arc<RateLimit>>,
    source: SocketAddr,
    tunnel: RefCell<Option<Switched>>,
}

impl Handler for Outbound {
    async fn handle(self: Rc<Self>, request: Box<Request>) -> Response {
        let mut note = Note::new(Direction::Outbound, request.method(), request.headers());
        let upstream = self.to.upstream(&self.worker);
        let expected = upstream.as_ref().map(|u| u.expected.clone());
        let answered = match upstream {
            Some(upstream) => self.answer(&To::Service(&upstream), request, &mut note).await,
            None => Err(Refusal::new(Fault::NoEndpoint, "the control plane knows no service of this name")),
        };
        note.finish(&self.worker, self.source, expected.as_ref(), self.to.name(), answered)
    }

    fn became_tunnel(&self) -> bool {
        self.tunnel.borrow().is_some()
    }
}

impl Outbound {
    async fn answer(
        &self,
        to: &To<'_>,
        mut request: Box<Request>,
        note: &mut Note,
    ) -> Result<Answer, Refusal> {
        let (mut parts, body) = (*request).into_parts();
        within_rate(&self.worker, self.rate.as_deref())?;
        // The path is the receiver's to spell: it judges by it.
        let target = request::check(&mut parts, None)?;
        note.host = target.host;
        let switch = headers::end_hop_of_request(&mut parts, !body.is_empty())?;
        headers::remove_spoofed(&mut parts.headers);
        headers::trace(&mut parts.headers);
        note.sees(&parts.uri, &parts.headers);
        *request = Request::from_parts(parts, body);
        let Some(switch) = switch else {
            return forward::send(&self.worker, to, request).await;
        };
        let (answer, begun) = forward::switch(&self.worker, to, request, switch).await?;
        *self.tunnel.borrow_mut() = begun;
        Ok(answer)
    }
}
