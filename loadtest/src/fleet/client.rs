//! The life of one light client: enroll, watch, acknowledge, renew, come back; one task, no thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_config::bundle::BundleSet;
use postern_config::enroll::JoinString;
use postern_config::id::TrustDomain;
use postern_config::revocation::Revocations;
use postern_config::svid::{Peer, Role};
use postern_config::wire::v1;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, interval, sleep, sleep_until};

use super::Plan;
use super::ledger::{Event, Ledger, held};
use super::schedule::{come_again, renew_after, retry_after};
use super::trust::{Credentials, Expected, Trust};
use super::wire::{Connection, Enrolled, Fault, NewKey, Session, message};

/// What a client is told to do; a number that has grown is an order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Cut the connection and come back.
    pub(super) cut: u64,
    /// Renew now.
    pub(super) renew: u64,
    /// Stay away until told otherwise.
    pub(super) offline: bool,
    /// Whose handshakes fail in what this client reports.
    pub(super) failing: Failing,
}

/// A light client makes no handshakes with peers; what it reports of them is made up, and grows with every report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Failing {
    /// They end well.
    #[default]
    None,
    /// Those with a certificate of another authority than the first one that it had: peers do not take the new chain.
    WithNew,
    /// All of them.
    All,
    /// It reports nothing.
    Silent,
}

/// What a client shows of itself.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Its identity; empty before the first certificate.
    pub id: String,
    /// Serial of the certificate in use, as it stands there.
    pub serial: Vec<u8>,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
    /// The generation that it applied and acknowledged last.
    pub generation: u64,
    /// When it acknowledged that for the first time.
    pub acknowledged: Option<std::time::Instant>,
    /// Whether its stream is open.
    pub connected: bool,
    /// When each revocation that it holds first came: `id SPIFFE-ID`, `serial HEX` or `spki HEX`.
    pub revocations: HashMap<String, std::time::Instant>,
    /// The sequence of its own trust domain's bundle.
    pub bundle_sequence: u64,
    /// How many authorities that bundle holds.
    pub authorities: usize,
    /// Key identifier of the authority that signed the certificate in use.
    pub authority: Vec<u8>,
    /// How many reports of handshakes were sent.
    pub reports: u64,
    /// What the control plane refused it last; empty if nothing.
    pub refused: String,
}

/// Where a client shows itself, and what others need to judge it as a peer would.
#[derive(Debug, Default)]
pub(super) struct Seat {
    pub(super) view: Mutex<View>,
    pub(super) own: Mutex<Option<Arc<Credentials>>>,
    pub(super) trust: Mutex<Trust>,
}

pub(super) struct Client {
    pub(super) number: usize,
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) seat: Arc<Seat>,
    pub(super) orders: watch::Receiver<Orders>,
    /// Which of the plan's addresses is asked next.
    pub(super) place: usize,
}

/// What a client has once it has enrolled.
struct Identity {
    credentials: Arc<Credentials>,
    trust_domain: TrustDomain,
    trust: Trust,
    not_after: i64,
    life: Duration,
    renew_at: Instant,
    /// Whether its end has been counted already.
    ended: bool,
    /// The made-up handshakes, by the authority of the certificate that was presented.
    handshakes: Vec<v1::Handshakes>,
    reports: Option<Interval>,
}

