//! Traffic from first to last: workers as threads, the acceptor on a thread of its own or, where there is one worker, on
//! that one's; and the stop in the order that [`crate::drain`] gives.

use std::time::Instant;

use postern_config::file::proxy::ProxyConfig;
use tokio_util::sync::CancellationToken;

use crate::drain::{Act, Drain, Event};
use crate::handover::Offers;
use crate::listen::admission::{Admission, Connections};
use crate::listen::{self, Acceptor, Listener, Stops};
use crate::readiness::{Missing, Readiness};
use crate::succession::Succession;
use crate::worker::show::Inquiry;
use crate::worker::{self, Handle, Shared};
use crate::{Error, on_thread, told};

/// By what the log knows the acceptor.
const ACCEPTOR: &str = "postern-accept";

/// What traffic is told from outside.
pub(crate) struct Wishes<'a> {
    /// Cancelled, the drain begins.
    pub(crate) shutdown: &'a CancellationToken,
    /// A successor may take the sockets over.
    pub(crate) succession: &'a Succession,
    /// The handles that it would get.
    pub(crate) offers: &'a Offers,
}

/// Starts acceptor and workers, waits for their end. `on_started` is called once connections are accepted.
pub(crate) async fn carry(
    listeners: Vec<Listener>,
    shared: &Shared,
    config: &ProxyConfig,
    readiness: &Readiness,
    wishes: Wishes<'_>,
    on_started: impl AsyncFnOnce(Vec<Inquiry>),
) -> Result<(), Error> {
    let count = match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    let kill = CancellationToken::new();
    // However this function is left, the workers end.
    let _workers_end = kill.clone().drop_guard();
    let (handles, seats): (Vec<_>, Vec<_>) = (0..count).map(worker::seat).unzip();
    let connections = Connections::new(config.limits.connections);
    let acceptor = Acceptor {
        connections: connections.clone(),
        admission: Admission::new(config.limits.handshakes_in_progress, config.limits.handshakes_per_source),
        workers: handles,
        telemetry: shared.telemetry.clone(),
    };
    let inquiries = acceptor.workers.iter().map(Handle::inquiry).collect();
    let stops = Stops { at_once: kill.clone(), succession: wishes.succession.clone(), ..Stops::default() };
    let deaf = CancellationToken::new();
    let accepting = {
        let (stops, at_its_end) = (stops.clone(), deaf.clone().drop_guard());
        move || async move {
            let _at_its_end = at_its_end;
            listen::run(listeners, acceptor, stops).await
        }
    };
    let mut threads = Vec::new();
    let mut seats = seats.into_iter();
    match (seats.next(), seats.len()) {
        // There is nothing to choose: a thread of its own would cost each connection two switches of threads.
        (Some(only), 0) => {
            let beside = || async { told(ACCEPTOR, accepting()).await };
            threads.push(only.start(shared.clone(), kill, beside)?);
        }
        (first, _) => {
            for seat in first.into_iter().chain(seats) {
                threads.push(seat.start(shared.clone(), kill.clone(), || std::future::ready(()))?);
            }
            threads.push(on_thread(ACCEPTOR, accepting)?);
        }
    }
    on_started(inquiries).await;
    let (ended, all_ended) = tokio::sync::oneshot::channel();
    let waiter = std::thread::Builder::new().name("postern-drain".to_owned()).spawn(move || {
        threads.into_iter().for_each(|t| drop(t.join()));
        // Nobody waits any more only where this process is being torn down.
        let _ = ended.send(());
    })?;
    let stop = Stop { readiness, shared, stops: &stops, connections: &connections, offers: wishes.offers };
    let drain = Drain::new(config.drain.pre_drain.as_duration(), config.drain.timeout.as_duration());
    let result = stop.follow(drain, wishes.shutdown, &deaf, all_ended).await;
    let _ = waiter.join();
    result
}

/// What the stop acts on.
struct Stop<'a> {
    readiness: &'a Readiness,
    shared: &'a Shared,
    stops: &'a Stops,
    connections: &'a Connections,
    offers: &'a Offers,
}

impl Stop<'_> {
    /// Waits for the wish to stop, then for the end of everything.
    async fn follow(
        &self,
        mut drain: Drain,
        shutdown: &CancellationToken,
        deaf: &CancellationToken,
        mut all_ended: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        let inbound_ended = async {
            self.stops.inbound_closed.cancelled().await;
            self.connections.no_inbound().await;
        };
        tokio::pin!(inbound_ended);
        let (mut asked, mut succeeded, mut inbound_has_ended) = (false, false, false);
        loop {
            let event = tokio::select! {
                biased;
                _ = &mut all_ended => return result,
                () = self.stops.succession.happened(), if !succeeded => {
                    succeeded = true;
                    Event::HandedOver
                }
                () = shutdown.cancelled(), if !asked => {
                    asked = true;
                    Event::Asked
                }
                // A proxy that accepts nothing must not go on looking ready.
                () = deaf.cancelled(), if !asked && !succeeded => {
                    asked = true;
                    result = Err(Error::Deaf);
                    Event::Deaf
                }
                // Not before: a proxy without an inbound listener has no peers to begin with.
                () = &mut inbound_ended, if self.stops.inbound.is_cancelled() && !inbound_has_ended => {
                    inbound_has_ended = true;
                    Event::InboundEnded
                }
                () = at(drain.deadline()) => Event::Tick,
            };
            for act in drain.on(event, Instant::now()) {
                self.act(*act);
            }
        }
    }

    fn act(&self, act: Act) {
        match act {
            Act::FailReadiness => {
                tracing::info!("no longer ready");
                self.readiness.missing(Missing::Draining);
            }
            Act::StopInbound => {
                tracing::info!("draining");
                self.offers.close();
                self.stops.inbound.cancel();
                self.shared.drain.cancel();
            }
            Act::StopOutbound => {
                self.stops.outbound.cancel();
                self.shared.drain_outbound.cancel();
            }
            Act::EndAll => {
                tracing::warn!("the drain's time is up; closing what is left");
                self.stops.at_once.cancel();
            }
        }
    }
}

/// Ends at `deadline`; never where there is none.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
