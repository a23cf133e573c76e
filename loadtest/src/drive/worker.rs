//! One thread of the rig: lanes that play operations, a pacer that says when they are due, a tally of what came of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use super::pace::Pace;
use super::{Bucket, Failure, Load, Negotiated, Outcome, Plan, Reason, Rig};
use crate::measure::{Cost, Histogram};

/// Stretches of the measured time in results.
const BUCKETS: u32 = 100;
/// … which are not shorter than this: shorter ones hold noise.
const SHORTEST_BUCKET: Duration = Duration::from_millis(50);
/// After a failure in the closed loop, so that nobody is asked ten thousand times a second why he refuses.
const AFTER_FAILURE: Duration = Duration::from_millis(1);
/// A rig that is later than this at its 99th percentile, or busier than that, is said to have been too slow.
const TOO_LATE: Duration = Duration::from_millis(1);
const TOO_BUSY: f64 = 0.9;

/// Longer than anything here lasts.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// What a scenario does again and again.
pub(crate) trait Operation: 'static {
    /// What it keeps between two operations, such as a connection; thrown away after a failure.
    type Kept: Default + 'static;

    /// Does it once.
    fn once(&self, lane: usize, kept: &mut Self::Kept) -> impl Future<Output = Result<Done, Failure>>;

    /// What TLS agreed on, once there was a connection.
    fn negotiated(&self) -> Negotiated;
}

/// What one operation was.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
    pub(crate) requests: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// When it was over, if that was before the operation ended: what follows is no latency.
    pub(crate) at: Option<Instant>,
}

/// Sums of what ended within the measured time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
    pub(crate) requests: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Tally {
    fn add(&mut self, done: Done) {
        self.operations += 1;
        self.handshakes += done.handshakes;
        self.resumed += done.resumed;
        self.requests += done.requests;
        self.sent += done.sent;
        self.received += done.received;
    }

    fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.requests += other.requests;
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// The moments of a measurement, the same for all threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(super) start: Instant,
    pub(super) warm: Instant,
    pub(super) end: Instant,
}

impl Clock {
    pub(super) fn new(plan: &Plan, start: Instant) -> Self {
        let warm = start + plan.warm_up;
        Self { start, warm, end: warm + plan.duration }
    }

    /// From now on, for as long as it takes.
    pub(crate) fn open_ended() -> Self {
        let now = Instant::now();
        Self { start: now, warm: now, end: now + FOR_EVER }
    }

    fn holds(&self, at: Instant) -> bool {
        self.warm <= at && at < self.end
    }
}

/// What one thread, or all of them, saw.
pub(crate) struct Seen {
    pub(crate) completed: Tally,
    due: u64,
    failures: BTreeMap<Reason, u64>,
    examples: BTreeMap<Reason, String>,
    latency: Histogram,
    late: Histogram,
    width: Duration,
    buckets: Vec<Bucket>,
    pub(crate) negotiated: Negotiated,
}

impl Seen {
    pub(crate) fn new(plan: &Plan) -> Self {
        let width = (plan.duration / BUCKETS).max(SHORTEST_BUCKET);
        let count = plan.duration.as_nanos().div_ceil(width.as_nanos()) as u64;
        let millis = |time: Duration| time.as_millis() as u64;
        let bucket = |n: u64| {
            let at = width * n as u32;
            let width_ms = millis(width.min(plan.duration.saturating_sub(at)));
            Bucket { at_ms: millis(at), width_ms, ..Bucket::default() }
        };
        Self {
            completed: Tally::default(),
            due: 0,
            failures: BTreeMap::new(),
            examples: BTreeMap::new(),
            latency: Histogram::new(),
            late: Histogram::new(),
            width,
            buckets: (0..count).map(bucket).collect(),
            negotiated: Negotiated::default(),
        }
    }

