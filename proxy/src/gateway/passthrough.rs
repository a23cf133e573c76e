//! TLS that goes on undecrypted: judged by its name and addresses, then its bytes, the ClientHello first, to where its host leads.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use super::hosts::{Host, Way};
use crate::dial::{self, Miss};
use crate::finish::Socketed;
use crate::outbound;
use crate::relay::{Progress, relay};
use crate::telemetry::{Direction, Outcome, Record};
use crate::tls::Tcp;
use crate::worker::Worker;
use crate::worker::open::{Facts, Judged, Open, Subject};

/// Judges, connects and relays.
pub(super) async fn serve(
    worker: &Worker,
    open: &Open,
    tcp: Tcp,
    facts: Facts,
    host: &Host,
    record: &mut Record,
) -> Outcome {
    // An orderly end would look like an answer; whatever goes wrong before the relay ends in a reset.
    let refuse = |outcome| {
        tcp.reset();
        outcome
    };
    // Registered first: a push between the two would otherwise miss it.
    open.prove(Rc::new(Subject { peer: None, judged: Judged::Connection(facts.clone()) }));
    if !worker.admits(&facts, None, record) {
        return refuse(Outcome::Denied);
    }
    match &host.way {
        Way::Service(name) => {
            let upstream = worker.shared.snapshots.services.load().of(name).cloned();
            // The service's side has a place of its own in the register: its peer is asked about apart from the client.
            let leg = worker.upstreams.enter(None);
            let connecting = outbound::connect(worker, &leg, upstream.as_deref(), record);
            let connected = open.unless_closed(pin!(connecting)).await;
            match connected.unwrap_or_else(|cause| Err(cause.into())) {
                Err(outcome) => refuse(outcome),
                Ok((tls, endpoint)) => {
                    let mut carried = Carried { open, leg: Some(&leg), tcp, onward: tls };
                    let outcome = carried.run(worker, record).await;
                    worker.balance.borrow_mut().closed(&endpoint);
                    outcome
                }
            }
        }
        Way::Address(address) => {
            record.target = Arc::clone(address);
            let connected = open.unless_closed(pin!(dial::plain(worker, address))).await;
            match connected {
                Err(cause) => refuse(cause.into()),
                Ok(Ok(onward)) => Carried { open, leg: None, tcp, onward }.run(worker, record).await,
                Ok(Err(miss)) => {
                    record.detail = Some(match miss {
                        Miss::Unreachable(why) => format!("{address}: {why}"),
                        Miss::Refused(failure) | Miss::NoIdentity(failure) => failure.to_string(),
                        Miss::Full(over) => over.to_string(),
                    });
                    refuse(Outcome::NoEndpoint)
                }
            }
        }
        // `Front::called` leads nobody else here.
        Way::Terminate(_) | Way::Plain => refuse(Outcome::Denied),
    }
}

/// Both sides of a connection that is passed through.
struct Carried<'a, B> {
    open: &'a Open,
    /// The register's entry of the other side, where that is a peer of the mesh.
    leg: Option<&'a Open>,
    tcp: Tcp,
    onward: B,
}

impl<B: Socketed> Carried<'_, B> {
    async fn run(&mut self, worker: &Worker, record: &mut Record) -> Outcome {
        let counters = worker.shared.telemetry.metrics.bytes(Direction::Inbound);
        let progress = Both { open: self.open, leg: self.leg, counters };
        let leg_closed = async {
            match self.leg {
                Some(leg) => leg.closed().await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            // The wish to close goes first: a busy connection must not outrun it.
            biased;
            cause = self.open.closed() => cause.into(),
            cause = leg_closed => cause.into(),
            end = relay(&mut self.tcp, &mut self.onward, &progress) => match end {
                Ok(()) => return Outcome::Completed,
                Err(error) => {
                    record.detail = Some(format!("broken off: {}", error.kind()));
                    Outcome::Broken
                }
            },
        };
        self.tcp.reset();
        self.onward.reset();
        outcome
    }
}

/// Counts for both entries of the register.
struct Both<'a> {
    open: &'a Open,
    leg: Option<&'a Open>,
    counters: (&'a Counter, &'a Counter),
}

impl Progress for Both<'_> {
    fn moved(&self, up: usize, down: usize) {
        self.open.moved(up, down);
        if let Some(leg) = self.leg {
            leg.moved(up, down);
        }
        self.counters.0.inc_by(up as u64);
        self.counters.1.inc_by(down as u64);
    }
}
