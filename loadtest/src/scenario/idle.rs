//! What does a connection cost that stands open and carries nothing? Many are opened, perhaps used once, then left alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::drive::{
    Clock, Connector, Done, Failure, Load, Outcome, Plan, Reason, Seen, Stream, own_cpu, pin,
};
use crate::fleet::room_for;
use crate::measure::{Cost, Meter};
use crate::scenario::{Protocol, bytes};

/// Opened at a time, so that no server's queue of new connections overflows.
const AT_A_TIME: usize = 32;
/// The longest answer of a connection's one request.
const MAX_ANSWER: usize = 64 * 1024;
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

/// What a connection carries before it stands.
#[derive(Clone)]
enum First {
    Nothing,
    Bytes(usize),
    Request(Arc<[u8]>),
}

impl First {
    fn of(plan: &Plan) -> Self {
        match plan.protocol {
            _ if !plan.carries_first => Self::Nothing,
            Protocol::Raw => Self::Bytes(plan.size),
            _ => {
                let method = if plan.size > 0 { "POST" } else { "GET" };
                let (path, host, size) = (&plan.path, plan.authority(), plan.size);
                let head =
                    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {size}\r\n\r\n");
                let body = std::iter::repeat_n(b'x', size);
                Self::Request(head.into_bytes().into_iter().chain(body).collect())
            }
        }
    }
}

/// One request over HTTP/1.1, on a connection that goes on.
async fn ask(stream: &mut Stream, request: &[u8]) -> Result<(), Failure> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(Failure::new(Reason::Closed, "ended before its answer"));
        }
        if is_whole(&answer)? {
            return Ok(());
        }
    }
}

/// Whether all of the answer has come. It says its length, as every answer on a connection that goes on.
fn is_whole(answer: &[u8]) -> Result<bool, Failure> {
    let bad = |what: &str| Failure::new(Reason::BadAnswer, what.to_owned());
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if answer.len() > MAX_ANSWER { Err(bad("a head without an end")) } else { Ok(false) };
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.ok_or_else(|| bad("an answer without a length"))?;
    if answer.len() < head + 4 + length {
        return Ok(false);
    }
    let status = text.split(' ').nth(1).unwrap_or_default();
    match status.starts_with('2') {
        true => Ok(true),
        false => Err(Failure::new(Reason::Status, status.to_owned())),
    }
}

async fn open(
    plan: &Plan,
    connector: &Connector,
    wanted: usize,
    mut told: impl FnMut(usize),
) -> VecDeque<Opened> {
    let first = First::of(plan);
    let (mut tasks, mut begun, mut opened) = (JoinSet::new(), 0, VecDeque::with_capacity(wanted));
    while opened.len() < wanted {
        while begun < wanted && tasks.len() < AT_A_TIME {
            let (connector, limit, first) = (connector.clone(), plan.deadline, first.clone());
            tasks.spawn(async move {
                let intended = Instant::now();
                let late = |_| Err(Failure::new(Reason::Timeout, format!("not open within {limit:?}")));
                let opening = async {
                    let mut stream = connector.connect().await?;
                    match first {
                        First::Nothing => {}
                        First::Bytes(size) => bytes::there_and_back(&mut stream, size).await?,
                        First::Request(request) => ask(&mut stream, &request).await?,
                    }
                    Ok(stream)
                };
                let result = timeout(limit, opening).await.unwrap_or_else(late);
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
