//! Light clients that speak the proxies' real protocol, thousands of them in one process: one task each, no thread each.
//!
//! A light client enrolls with a join string (TLS 1.3, pinned root, proof over the exporter), keeps the bundle and
//! believes nobody else, watches and acknowledges, renews with new keys in the real proxy's window, and comes back with
//! the real proxy's pauses, at the next of several control planes. It carries no traffic and reads no policy.
//!
//! ```no_run
//! use postern_loadtest::fleet::{Admin, Fleet, Plan};
//! # fn main() -> anyhow::Result<()> {
//! let admin = Admin::at("pki".as_ref())?;
//! let joins = admin.tokens(200, "fleet", std::time::Duration::from_secs(600), |_| {})?;
//! let fleet = Fleet::start(Plan::towards(vec!["127.0.0.1:7443".parse()?]), joins)?;
//! assert!(fleet.wait(std::time::Duration::from_secs(30), |fleet| fleet.tally().sessions >= 200));
//! # Ok(()) }
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postern_config::enroll::JoinString;
use postern_config::svid::Role;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::mesh::until;

mod admin;
mod client;
mod command;
mod identity;
mod issuance;
mod ledger;
mod model;
mod report;
mod scenario;
mod schedule;
mod trust;
mod usage;
mod wire;

pub use admin::Admin;
pub use client::{Failing, View};
pub use command::{Command, Issuance, run, run_issuance};
pub use identity::{Obtained, obtain};
pub use ledger::{Kind, Tally};
pub(crate) use report::Progress;
pub(crate) use usage::room_for;

use client::{Client, Orders, Seat};
use ledger::{Ledger, held};

/// How a fleet behaves.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The control planes, tried in turn; each client begins at another one.
    pub addresses: Vec<SocketAddr>,
    /// The lifetime that clients ask for; zero takes the server's.
    pub ttl: Duration,
}

impl Plan {
    /// Towards these control planes, with the lifetime that they give.
    pub fn towards(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, ttl: Duration::ZERO }
    }
}

/// Running light clients. Dropped, they are gone at once, as after a power cut.
#[derive(Debug)]
pub struct Fleet {
    seats: Vec<Arc<Seat>>,
    orders: Vec<watch::Sender<Orders>>,
    ledger: Arc<Ledger>,
    plan: Arc<Plan>,
    runtime: Option<Runtime>,
}

impl Fleet {
    /// Lets one client go for each join string, all at once.
    pub fn start(plan: Plan, joins: Vec<JoinString>) -> Result<Self> {
        ensure!(!plan.addresses.is_empty(), "a fleet needs the address of a control plane");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fleet")
            .enable_all()
            .build()
            .context("no runtime for the fleet")?;
        let (ledger, plan) = (Arc::default(), Arc::new(plan));
        let mut fleet = Self { seats: Vec::new(), orders: Vec::new(), ledger, plan, runtime: Some(runtime) };
        fleet.add(joins);
        Ok(fleet)
    }

    /// Lets more clients go.
    pub fn add(&mut self, joins: Vec<JoinString>) {
        let Some(runtime) = &self.runtime else { return };
        let released = tokio::time::Instant::now();
        for join in joins {
            let (orders, heard) = watch::channel(Orders::default());
            let (seat, number) = (Arc::<Seat>::default(), self.seats.len());
            let client = Client {
                number,
                plan: Arc::clone(&self.plan),
                ledger: Arc::clone(&self.ledger),
                seat: Arc::clone(&seat),
                orders: heard,
                place: number,
            };
            self.seats.push(seat);
            self.orders.push(orders);
            // The runtime is shut down when the fleet is dropped, and every task with it.
            runtime.spawn(client.live(join, released));
        }
    }

    /// How many clients there are.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The counters so far.
    pub fn tally(&self) -> Tally {
        self.ledger.tally()
    }

    /// Every serial that was issued to this fleet, lower-case hex.
    pub fn serials(&self) -> Vec<String> {
        self.ledger.serials()
    }

    /// What each client shows of itself.
    pub fn views(&self) -> Vec<View> {
        self.seats.iter().map(|seat| held(&seat.view).clone()).collect()
    }

    /// One client's view.
    pub fn view(&self, client: usize) -> View {
        held(&self.seats[client].view).clone()
    }

    /// The latencies of one kind since they were last taken, in order of size.
    pub fn take_latencies(&self, kind: Kind) -> Vec<Duration> {
        let mut latencies = self.ledger.take(kind);
        latencies.sort_unstable();
        latencies
    }

    /// Cuts every connection; the clients come back as proxies do that lost a control plane.
    pub fn cut(&self) {
        self.order(|orders| orders.cut += 1);
    }

    /// Makes every client renew now.
    pub fn renew(&self) {
        self.order(|orders| orders.renew += 1);
    }

    /// Takes one client off the network, or lets it come back.
    pub fn offline(&self, client: usize, away: bool) {
        self.orders[client].send_modify(|orders| orders.offline = away);
    }

    /// What one client reports of handshakes with peers from now on.
    pub fn failing(&self, client: usize, failing: Failing) {
        self.orders[client].send_modify(|orders| orders.failing = failing);
    }

    fn order(&self, change: impl Fn(&mut Orders)) {
        self.orders.iter().for_each(|orders| orders.send_modify(&change));
    }

    /// Looks until `wanted` holds; false once `limit` has passed.
    pub fn wait(&self, limit: Duration, mut wanted: impl FnMut(&Self) -> bool) -> bool {
        until(limit, || wanted(self).then_some(())).is_some()
    }

    /// Waits until every client that is connected has acknowledged at least `generation`; gives how long after `since`
    /// each one did, in order of size.
    pub fn wait_for_generation(
        &self,
        generation: u64,
        since: Instant,
        limit: Duration,
    ) -> Result<Vec<Duration>> {
        let behind = |fleet: &Self| {
            let lag = |seat: &Arc<Seat>| held(&seat.view).generation < generation;
            fleet.seats.iter().filter(|seat| lag(seat)).count()
        };
        ensure!(
            self.wait(limit, |fleet| behind(fleet) == 0),
            "{} of {} clients have not acknowledged generation {generation} after {limit:?}",
            behind(self),
            self.len()
        );
        let took = |seat: &Arc<Seat>| {
            let at = held(&seat.view).acknowledged;
            at.map_or(Duration::ZERO, |at| at.saturating_duration_since(since))
        };
        let mut took: Vec<Duration> = self.seats.iter().map(took).collect();
        took.sort_unstable();
        Ok(took)
    }

    /// Asks whether `client` would accept `peer` as it presents itself now: `None` if it would, the reason otherwise.
    ///
    /// The same verifier that a real proxy asks in a handshake, with what both hold at this moment.
    pub fn would_refuse(&self, client: usize, peer: usize) -> Option<String> {
        let presented = held(&self.seats[peer].own).clone()?;
        let trust = held(&self.seats[client].trust).clone();
        trust.verify(&presented.chain, Role::Client).err().map(|why| why.to_string())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The quantile `q` (0 to 1) of values in order of size; zero where there is none.
pub fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().unwrap_or_default()
}