    pub(crate) fn record(
        &mut self,
        clock: Clock,
        intended: Instant,
        ended: Instant,
        result: Result<Done, Failure>,
    ) {
        if let Ok(done) = &result
            && clock.holds(ended)
        {
            self.completed.add(*done);
        }
        if !clock.holds(intended) {
            return;
        }
        self.due += 1;
        let at = intended.saturating_duration_since(clock.warm).as_nanos() / self.width.as_nanos();
        let bucket = self.buckets.get_mut(at as usize);
        match result {
            Ok(done) => {
                let took = done.at.unwrap_or(ended).saturating_duration_since(intended);
                self.latency.record(took);
                if let Some(bucket) = bucket {
                    bucket.succeeded += 1;
                    bucket.slowest_us = bucket.slowest_us.max(took.as_secs_f64() * 1e6);
                }
            }
            Err(failure) => {
                *self.failures.entry(failure.reason).or_default() += 1;
                self.examples.entry(failure.reason).or_insert(failure.detail);
                if let Some(bucket) = bucket {
                    bucket.failed += 1;
                }
            }
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.completed.merge(other.completed);
        self.due += other.due;
        for (reason, count) in &other.failures {
            *self.failures.entry(*reason).or_default() += count;
        }
        for (reason, example) in &other.examples {
            self.examples.entry(*reason).or_insert_with(|| example.clone());
        }
        self.latency.add(&other.latency);
        self.late.add(&other.late);
        for (bucket, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            bucket.succeeded += theirs.succeeded;
            bucket.failed += theirs.failed;
            bucket.slowest_us = bucket.slowest_us.max(theirs.slowest_us);
        }
        if self.negotiated == Negotiated::default() {
            self.negotiated = other.negotiated.clone();
        }
    }

    pub(crate) fn outcome(self, plan: &Plan, cost: Option<Cost>, rig_cpu: Duration) -> Outcome {
        let threads = plan.workers();
        let is_open = matches!(plan.load, Load::Open { .. });
        let late = is_open.then(|| self.late.quantile_us(0.99)).flatten();
        let busy = rig_cpu.as_secs_f64() / plan.duration.as_secs_f64() / threads as f64;
        let mut notes = Vec::new();
        if late.is_some_and(|late| late > TOO_LATE.as_secs_f64() * 1e6) {
            notes.push("the rig itself sent late: give it more CPUs or a lower rate before you believe the latencies".to_owned());
        }
        if busy > TOO_BUSY {
            notes.push(
                "the rig's own threads were busy all the time: the server may be faster than this".to_owned(),
            );
        }
        if plan.scenario.resumes() && self.completed.resumed == 0 {
            notes.push(
                "nothing was resumed: the server gives no tickets, or does not take them back".to_owned(),
            );
        }
        Outcome {
            plan: plan.clone(),
            negotiated: self.negotiated,
            due: self.due,
            succeeded: self.due - self.failures.values().sum::<u64>(),
            failures: self.failures,
            examples: self.examples,
            rate: self.completed.operations as f64 / plan.duration.as_secs_f64(),
            handshakes: self.completed.handshakes,
            resumed: self.completed.resumed,
            requests: self.completed.requests,
            bytes_sent: self.completed.sent,
            bytes_received: self.completed.received,
            latency: self.latency.summary(),
            over_time: self.buckets,
            cost,
            rig: Rig { threads, cpu_seconds: rig_cpu.as_secs_f64(), busy, late_p99_us: late },
            notes,
        }
    }
}

/// This thread's share of the plan.
struct Worker {
    plan: Plan,
    clock: Clock,
    /// Intended starts that no lane has taken.
    queue: RefCell<VecDeque<Instant>>,
    busy: Cell<usize>,
    paced_out: Cell<bool>,
    /// One permit for each intended start; the last ones say that there are no more.
    due: Notify,
    seen: RefCell<Seen>,
}

/// Plays thread `number` of `workers` to the end.
pub(crate) fn play<O: Operation>(
    plan: &Plan,
    operation: O,
    clock: Clock,
    number: usize,
    workers: usize,
) -> Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let worker = Rc::new(Worker {
        plan: plan.clone(),
        clock,
        queue: RefCell::default(),
        busy: Cell::new(0),
        paced_out: Cell::new(false),
        due: Notify::new(),
        seen: RefCell::new(Seen::new(plan)),
    });
    let operation = Rc::new(operation);
    let share = |all: usize| (all / workers + usize::from(number < all % workers)).max(1);
    let lanes = match plan.load {
        Load::Closed { clients } => share(clients),
        Load::Open { .. } if plan.scenario.keeps_connections() => share(plan.connections * plan.streams),
        Load::Open { .. } => share(plan.outstanding),
    };
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        for lane in 0..lanes {
            tasks.spawn_local(run_lane(Rc::clone(&worker), Rc::clone(&operation), lane));
        }
        if let Load::Open { rate } = plan.load {
            worker.pace(rate, number, workers, share(plan.outstanding)).await.context("no timer")?;
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a lane of the rig panicked")?;
        }
        anyhow::Ok(())
    })?;
    let mut seen = worker.seen.replace(Seen::new(plan));
    seen.negotiated = operation.negotiated();
    Ok(seen)
}

