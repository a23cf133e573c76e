//! One proxy's stream: pushes the newest generation whenever the proxy is ready for it, takes acknowledgements and
//! announcements, and beats so that either side notices when the other is gone.

use std::sync::Arc;
use std::time::Duration;

use postern_config::svid::Peer;
use postern_config::wire::v1::{self, watch_request::Message};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Plane;
use crate::ca::canary::{Counters, Tally};
use crate::clock::now_ms;
use crate::digest::hex;
use crate::publish::{Sections, Unannounced, Watching, World};
use crate::store::{Acknowledgement, Lineage, StoreError};

/// How often the server says that it is there, and what its clock shows.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a stream may wait for its first message.
const HELLO: Duration = Duration::from_secs(10);
/// How long a stream goes on whose certificate is no longer believed: long enough to hear of it.
const LAST: Duration = Duration::from_secs(1);
/// How many authorities one report may name.
const AUTHORITIES: usize = 4;
/// The longest key identifier that is taken, in bytes.
const KEY_ID: usize = 32;
/// Reasons of failed handshakes that a certificate can cause.
const CERTIFICATE: [&str; 7] = [
    "unknown_issuer",
    "bad_certificate",
    "bad_signature",
    "bad_spiffe_id",
    "wrong_trust_domain",
    "expired",
    "not_yet_valid",
];
/// The longest texts that a proxy may say about itself, in characters.
const MAX_TEXT: usize = 128;

type Outbound = mpsc::Sender<Result<v1::WatchResponse, Status>>;

/// Opens the stream; a task of its own carries it until `ending`.
pub fn open(
    plane: Arc<Plane>,
    lineage: Lineage,
    peer: Peer,
    inbound: Streaming<v1::WatchRequest>,
    ending: CancellationToken,
) -> impl Stream<Item = Result<v1::WatchResponse, Status>> + Send + use<> {
    // One message in flight: a proxy that does not read holds up this task alone, and finds the newest state afterwards.
    let (outbound, receiver) = mpsc::channel(1);
    let tasks = plane.streams.clone();
    tasks.spawn(async move {
        let worlds = plane.publisher.subscribe();
        let mut link = Link {
            worlds,
            plane,
            lineage,
            peer,
            inbound,
            outbound,
            sent: None,
            wanted: Vec::new(),
            refused: Vec::new(),
            reports_every: 0,
            is_told_to_renew: false,
        };
        let end = link.run(&ending).await;
        if let Some(status) = end {
            let _ = link.outbound.try_send(Err(status));
        }
    });
    ReceiverStream::new(receiver)
}

struct Link {
    plane: Arc<Plane>,
    lineage: Lineage,
    /// Who opened the stream, as its certificate proved it.
    peer: Peer,
    inbound: Streaming<v1::WatchRequest>,
    outbound: Outbound,
    worlds: watch::Receiver<Arc<World>>,
    /// What the proxy holds: the last push, and its number.
    sent: Option<(Sections, u64)>,
    /// What the proxy announces.
    wanted: Vec<v1::Announcement>,
    /// What of it was refused: asked again when services change, so that the order of `apply` and start does not matter.
    refused: Vec<Unannounced>,
    /// How often the proxy was asked to report, milliseconds; 0 for not at all.
    reports_every: u64,
    /// Whether the proxy was told to renew: once for each stream, since it opens another with the next certificate.
    is_told_to_renew: bool,
}

