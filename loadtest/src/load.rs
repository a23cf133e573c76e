//! Traffic at a steady rate: every request on a connection of its own, so that each one is a handshake.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http;

/// How many failures are kept with their text.
const KEPT: usize = 20;

/// What is sent, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Who is asked: a sidecar's outbound listener.
    pub target: SocketAddr,
    /// Requests a second. The next one does not wait for the last one's answer.
    pub rate: f64,
    /// So many may be under way; at this bound the next one does wait.
    pub in_flight: usize,
    /// From connect to the whole answer; then it counts as failed.
    pub limit: Duration,
}

impl Plan {
    /// `rate` requests a second to `target`, at most 64 under way, five seconds each.
    pub fn new(target: SocketAddr, rate: f64) -> Self {
        Self { target, rate, in_flight: 64, limit: Duration::from_secs(5) }
    }
}

/// What has come of it so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that ended, well or not.
    pub requests: u64,
    /// Those that did not get a whole answer with status 200.
    pub failed: u64,
    /// Those that got anything at all that is HTTP.
    pub answered: u64,
    /// The first failures, in words.
    pub errors: Vec<String>,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    failed: AtomicU64,
    answered: AtomicU64,
    errors: Mutex<Vec<String>>,
}

/// A running driver, on a thread of its own. Dropped, it stops at once.
#[derive(Debug)]
pub struct Load {
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Begins.
    pub fn start(plan: Plan) -> Result<Self> {
        ensure!(plan.rate > 0.0, "a rate of {} asks nobody", plan.rate);
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let for_thread = Arc::clone(&counters);
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || runtime.block_on(drive(plan, &for_thread, stopped)))?;
        Ok(Self { counters, stop: Some(stop), thread: Some(thread) })
    }

    /// The tally so far.
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Tally {
            requests: read(&counters.requests),
            failed: read(&counters.failed),
            answered: read(&counters.answered),
            errors: counters.errors.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Sends nothing more, waits for what is under way, and gives the sum.
    pub fn finish(mut self) -> Tally {
        self.end();
        self.tally()
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic there has already been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

async fn drive(plan: Plan, counters: &Arc<Counters>, mut stopped: oneshot::Receiver<()>) {
    let places = Arc::new(Semaphore::new(plan.in_flight));
    let mut ticks = interval(Duration::from_secs_f64(1.0 / plan.rate));
    // After a stall the rate is what it was, not a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => {}
        }
        let place = tokio::select! {
            _ = &mut stopped => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let counters = Arc::clone(counters);
        tasks.spawn(async move {
            ask(plan, &counters).await;
            drop(place);
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

async fn ask(plan: Plan, counters: &Counters) {
    let mut bytes = Vec::new();
    let result = match timeout(plan.limit, exchange(plan.target, &mut bytes)).await {
        Ok(result) => result.and_then(|()| {
            let answer = http::parse(&bytes)?;
            ensure!(answer.status == 200, "status {}", answer.status);
            Ok(())
        }),
        Err(_) => Err(anyhow::anyhow!("no answer within {:?}", plan.limit)),
    };
    if bytes.starts_with(b"HTTP/") {
        counters.answered.fetch_add(1, Ordering::Relaxed);
    }
    if let Err(error) = result {
        counters.failed.fetch_add(1, Ordering::Relaxed);
        let mut errors = counters.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < KEPT {
            errors.push(format!("{error:#}"));
        }
    }
    counters.requests.fetch_add(1, Ordering::Relaxed);
}

async fn exchange(target: SocketAddr, bytes: &mut Vec<u8>) -> Result<()> {
    let mut stream = TcpStream::connect(target).await.context("cannot connect")?;
    stream.write_all(http::request(target, "/").as_bytes()).await.context("cannot send")?;
    stream.read_to_end(bytes).await.context("no whole answer")?;
    Ok(())
}