impl Client {
    /// Lives until the fleet ends or its token is refused.
    pub(super) async fn live(mut self, join: JoinString, released: Instant) {
        let Some(mut identity) = self.begin(join, released).await else { return };
        let (mut session, mut failures, mut retry_at) = (None::<Session>, 0, Instant::now());
        let (mut known, mut trying_since) = (*self.orders.borrow_and_update(), Instant::now());
        let mut first_push_due = true;
        loop {
            held(&self.seat.view).connected = session.is_some();
            let offline = known.offline;
            if !identity.ended && identity.not_after < now() {
                identity.ended = true;
                self.ledger.note(Event::Expired);
                self.ledger.fault(self.number, "expired", &held(&self.seat.view).refused.clone());
            }
            tokio::select! {
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = *self.orders.borrow_and_update();
                    if wanted.renew != known.renew {
                        (identity.renew_at, retry_at) = (Instant::now(), Instant::now());
                    }
                    if wanted.cut != known.cut || wanted.offline != known.offline {
                        session = None;
                        (retry_at, trying_since, first_push_due) = (Instant::now(), Instant::now(), true);
                    }
                    known = wanted;
                }
                () = due(&mut identity.reports) => self.report(&mut identity, session.as_ref()),
                push = next(&mut session), if session.is_some() => {
                    let taken = match push {
                        Ok(push) => self.take(&mut identity, session.as_ref(), &push).await,
                        Err(fault) => Err(fault),
                    };
                    match taken {
                        Ok(()) => {
                            failures = 0;
                            if std::mem::take(&mut first_push_due) {
                                self.ledger.note(Event::Session(trying_since.elapsed()));
                            }
                        }
                        Err(fault) => {
                            session = None;
                            self.failed("stream", &fault);
                            if !first_push_due {
                                (trying_since, first_push_due) = (Instant::now(), true);
                            }
                            retry_at = Instant::now() + self.pause(Some(identity.life), &fault, &mut failures);
                        }
                    }
                }
                () = sleep_until(identity.renew_at.max(retry_at)), if session.is_some() => {
                    let Some(mut open) = session.take() else { continue };
                    let due = identity.renew_at;
                    match self.renew(&mut open.connection, &mut identity, due).await {
                        // The next stream is opened with the new certificate.
                        Ok(()) => {
                            (failures, retry_at) = (0, Instant::now());
                            (trying_since, first_push_due) = (Instant::now(), true);
                        }
                        Err(fault) => {
                            self.failed("renewal", &fault);
                            self.ledger.note(match fault {
                                Fault::Refused(_) => Event::RenewalRefused,
                                Fault::Away(_) | Fault::Busy(..) => Event::RenewalTriedAgain,
                            });
                            session = Some(open);
                            retry_at = Instant::now() + self.pause(Some(identity.life), &fault, &mut failures);
                        }
                    }
                }
                () = sleep_until(retry_at), if session.is_none() && !offline => {
                    match self.connect(&identity).await {
                        Ok(opened) => session = Some(opened),
                        Err(fault) => {
                            self.failed("connection", &fault);
                            self.ledger.note(Event::SessionTriedAgain);
                            retry_at = Instant::now() + self.pause(Some(identity.life), &fault, &mut failures);
                        }
                    }
                }
            }
        }
    }

    async fn begin(&mut self, join: JoinString, released: Instant) -> Option<Identity> {
        let mut failures = 0;
        let key = match NewKey::generate() {
            Ok(key) => key,
            Err(fault) => {
                self.failed("key", &fault);
                return None;
            }
        };
        loop {
            match self.enroll(&join, &key).await {
                Ok(Enrolled { credentials, bundle }) => {
                    let bundles = v1::BundleSet { bundles: vec![bundle] };
                    let mut identity = Identity {
                        credentials: Arc::new(Credentials {
                            chain: Vec::new(),
                            key: credentials.key.clone_key(),
                            window: None,
                        }),
                        trust_domain: join.trust_domain.clone(),
                        trust: Trust::default(),
                        not_after: 0,
                        life: Duration::ZERO,
                        renew_at: Instant::now(),
                        ended: false,
                        handshakes: Vec::new(),
                        reports: None,
                    };
                    let begun = self.trust(&mut identity, Some(&bundles), None).map_err(Fault::Away);
                    if let Err(fault) = begun.and_then(|()| self.put_on(&mut identity, credentials)) {
                        // A real proxy ends here, too: the token is spent.
                        self.failed("first certificate", &fault);
                        return None;
                    }
                    self.ledger.note(Event::Enrolled(released.elapsed()));
                    return Some(identity);
                }
                Err(Fault::Refused(why)) => {
                    self.ledger.note(Event::EnrollmentRefused);
                    self.ledger.fault(self.number, "enrollment refused", &why);
                    return None;
                }
                Err(fault) => {
                    self.failed("enrollment", &fault);
                    self.ledger.note(Event::EnrollmentTriedAgain);
                    sleep(self.pause(None, &fault, &mut failures)).await;
                }
            }
        }
    }

    async fn enroll(&self, join: &JoinString, key: &NewKey) -> Result<Enrolled, Fault> {
        let expected = Expected::Pinned { trust_domain: join.trust_domain.clone(), pins: join.pins.clone() };
        let mut connection = Connection::open(self.address(), expected, None).await?;
        connection.enroll(join, key, self.plan.ttl, format!("light-{}", self.number)).await
    }

    async fn connect(&self, identity: &Identity) -> Result<Session, Fault> {
        let expected =
            Expected::Known { trust: identity.trust.clone(), control: identity.trust_domain.control_plane() };
        let connection = Connection::open(self.address(), expected, Some(&identity.credentials)).await?;
        let hello = message(|hello: &mut v1::Hello| {
            hello.instance = format!("light-{}", self.number);
            hello.version = env!("CARGO_PKG_VERSION").to_owned();
            hello.generation = held(&self.seat.view).generation;
        });
        connection.watch(hello).await
    }

    async fn renew(
        &self,
        connection: &mut Connection,
        identity: &mut Identity,
        due: Instant,
    ) -> Result<(), Fault> {
        let next = connection.renew(NewKey::generate()?, self.plan.ttl).await?;
        self.put_on(identity, next)?;
        self.ledger.note(Event::Renewed(due.elapsed()));
        Ok(())
    }

    /// Judges a new certificate as a peer would, and uses it; one that cannot be used leaves the one before in force.
    fn put_on(&self, identity: &mut Identity, credentials: Credentials) -> Result<(), Fault> {
        let judged = identity.trust.verify(&credentials.chain, Role::Client);
        let Peer { id, serial, not_after, spkis, issuer_key_id, .. } = match judged {
            Ok(peer) => peer,
            Err(why) => {
                self.ledger.note(Event::Unusable);
                self.ledger.fault(self.number, "a certificate that cannot be used", &why.to_string());
                return Err(Fault::Away(why.to_string()));
            }
        };
        self.ledger.issued(&serial, spkis.first().map_or(&[], |s| s.as_slice()));
        let left = u64::try_from(not_after.saturating_sub(now())).unwrap_or(0);
        identity.life = Duration::from_secs(left);
        identity.renew_at = Instant::now() + renew_after(identity.life, credentials.window, rand::random());
        (identity.not_after, identity.ended) = (not_after, false);
        match identity.handshakes.iter().position(|h| h.issuer_key_id == issuer_key_id) {
            // The present one stands last.
            Some(at) => {
                let back = identity.handshakes.remove(at);
                identity.handshakes.push(back);
            }
            None => identity
                .handshakes
                .push(message(|h: &mut v1::Handshakes| h.issuer_key_id = issuer_key_id.clone())),
        }
        identity.credentials = Arc::new(credentials);
        *held(&self.seat.own) = Some(Arc::clone(&identity.credentials));
        let mut view = held(&self.seat.view);
        (view.id, view.serial, view.not_after) = (id.to_string(), serial, not_after);
        view.authority = issuer_key_id;
        view.refused.clear();
        Ok(())
    }

    /// Puts a push in force and acknowledges it, whichever way it went.
    async fn take(
        &self,
        identity: &mut Identity,
        session: Option<&Session>,
        push: &v1::WatchResponse,
    ) -> Result<(), Fault> {
        let held_nothing = push.bundles.is_none()
            && push.revocations.is_none()
            && push.policies.is_none()
            && push.services.is_none();
        let result = self.trust(identity, push.bundles.as_ref(), push.revocations.as_ref());
        match &result {
            Ok(()) if held_nothing => {}
            Ok(()) => self.ledger.note(Event::Push),
            Err(why) => {
                self.ledger.note(Event::PushRefused);
                self.ledger.fault(self.number, "a push that cannot be used", why);
            }
        }
        if let Some(every) = push.report_every_ms {
            let pause = Duration::from_millis(every).max(Duration::from_millis(100));
            identity.reports = (every > 0).then(|| interval(pause));
        }
        if push.renew_now {
            identity.renew_at = Instant::now();
        }
        let Some(session) = session else { return Ok(()) };
        session.acknowledge(push.generation, result.clone().err().unwrap_or_default()).await?;
        let mut view = held(&self.seat.view);
        if result.is_ok() && push.generation > view.generation {
            (view.generation, view.acknowledged) = (push.generation, Some(std::time::Instant::now()));
        }
        Ok(())
    }

    /// Reports handshakes with peers, ten more each time; the identity's first authority is the one that counts as old.
    fn report(&self, identity: &mut Identity, session: Option<&Session>) {
        let failing = self.orders.borrow().failing;
        let (Some(session), false) = (session, failing == Failing::Silent) else { return };
        let is_new = identity.handshakes.len() > 1;
        if let Some(present) = identity.handshakes.last_mut() {
            match failing {
                Failing::WithNew if !is_new => present.ok += 10,
                Failing::None => present.ok += 10,
                _ => {
                    let count = present.failed.first().map_or(0, |f| f.count) + 10;
                    present.failed = vec![message(|failed: &mut v1::FailedHandshakes| {
                        failed.reason = "unknown_issuer".to_owned();
                        failed.count = count;
                    })];
                }
            }
        }
        held(&self.seat.view).reports += 1;
        session.report(message(|report: &mut v1::Report| {
            report.since_ms = 1;
            report.handshakes = identity.handshakes.iter().rev().take(4).rev().cloned().collect();
        }));
    }

    /// Replaces what is trusted; all of it or nothing.
    fn trust(
        &self,
        identity: &mut Identity,
        bundles: Option<&v1::BundleSet>,
        revocations: Option<&v1::RevocationSet>,
    ) -> Result<(), String> {
        let mut next = identity.trust.clone();
        if let Some(message) = bundles {
            let bundles = BundleSet::try_from(message).map_err(|e| e.to_string())?;
            let own = identity.trust_domain.as_str();
            let sequence = |set: &BundleSet| set.of(own).map_or(0, |b| b.sequence());
            if bundles.of(own).is_none_or(|own| own.anchors().is_empty()) {
                return Err(format!("the bundle of {own} is missing or trusts nobody"));
            }
            let (before, after) = (sequence(&next.bundles), sequence(&bundles));
            if after < before {
                return Err(format!("the bundle goes back from sequence {before} to {after}"));
            }
            next.bundles = Arc::new(bundles);
        }
        if let Some(message) = revocations {
            next.revoked = Arc::new(Revocations::try_from(message).map_err(|e| e.to_string())?);
        }
        identity.trust = next.clone();
        let own = next.bundles.of(identity.trust_domain.as_str());
        let mut view = held(&self.seat.view);
        view.bundle_sequence = own.map_or(0, |b| b.sequence());
        view.authorities = own.map_or(0, |b| b.anchors().len());
        if let Some(message) = revocations {
            let at = std::time::Instant::now();
            let earlier = std::mem::take(&mut view.revocations);
            let since = |name: String| (name.clone(), earlier.get(&name).copied().unwrap_or(at));
            view.revocations = names(message).map(since).collect();
        }
        drop(view);
        *held(&self.seat.trust) = next;
        Ok(())
    }

    fn address(&self) -> std::net::SocketAddr {
        self.plan.addresses[self.place % self.plan.addresses.len()]
    }

    /// Notes a fault; whoever did not answer is not the next one to be asked.
    fn failed(&mut self, what: &str, fault: &Fault) {
        match fault {
            Fault::Away(why) => {
                self.place += 1;
                held(&self.seat.view).refused.clone_from(why);
            }
            // It stands in that one's line.
            Fault::Busy(why, _) => held(&self.seat.view).refused.clone_from(why),
            Fault::Refused(why) => {
                self.ledger.fault(self.number, &format!("{what} refused"), why);
                held(&self.seat.view).refused.clone_from(why);
            }
        }
    }

    fn pause(&self, life: Option<Duration>, fault: &Fault, failures: &mut u32) -> Duration {
        let pause = match fault {
            Fault::Busy(_, hint) => come_again(life, *hint, rand::random()),
            _ => retry_after(life, *failures, rand::random()),
        };
        *failures = failures.saturating_add(1);
        pause
    }
}

async fn next(session: &mut Option<Session>) -> Result<v1::WatchResponse, Fault> {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

async fn due(reports: &mut Option<Interval>) {
    match reports {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// How the entries of a revocation list are named in a [`View`].
fn names(message: &v1::RevocationSet) -> impl Iterator<Item = String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let serials = message.serials.iter().map(move |r| format!("serial {}", hex(&r.serial)));
    let identities = message.identities.iter().map(|r| format!("id {}", r.spiffe_id));
    serials.chain(identities).chain(message.spkis.iter().map(move |s| format!("spki {}", hex(s))))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