impl Link {
    async fn run(&mut self, ending: &CancellationToken) -> Option<Status> {
        let hello = tokio::select! {
            () = ending.cancelled() => return Some(Status::unavailable("ending")),
            hello = tokio::time::timeout(HELLO, self.inbound.message()) => hello,
        };
        let hello = match hello.ok()?.ok()??.message {
            Some(Message::Hello(hello)) => hello,
            _ => return Some(Status::invalid_argument("the first message has to be Hello")),
        };
        let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect::<String>();
        let said = Acknowledgement {
            lineage: self.lineage.id.clone(),
            instance: cut(&hello.instance),
            version: cut(&hello.version),
            generation: hello.generation,
            error: String::new(),
            last_seen: now_ms(),
            acked_at: 0,
            replica: self.plane.replica.clone(),
        };
        let watching = self.plane.proxies.enter(said.clone(), &self.plane.metrics);
        // Before anything is announced: whichever replica held the stream before sees that it is gone from there.
        if let Err(error) = self.enter(&said).await {
            tracing::error!(%error, "a stream could not be recorded");
        }
        let end = self.exchange(&watching, ending).await;
        self.leave(&watching).await;
        end
    }

    async fn exchange(&mut self, watching: &Watching, ending: &CancellationToken) -> Option<Status> {
        self.worlds.mark_changed();
        let mut beats = heartbeat();
        let (mut outdated, mut silent, mut wanted) = (false, false, false);
        let mut last: Option<(tokio::time::Instant, Status)> = None;
        loop {
            let over = last.as_ref().map_or_else(tokio::time::Instant::now, |(over, _)| *over);
            tokio::select! {
                () = ending.cancelled() => return Some(Status::unavailable("ending")),
                () = watching.replaced.cancelled() => {
                    return Some(Status::aborted("a newer stream of this enrollment took over"));
                }
                () = tokio::time::sleep_until(over), if last.is_some() => return last.map(|(_, status)| status),
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => if let Some(status) = self.hear(watching, message).await { return Some(status) },
                    Ok(None) | Err(_) => return None,
                },
                changed = self.worlds.changed() => {
                    changed.ok()?;
                    // Whoever is cut off hears of it first: a proxy has to stop presenting what was revoked, and to renew
                    // what lost its CA.
                    if let Some(status) = self.recheck() && last.is_none() {
                        last = Some((tokio::time::Instant::now() + LAST, status));
                    }
                    outdated = self.is_outdated();
                    wanted = self.wants_more();
                    self.announce_again().await;
                }
                _ = beats.tick() => silent = true,
                permit = self.outbound.clone().reserve_owned(), if outdated || silent || wanted => {
                    let mut response = if outdated { self.next_push() } else { self.beat() };
                    self.want(&mut response);
                    permit.ok()?.send(Ok(response));
                    (outdated, silent, wanted) = (false, false, false);
                    beats.reset();
                }
            }
        }
    }

    /// Why the certificate that opened this stream is no longer believed, if it is not.
    fn recheck(&self) -> Option<Status> {
        let world = Arc::clone(&self.worlds.borrow());
        let error = self.peer.recheck(&world.bundles, &world.revocations, now_ms() / 1000).err()?;
        tracing::info!(id = %self.lineage.spiffe_id, reason = %error.reason(), "a stream is about to end");
        Some(Status::permission_denied(error.to_string()))
    }

    fn is_outdated(&self) -> bool {
        self.sent.as_ref().is_none_or(|(_, generation)| *generation != self.worlds.borrow().generation)
    }

    /// The newest generation, as what changed for this proxy since its last one.
    fn next_push(&mut self) -> v1::WatchResponse {
        let world = Arc::clone(&self.worlds.borrow());
        let root = self.plane.publisher.root_namespace();
        let sections = world.sections(&self.lineage.spiffe_id, &self.lineage.labels, root);
        let response = sections.since(self.sent.as_ref().map(|(s, _)| s), world.generation, now_ms());
        self.sent = Some((sections, world.generation));
        response
    }

    fn beat(&self) -> v1::WatchResponse {
        let generation = self.sent.as_ref().map_or(0, |(_, generation)| *generation);
        v1::WatchResponse { generation, server_time_ms: now_ms(), ..v1::WatchResponse::default() }
    }

    /// Whether the proxy shall report at another pace, or renew at once: an authority is on trial, or was withdrawn.
    fn wants_more(&self) -> bool {
        self.worlds.borrow().trials.report_every_ms() != self.reports_every || self.wants_renewal()
    }

    fn wants_renewal(&self) -> bool {
        let issuer = hex(&self.peer.issuer_key_id);
        let trials = &self.worlds.borrow().trials;
        !self.is_told_to_renew && trials.wants_renewal(&self.lineage.id, &issuer, &self.plane.replica)
    }

    fn want(&mut self, response: &mut v1::WatchResponse) {
        let every = self.worlds.borrow().trials.report_every_ms();
        response.report_every_ms = (every != self.reports_every).then_some(every);
        response.renew_now = self.wants_renewal();
        (self.reports_every, self.is_told_to_renew) = (every, self.is_told_to_renew || response.renew_now);
    }

    async fn hear(&mut self, watching: &Watching, message: v1::WatchRequest) -> Option<Status> {
        match message.message {
            Some(Message::Ack(ack)) => {
                self.plane.proxies.acknowledge(watching, ack.generation, &ack.error, now_ms());
                None
            }
            Some(Message::Announce(announce)) => {
                self.wanted = announce.endpoints;
                self.announce(false).await;
                None
            }
            Some(Message::Report(report)) => {
                self.plane.proxies.report(watching, counters(report));
                None
            }
            Some(Message::Hello(_)) => Some(Status::invalid_argument("Hello is said once")),
            None => Some(Status::invalid_argument("empty message")),
        }
    }

    /// Services may have come that were missing when this proxy announced itself for them.
    async fn announce_again(&mut self) {
        let world = Arc::clone(&self.worlds.borrow());
        if self.refused.iter().any(|r| world.owner(&r.service) == Some(&self.lineage.spiffe_id)) {
            self.announce(true).await;
        }
    }

    async fn announce(&mut self, quiet: bool) {
        match self.plane.publisher.announce(&self.lineage, &self.wanted, quiet).await {
            Ok(refused) => {
                for Unannounced { service, reason } in refused.iter().filter(|_| !quiet) {
                    tracing::warn!(id = %self.lineage.spiffe_id, %service, reason, "an announced endpoint is refused");
                    self.plane.metrics.refused("announce", reason);
                }
                self.refused = refused;
            }
            Err(error) => tracing::error!(%error, "an announcement could not be recorded"),
        }
    }

    async fn enter(&self, said: &Acknowledgement) -> Result<(), StoreError> {
        let mut change = self.plane.store.change_rows().await?;
        change.put_acknowledgement(said).await?;
        change.commit().await
    }

    async fn leave(&self, watching: &Watching) {
        // A newer stream of this lineage has taken the announcements over, here or on another replica; they are not ours to release.
        let Some(said) = self.plane.proxies.leave(watching, &self.plane.metrics) else { return };
        let saved = async {
            let mut change = self.plane.store.change_rows().await?;
            if change.disconnect(&said).await? {
                self.plane.publisher.release(&mut change, &watching.lineage).await?;
            }
            change.commit().await
        };
        if let Err(error) = saved.await {
            tracing::error!(%error, "the end of a stream could not be recorded");
        }
    }
}

/// What counts of a report: so many authorities, and those failures alone that a certificate can cause. Neither a peer that is away
/// nor a stranger says anything about an authority.
fn counters(report: v1::Report) -> (i64, Counters) {
    let tally = |handshakes: &v1::Handshakes| {
        let by_certificate = handshakes.failed.iter().filter(|f| CERTIFICATE.contains(&f.reason.as_str()));
        let failed = by_certificate.fold(0_u64, |sum, f| sum.saturating_add(f.count));
        Tally { ok: handshakes.ok, failed }
    };
    let known = report.handshakes.iter().take(AUTHORITIES).filter(|h| h.issuer_key_id.len() <= KEY_ID);
    (report.since_ms, known.map(|h| (hex(&h.issuer_key_id), tally(h))).collect())
}

fn heartbeat() -> Interval {
    let mut beats = tokio::time::interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}
