//! The identity thread: obtains the identity, keeps it fresh, and applies what the control plane pushes.
//!
//! It alone writes the snapshots. It holds no connection's time: when the control plane is away, traffic goes on with what
//! is held, and this thread keeps trying.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use postern_config::file::proxy::ProxyConfig;
use postern_config::id::TrustDomain;
use postern_config::wire::v1;
use tokio::time::{Instant, Interval};
use tokio_util::sync::CancellationToken;

use crate::clock::{Step, Steps};
use crate::readiness::{Missing, Readiness};
use crate::snapshot::Snapshots;
use crate::succession::{self, Pen};
use crate::telemetry::{Direction, Metrics};
use crate::tls::{Connector, Credentials, Standing, Tls};

mod apply;
mod begin;
pub mod cache;
#[cfg(feature = "tpm")]
mod chip;
pub mod control;
pub mod handshakes;
pub mod join;
mod key;
pub mod renewal;
#[cfg(test)]
mod tests;
mod ticket;

pub use begin::Setup;

use apply::Held;
use cache::Cache;
use control::{Connection, ControlError, Session};
use handshakes::Accounts;
use join::JoinSource;
use key::Issued;
use renewal::Schedule;
use ticket::Ticket;

/// How often clocks are compared and expiry is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Between tries to reach the control plane once a successor has the identity; most drains end before.
const SUCCEEDED: Duration = Duration::from_secs(60);

/// The shortest pause between two reports, whatever the control plane wants.
const REPORTS: Duration = Duration::from_millis(100);
/// Before a certificate is renewed again that was no good when it came.
const AGAIN: Duration = Duration::from_secs(1);

/// Why an identity cannot be obtained; the process ends with it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither a join string nor a usable cache.
    #[error(
        "this proxy has no identity and no join string. Create one with `postern token create --id spiffe://…` and pass it \
         with --join @FILE"
    )]
    NothingToBeginWith,
    /// The join string cannot be read.
    #[error(transparent)]
    Join(#[from] join::JoinSourceError),
    /// The control plane refused the token.
    #[error(
        "the control plane refused the join token: {0}. A token is good for one enrollment, and the identity that it \
         brought lived in the memory of the process that used it: create a new token with `postern token create --id …`, \
         or set `identity.cache` to survive restarts"
    )]
    TokenRefused(String),
    /// The cache cannot be trusted or written.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// The cache can be read, but peers would not believe what it holds.
    #[error("identity cache {}: what it holds cannot be used ({why}); delete it and enroll anew", path.display())]
    CacheUnusable {
        /// The directory.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What was issued cannot be used.
    #[error("the control plane's answer cannot be used: {0}")]
    Unusable(String),
}

/// The identity thread's state.
pub struct Driver {
    config: Arc<ProxyConfig>,
    snapshots: Arc<Snapshots>,
    tls: Tls,
    /// Demands the control plane; built once, for every connection to it.
    control: Connector,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    endpoints: Vec<v1::Announcement>,
    join: Option<JoinSource>,
    cache: Option<Cache>,
    address: String,
    trust_domain: TrustDomain,
    issued: Issued,
    held: Held,
    schedule: Schedule,
    steps: Steps,
    failures: u32,
    /// The last token that was spent or refused, so that a replaced join file is noticed.
    spent_token: Option<String>,
    /// The token that is being redeemed, with the key that every try brings.
    redeeming: Option<(String, key::Request)>,
    pen: Pen,
    /// The pen, while a renewal is under way.
    writing: Option<succession::Held>,
    /// The cache is behind, since another process held the pen.
    unsaved: bool,
    /// Handshakes by the authority of the certificate that was presented.
    accounts: Accounts,
    /// Set while the control plane wants to hear of them.
    reports: Option<Interval>,
}

