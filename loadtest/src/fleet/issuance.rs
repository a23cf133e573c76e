//! How many certificates a control plane issues over real mTLS gRPC, what each costs it, and how long each takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use postern_config::bundle::BundleSet;
use postern_config::enroll::JoinString;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ledger::held;
use super::report::{Finding, Progress};
use super::trust::{Expected, Trust};
use super::usage::Usage;
use super::wire::{Connection, NewKey};
use super::{Plan, quantile};
use postern_config::wire::v1;

/// One enrollment may renew so often without a pause before the control plane asks for patience.
const EACH: usize = 120;

/// Renewals as fast as they come for `duration`, `in_flight` at a time, over one connection for each join string.
pub(super) fn measure(
    plan: &Plan,
    joins: Vec<JoinString>,
    pid: Option<u32>,
    in_flight: usize,
    duration: Duration,
    progress: Progress,
) -> Result<Finding> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (all, ttl) = (joins.len(), plan.ttl);
    let connections = runtime.block_on(async {
        let mut connections = Vec::with_capacity(all);
        for (number, join) in joins.iter().enumerate() {
            progress.show("connecting", number, all);
            connections.push(connect(plan, number, join).await?);
        }
        anyhow::Ok(connections)
    })?;
    let before = pid.map(Usage::of).transpose()?;
    let (began, taken) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let (places, refused) = (Arc::new(Semaphore::new(in_flight)), Arc::new(AtomicUsize::new(0)));
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for mut connection in connections {
            let (places, taken, refused) = (Arc::clone(&places), Arc::clone(&taken), Arc::clone(&refused));
            tasks.spawn(async move {
                for _ in 0..EACH {
                    let Ok(_place) = places.acquire().await else { return };
                    if began.elapsed() >= duration {
                        return;
                    }
                    let Ok(key) = NewKey::generate() else { return };
                    let asked = Instant::now();
                    match connection.renew(key, ttl).await {
                        Ok(_) => held(&taken).push(asked.elapsed()),
                        Err(_) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
        }
        while tasks.join_next().await.is_some() {
            progress.show("issuing", began.elapsed().as_secs() as usize, duration.as_secs() as usize);
        }
    });
    let took = began.elapsed();
    let mut latencies = std::mem::take(&mut *held(&taken));
    latencies.sort_unstable();
    let count = latencies.len();
    let finding = Finding::new("issuance")
        .with("certificates", count)
        .with("failed", refused.load(Ordering::Relaxed))
        .with("in_flight", in_flight)
        .with("certificates_per_second", (count as f64 / took.as_secs_f64()).round())
        .with("p50_us", quantile(&latencies, 0.5).as_micros() as u64)
        .with("p99_us", quantile(&latencies, 0.99).as_micros() as u64);
    let (Some(before), Some(pid)) = (before, pid) else { return Ok(finding) };
    let cpu = Usage::of(pid)?.cpu.saturating_sub(before.cpu).as_secs_f64();
    Ok(finding
        .with("server_cpu_s", cpu)
        .with("server_cpu_us_each", (cpu * 1e6 / count.max(1) as f64).round())
        .with("certificates_per_cpu_second", (count as f64 / cpu.max(0.01)).round()))
}

async fn connect(plan: &Plan, number: usize, join: &JoinString) -> Result<Connection> {
    let broken = |fault| anyhow!("client {number}: {fault:?}");
    let address = plan.addresses[number % plan.addresses.len()];
    let trust_domain = join.trust_domain.clone();
    let pinned = Expected::Pinned { trust_domain: trust_domain.clone(), pins: join.pins.clone() };
    let mut first = Connection::open(address, pinned, None).await.map_err(broken)?;
    let key = NewKey::generate().map_err(broken)?;
    let enrolled = first.enroll(join, &key, plan.ttl, format!("bench-{number}")).await.map_err(broken)?;
    let bundles = BundleSet::try_from(&v1::BundleSet { bundles: vec![enrolled.bundle] })?;
    let trust = Trust { bundles: Arc::new(bundles), revoked: Arc::default() };
    let known = Expected::Known { trust, control: trust_domain.control_plane() };
    Connection::open(address, known, Some(&enrolled.credentials)).await.map_err(broken)
}