async fn run_lane<O: Operation>(worker: Rc<Worker>, operation: Rc<O>, lane: usize) {
    let mut kept = O::Kept::default();
    let is_closed = matches!(worker.plan.load, Load::Closed { .. });
    while let Some(intended) = worker.next().await {
        let deadline = intended + worker.plan.deadline;
        let result = match timeout_at(deadline.into(), operation.once(lane, &mut kept)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(Reason::Timeout, format!("no end within {:?}", worker.plan.deadline))),
        };
        let has_failed = result.is_err();
        worker.seen.borrow_mut().record(worker.clock, intended, Instant::now(), result);
        worker.busy.set(worker.busy.get() - 1);
        if has_failed {
            kept = O::Kept::default();
            if is_closed {
                sleep(AFTER_FAILURE).await;
            }
        }
    }
}

impl Worker {
    /// The intended start of the next operation; none at the end.
    async fn next(&self) -> Option<Instant> {
        let taken = match self.plan.load {
            Load::Closed { .. } => {
                let now = Instant::now();
                if now < self.clock.start {
                    tokio::time::sleep_until(self.clock.start.into()).await;
                }
                let now = Instant::now();
                (now < self.clock.end).then_some(now)
            }
            Load::Open { .. } => self.take().await,
        };
        if taken.is_some() {
            self.busy.set(self.busy.get() + 1);
        }
        taken
    }

    async fn take(&self) -> Option<Instant> {
        loop {
            if let Some(intended) = self.queue.borrow_mut().pop_front() {
                return Some(intended);
            }
            if self.paced_out.get() {
                return None;
            }
            self.due.notified().await;
        }
    }

    /// Puts intended starts into the queue when they are due, this thread's share of them.
    async fn pace(
        &self,
        rate: f64,
        number: usize,
        workers: usize,
        outstanding: usize,
    ) -> std::io::Result<()> {
        let pace = Pace::new()?;
        for n in 0_u64.. {
            // From the start each time: sums of rounded intervals drift.
            let at = Duration::from_secs_f64((n as f64 * workers as f64 + number as f64) / rate);
            let intended = self.clock.start + at;
            if intended >= self.clock.end {
                break;
            }
            pace.until(intended).await?;
            self.admit(intended, outstanding);
            // A burst after a stall must not keep the lanes from their work.
            if n % 64 == 63 {
                tokio::task::yield_now().await;
            }
        }
        self.paced_out.set(true);
        // Lanes that wait now, and one for each that will look once more.
        self.due.notify_waiters();
        Ok(())
    }

    /// One operation is due: a lane takes it, or there are too many before it.
    fn admit(&self, intended: Instant, outstanding: usize) {
        let mut seen = self.seen.borrow_mut();
        let waiting = self.queue.borrow().len() + self.busy.get();
        if waiting >= outstanding {
            let detail = format!("{waiting} operations were waiting or under way");
            let failure = Failure::new(Reason::Overload, detail);
            return seen.record(self.clock, intended, intended, Err(failure));
        }
        if self.clock.holds(intended) {
            seen.late.record(intended.elapsed());
        }
        self.queue.borrow_mut().push_back(intended);
        self.due.notify_one();
    }
}