impl Driver {
    /// Renews, watches and reconnects until `stop` is cancelled. From `leaving` on it announces nothing, so that peers look
    /// elsewhere while this proxy drains.
    pub async fn run(mut self, leaving: CancellationToken, stop: CancellationToken) {
        let mut session: Option<Session> = None;
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.go_on(&mut session, &leaving) => {}
        }
        if leaving.is_cancelled() {
            self.withdraw(&mut session).await;
            if let Some(session) = session {
                session.leave().await;
            }
        }
    }

    async fn go_on(&mut self, session: &mut Option<Session>, leaving: &CancellationToken) {
        let mut retry_at = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        loop {
            self.metrics.control_connected.set(i64::from(session.is_some()));
            let renew_in = self.schedule.wait(self.snapshots.clock.now_ms());
            let due = Instant::now() + renew_in;
            tokio::select! {
                _ = tick.tick() => {
                    if self.watch_clock() {
                        retry_at = Instant::now();
                    }
                    if self.unsaved {
                        self.save();
                    }
                }
                () = leaving.cancelled(), if self.may_withdraw() => self.withdraw(session).await,
                () = due_report(&mut self.reports) => {
                    if let Some(open) = session {
                        open.report(self.accounts.report(&self.metrics.handshake_totals(Direction::Outbound)));
                    }
                }
                message = next(session), if session.is_some() => match message {
                    Some(message) => self.take(session, &message).await,
                    None => {
                        *session = None;
                        retry_at = Instant::now() + self.pause();
                    }
                },
                () = tokio::time::sleep_until(due.max(retry_at)), if session.is_some() => {
                    if !self.take_pen() {
                        // Another process of this identity is about to take over, or has.
                        retry_at = Instant::now() + TICK;
                        continue;
                    }
                    let Some(mut open) = session.take() else { continue };
                    retry_at = match self.renew(&mut open.connection).await {
                        // The next session is opened with the new certificate.
                        Ok(()) => Instant::now(),
                        Err(error) => {
                            // Whoever is not renewed must hear of policies and revocations all the same.
                            *session = Some(open).filter(|_| error.leaves_the_stream());
                            Instant::now() + self.failed(&error, true)
                        }
                    };
                    self.writing = None;
                }
                () = tokio::time::sleep_until(retry_at), if session.is_none() => {
                    match self.connect().await {
                        Ok(opened) => *session = Some(opened),
                        // The successor's next certificate supersedes this one; asking again and again would look like theft.
                        Err(error) if self.pen.is_given_away() => {
                            tracing::info!(%error, "the control plane is the successor's now; draining without it");
                            retry_at = Instant::now() + SUCCEEDED;
                        }
                        Err(error) => {
                            retry_at = Instant::now() + self.failed(&error, renew_in.is_zero());
                            self.enroll_again().await;
                        }
                    }
                }
            }
        }
    }

    /// A successor announces the same endpoints in the same name; then they are no longer this process's to take back.
    fn may_withdraw(&self) -> bool {
        !self.endpoints.is_empty() && !self.pen.is_given_away()
    }

    async fn withdraw(&mut self, session: &mut Option<Session>) {
        if !self.may_withdraw() {
            return;
        }
        self.endpoints.clear();
        let Some(open) = session else { return };
        if let Err(error) = open.announce(v1::Announce::default()).await {
            tracing::warn!(%error, "the control plane does not take back what was announced; it will forget by itself");
            *session = None;
        }
    }

    async fn connect(&mut self) -> Result<Session, ControlError> {
        let hello = v1::Hello {
            instance: instance(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.held.generation(),
        };
        let announce = v1::Announce { endpoints: self.endpoints.clone() };
        // Whoever answers says anew whether it wants reports.
        self.reports = None;
        let mut connection = self.open_connection().await?;
        if !self.is_good_for_a_stream() && self.take_pen() {
            // Within the control plane's grace, or after a taint of its CA, the certificate may still ask for the next one.
            let renewed = self.renew(&mut connection).await;
            self.writing = None;
            renewed?;
            connection = self.open_connection().await?;
        }
        Session::open(connection, hello, announce).await
    }

    fn is_good_for_a_stream(&self) -> bool {
        let clock = &self.snapshots.clock;
        let usable = self.snapshots.usable_credentials();
        usable.is_some_and(|own| own.standing(&self.snapshots.trust.load(), clock.now()) == Standing::Good)
    }

    fn open_connection(&self) -> impl Future<Output = Result<Connection, ControlError>> {
        Connection::open(&self.control, &self.address)
    }

    async fn renew(&mut self, connection: &mut Connection) -> Result<(), ControlError> {
        let request = key::Request::new().map_err(ControlError::Local)?;
        let ttl_ms = ttl_ms(&self.config);
        let answer = connection.renew(request.csr.clone(), ttl_ms).await?;
        self.note_time(answer.server_time_ms);
        let issued = request.issued(answer.svid.unwrap_or_default());
        let earlier = std::mem::replace(&mut self.issued, issued);
        if let Err(why) = self.publish_identity() {
            self.issued = earlier;
            return Err(ControlError::Local(why));
        }
        self.failures = 0;
        self.metrics.renewals_ok.inc();
        Ok(())
    }

    /// Applies a push and acknowledges it, whichever way it went.
    async fn take(&mut self, session: &mut Option<Session>, message: &v1::WatchResponse) {
        self.note_time(message.server_time_ms);
        self.failures = 0;
        if let Some(every) = message.report_every_ms {
            let pause = Duration::from_millis(every).max(REPORTS);
            self.reports = (every > 0).then(|| tokio::time::interval(pause));
        }
        let result = self.apply(message);
        if message.renew_now {
            // After what came along: the certificate may be of an authority that it brought.
            tracing::info!("the control plane wants this certificate renewed now");
            self.schedule = self.schedule.due();
        }
        if let Err(why) = &result {
            tracing::error!(generation = message.generation, %why, "a push was refused; the last good state stays");
        }
        let Some(open) = session else { return };
        if let Err(error) = open.acknowledge(message.generation, result.err().unwrap_or_default()).await {
            tracing::warn!(%error, "the control plane takes no acknowledgements; connecting anew");
            *session = None;
        }
    }

    /// Puts a push in force, as a whole or not at all.
    fn apply(&mut self, message: &v1::WatchResponse) -> Result<(), String> {
        let changed = self.held.apply(message, &self.snapshots, &self.tls, &self.metrics, &self.readiness)?;
        if changed {
            if message.generation > 0 {
                self.metrics.generation.set(i64::try_from(message.generation).unwrap_or(i64::MAX));
            }
            self.judge_own(Duration::ZERO);
            self.save();
        }
        Ok(())
    }

    /// What is known now about this proxy's own certificate: one whose CA is no longer believed is renewed `after` a moment, and one
    /// that was revoked is presented to nobody any more.
    fn judge_own(&mut self, after: Duration) {
        let Some(own) = self.snapshots.credentials.load_full() else { return };
        match own.standing(&self.snapshots.trust.load(), self.snapshots.clock.now()) {
            Standing::Good => {}
            Standing::Orphan => {
                tracing::warn!(id = %own.id(), "the CA of this proxy's certificate is no longer believed; renewing it");
                self.schedule = self.schedule.due_in(after, self.snapshots.clock.now_ms());
            }
            Standing::Revoked => {
                tracing::error!(id = %own.id(), serial = own.serial(), "this identity was revoked; traffic is refused");
                self.snapshots.credentials.store(None);
                self.readiness.missing(Missing::Identity);
                self.snapshots.announce_change();
            }
        }
    }

    /// Validates what was issued, as a peer would, and swaps it in.
    fn publish_identity(&mut self) -> Result<(), String> {
        let trust = self.snapshots.trust.load();
        let clock = &self.snapshots.clock;
        let chain = self.issued.chain();
        let credentials = Credentials::new(chain, self.issued.key(), &trust.bundles, clock.unix_time())
            .map_err(|e| e.to_string())?;
        if credentials.id().trust_domain() != self.trust_domain {
            return Err(format!(
                "the certificate is for {}, outside {}",
                credentials.id(),
                self.trust_domain
            ));
        }
        if let Some(earlier) = self.snapshots.credentials.load_full()
            && earlier.id() != credentials.id()
        {
            let (issued, expected) = (credentials.id().clone(), earlier.id().clone());
            return Err(crate::tls::CredentialError::OtherIdentity { issued, expected }.to_string());
        }
        let not_after_ms = credentials.not_after().saturating_mul(1000);
        self.schedule = Schedule::new(clock.now_ms(), not_after_ms, self.issued.window(), rand::random());
        self.snapshots.renewal_ms.store(self.schedule.at_ms(), Ordering::Relaxed);
        tracing::info!(
            id = %credentials.id(),
            serial = credentials.serial(),
            not_after = credentials.not_after(),
            life_ms = not_after_ms - clock.now_ms(),
            renews_in_ms = self.schedule.wait(clock.now_ms()).as_millis() as u64,
            "identity in force"
        );
        let totals = self.metrics.handshake_totals(Direction::Outbound);
        self.accounts.switch(credentials.authority(), totals);
        self.snapshots.credentials.store(Some(Arc::new(credentials)));
        self.readiness.held(Missing::Identity);
        // It may come from a control plane that had not heard of a taint yet; asking again at once would meet the same one.
        self.judge_own(AGAIN);
        self.save();
        Ok(())
    }

    /// Takes the right to renew, if no other process of this identity has it; `writing` holds it.
    fn take_pen(&mut self) -> bool {
        self.writing = self.pen.try_take();
        self.writing.is_some()
    }

    /// Keeps the cache current; a cache that cannot be written does not stop the traffic.
    fn save(&mut self) {
        let Some(cache) = &self.cache else { return };
        let pen = self.pen.try_take();
        self.unsaved = pen.is_none() && self.writing.is_none();
        if self.unsaved {
            return;
        }
        if self.snapshots.credentials.load().is_none() {
            return;
        }
        let not_after = self.snapshots.credentials.load().as_ref().map_or(0, |c| c.not_after());
        if let Err(error) =
            cache.write(&self.address, &self.trust_domain, &self.issued, self.held.state(), not_after)
        {
            tracing::error!(%error, "the identity cache cannot be written; a restart will need a new token");
        }
    }

    /// Looks for jumps of the host's clock and for expiry. True asks for a try at once.
    fn watch_clock(&mut self) -> bool {
        let clock = &self.snapshots.clock;
        let step = self.steps.observe(clock.sample());
        clock.correct(self.steps.correction_ms());
        if self.snapshots.usable_credentials().is_none() {
            self.readiness.missing(Missing::Identity);
        } else {
            self.readiness.held(Missing::Identity);
        }
        match step {
            Step::Steady => return false,
            Step::Forward(ms) => {
                self.schedule = self.schedule.due();
                tracing::warn!(ahead_ms = ms, "the host's clock jumped ahead; renewing at once")
            }
            Step::Backward(ms) => tracing::error!(
                back_ms = ms,
                "the host's clock was set back; going on with the time as it was until the control plane confirms it"
            ),
        }
        self.metrics.clock_jumps.inc();
        matches!(step, Step::Forward(_))
    }

    fn note_time(&mut self, server_ms: i64) {
        if server_ms == 0 {
            return;
        }
        let sample = self.snapshots.clock.sample();
        self.metrics.clock_skew_ms.set(sample.host_ms.saturating_sub(server_ms));
        self.steps.confirm(sample, server_ms);
        self.snapshots.clock.correct(self.steps.correction_ms());
    }

    fn pause(&mut self) -> Duration {
        let pause = self.schedule.retry_after(self.failures, rand::random());
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// Notes a failed try; a renewal that was due counts as failed.
    fn failed(&mut self, error: &ControlError, due: bool) -> Duration {
        if due {
            self.metrics.renewals_failed.inc();
        }
        let pause = match error.retry_after() {
            Some(hint) => self.schedule.come_again(hint, rand::random()),
            None => self.pause(),
        };
        let left = self.snapshots.credentials.load().as_ref().map_or(0, |c| c.not_after())
            - self.snapshots.clock.now();
        let retry_ms = pause.as_millis() as u64;
        if left < 0 {
            tracing::error!(%error, retry_ms, "the certificate has expired and cannot be renewed; traffic is refused");
        } else {
            tracing::warn!(%error, retry_ms, seconds_left = left, "the control plane cannot be used; traffic goes on");
        }
        pause
    }

    /// Once expired, what the platform says is a way back in, and so is a join file that was given a new token.
    async fn enroll_again(&mut self) {
        if self.snapshots.usable_credentials().is_some() || self.pen.try_take().is_none() {
            return;
        }
        match Ticket::attested(&self.config.control) {
            Some(Ok(ticket)) => self.enroll_attested(&ticket).await,
            Some(Err(why)) => {
                tracing::error!(%why, "the certificate has expired, and nothing proves who this is")
            }
            None => self.enroll_by_new_token().await,
        }
    }

    async fn enroll_attested(&mut self, ticket: &Ticket) {
        if ticket.trust_domain != self.trust_domain {
            let (held, named) = (&self.trust_domain, &ticket.trust_domain);
            return tracing::error!(%held, %named, "`control.trust` names another trust domain than the one that was joined");
        }
        // One key for every enrollment of this process: the control plane has bound the pod to it, and to no other as long as
        // the token that it was shown first may live.
        let request = match self.redeeming.take() {
            Some((_, request)) => request,
            None => match key::Request::new() {
                Ok(request) => request,
                Err(why) => return tracing::error!(%why, "this proxy cannot enroll again"),
            },
        };
        match control::enroll(&self.address, ticket, &request, ttl_ms(&self.config), instance()).await {
            Ok(answer) => self.take_enrollment(answer),
            Err(error) => tracing::error!(%error, "what the platform says brought no identity"),
        }
        self.redeeming = Some((String::new(), request));
    }

    async fn enroll_by_new_token(&mut self) {
        let Some(join) = self.join.as_ref().and_then(JoinSource::reread) else { return };
        if self.spent_token.as_ref() == Some(&join.token_id) || join.trust_domain != self.trust_domain {
            return;
        }
        let request = match self.redeeming.take().filter(|(token, _)| *token == join.token_id) {
            Some((_, request)) => request,
            None => match key::Request::new() {
                Ok(request) => request,
                Err(why) => return tracing::error!(%why, "the new join token cannot be used"),
            },
        };
        let ticket = Ticket::from(&join);
        let answer =
            control::enroll(&self.address, &ticket, &request, ttl_ms(&self.config), instance()).await;
        self.redeeming = Some((join.token_id.clone(), request));
        if matches!(answer, Ok(_) | Err(ControlError::Refused(_))) {
            // Only an answer spends a token: it may have been written while the control plane was still away.
            self.spent_token = Some(join.token_id.clone());
            self.redeeming = None;
        }
        match answer {
            Ok(answer) => self.take_enrollment(answer),
            Err(error) => tracing::error!(%error, "the new join token brought no identity"),
        }
    }

    fn take_enrollment(&mut self, answer: control::Enrollment) {
        self.note_time(answer.server_time_ms);
        self.take_own_bundle(answer.bundle);
        let earlier = std::mem::replace(&mut self.issued, answer.issued);
        if let Err(why) = self.publish_identity() {
            self.issued = earlier;
            tracing::error!(%why, "the new identity cannot be used");
        }
    }

    /// Puts the own trust domain's bundle in force beside the others that are held: while this proxy could not hear of it,
    /// the root may have been replaced.
    fn take_own_bundle(&mut self, own: v1::Bundle) {
        let mut bundles = self.held.state().bundles.clone().unwrap_or_default();
        bundles.bundles.retain(|held| held.trust_domain != own.trust_domain);
        bundles.bundles.push(own);
        let push = v1::WatchResponse { bundles: Some(bundles), ..v1::WatchResponse::default() };
        if let Err(why) = self.apply(&push) {
            tracing::error!(%why, "the bundle that came with the new identity was refused; the last good one stays");
        }
    }
}

async fn next(session: &mut Option<Session>) -> Option<v1::WatchResponse> {
    match session {
        Some(session) => session.next().await,
        None => None,
    }
}

/// The moment of the next report; never, where none is wanted.
async fn due_report(reports: &mut Option<Interval>) {
    match reports {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

fn ttl_ms(config: &ProxyConfig) -> u64 {
    u64::try_from(config.identity.ttl.as_duration().as_millis()).unwrap_or(u64::MAX)
}

/// How this proxy calls itself in `postern status`.
fn instance() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    format!("{}:{}", host.chars().take(100).collect::<String>(), std::process::id())
}
