//! What does a connection cost that stands open and carries nothing? Many are opened, then left alone.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::drive::{
    Clock, Connector, Done, Failure, Load, Outcome, Plan, Reason, Seen, Stream, own_cpu, pin,
};
use crate::fleet::room_for;
use crate::measure::{Cost, Meter};

/// Opened at a time, so that no server's queue of new connections overflows.
const AT_A_TIME: usize = 32;
/// How often progress is told while they stand.
const LOOK: Duration = Duration::from_millis(100);

/// Opens as many connections as the closed loop has clients (the open one `connections`) and lets them stand for the
/// plan's duration. The latency is that of opening; one that is cut off while it stands has failed as `closed`.
pub(crate) fn run(plan: &Plan, mut progress: impl FnMut(f64)) -> Result<Outcome> {
    let wanted = match plan.load {
        Load::Closed { clients } => clients,
        Load::Open { .. } => plan.connections,
    };
    room_for(wanted)?;
    if let Some(cpus) = &plan.rig_cpus {
        pin(cpus)?;
    }
    let connector = Connector::new(plan)?;
    let mut meter = Meter::new(&plan.server_pids)?;
    meter.begin()?;
    let (clock, rig_before, mut seen) = (Clock::open_ended(), own_cpu(), Seen::new(plan));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (usage, took, standing) = runtime.block_on(async {
        let began = Instant::now();
        let mut opened =
            open(plan, &connector, wanted, |done| progress(done as f64 / wanted as f64 / 2.0)).await;
        let took = began.elapsed();
        let end = Instant::now() + plan.duration;
        while Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            sleep(LOOK.min(left)).await;
            meter.sample();
            progress(1.0 - left.as_secs_f64() / plan.duration.as_secs_f64() / 2.0);
        }
        // Measured while they stand, looked at afterwards: looking is traffic for the rig alone.
        let usage = meter.end();
        let mut standing = 0;
        for (intended, ended, result) in opened.drain(..) {
            let result = match result {
                Ok(mut stream) => still_open(&mut stream).await.map(|()| {
                    standing += 1;
                    seen.negotiated = stream.negotiated();
                    let (handshakes, resumed) = stream.handshakes();
                    Done { handshakes, resumed, at: Some(ended), ..Done::default() }
                }),
                Err(failure) => Err(failure),
            };
            seen.record(clock, intended, ended, result);
        }
        (usage, took, standing)
    });
    progress(1.0);
    let cost = usage?.map(|usage| Cost::new(usage, &seen.completed).with_idle(standing));
    let mut outcome = seen.outcome(plan, cost, own_cpu().saturating_sub(rig_before));
    outcome.rate = standing as f64 / took.as_secs_f64().max(1e-9);
    outcome.rig.threads = 1;
    outcome.notes = vec![format!("the rate is that of opening, {AT_A_TIME} at a time")];
    Ok(outcome)
}

type Opened = (Instant, Instant, Result<Stream, Failure>);

async fn open(
    plan: &Plan,
    connector: &Connector,
    wanted: usize,
    mut told: impl FnMut(usize),
) -> VecDeque<Opened> {
    let (mut tasks, mut begun, mut opened) = (JoinSet::new(), 0, VecDeque::with_capacity(wanted));
    while opened.len() < wanted {
        while begun < wanted && tasks.len() < AT_A_TIME {
            let (connector, limit) = (connector.clone(), plan.deadline);
            tasks.spawn(async move {
                let intended = Instant::now();
                let late = |_| Err(Failure::new(Reason::Timeout, format!("not open within {limit:?}")));
                let result = timeout(limit, connector.connect()).await.unwrap_or_else(late);
                (intended, Instant::now(), result)
            });
            begun += 1;
        }
        match tasks.join_next().await {
            Some(Ok(one)) => opened.push_back(one),
            // A task that panicked has no stream to count.
            Some(Err(_)) => begun -= 1,
            None => break,
        }
        told(opened.len());
    }
    opened
}

/// Whether the peer has said nothing that ends it. Looks once and does not wait: a millisecond for each of thousands would
/// let the last ones stand for seconds longer.
async fn still_open(stream: &mut Stream) -> Result<(), Failure> {
    let mut buffer = [0; 256];
    loop {
        let read = tokio::select! {
            biased;
            read = stream.read(&mut buffer) => read,
            () = std::future::ready(()) => return Ok(()),
        };
        match read {
            Ok(0) => return Err(Failure::new(Reason::Closed, "ended while it stood idle")),
            // Tickets and greetings are no end.
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
