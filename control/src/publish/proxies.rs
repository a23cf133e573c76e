//! The proxies that are connected now, and what each one said last.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use tokio_util::sync::CancellationToken;

use crate::ca::Trials;
use crate::ca::canary::Counters;
use crate::clock::now_ms;
use crate::store::{Acknowledgement, Store, StoreError};
use crate::telemetry::Metrics;

/// The longest complaint that is kept of a proxy, in bytes.
const MAX_ERROR: usize = 1024;

/// One open stream's place; when it is given up, the proxy counts as gone unless a newer stream took its place.
#[derive(Debug, Clone)]
pub struct Watching {
    /// The lineage that the stream belongs to.
    pub lineage: String,
    /// Cancelled when a newer stream of the same lineage opens.
    pub replaced: CancellationToken,
    stream: u64,
}

#[derive(Debug)]
struct Connected {
    watching: Watching,
    said: Acknowledgement,
    unsaved: bool,
    /// What it said of its handshakes last, until that is saved.
    report: Option<(i64, Counters)>,
}

/// Connected proxies by lineage: one stream each, the newest wins.
#[derive(Debug, Default)]
pub struct Proxies {
    by_lineage: DashMap<String, Connected>,
    streams: AtomicU64,
}

impl Proxies {
    /// Takes the lineage's place; an older stream of it is told to end.
    pub fn enter(&self, said: Acknowledgement, metrics: &Metrics) -> Watching {
        let watching = Watching {
            lineage: said.lineage.clone(),
            replaced: CancellationToken::new(),
            stream: self.streams.fetch_add(1, Ordering::Relaxed),
        };
        let connected = Connected { watching: watching.clone(), said, unsaved: true, report: None };
        match self.by_lineage.insert(watching.lineage.clone(), connected) {
            Some(older) => older.watching.replaced.cancel(),
            None => drop(metrics.streams.inc()),
        }
        watching
    }

    /// Gives the place up. Says whether it was still this stream's, which is when announcements have to be released.
    pub fn leave(&self, watching: &Watching, metrics: &Metrics) -> Option<Acknowledgement> {
        let removed =
            self.by_lineage.remove_if(&watching.lineage, |_, c| c.watching.stream == watching.stream);
        removed.map(|(_, connected)| {
            metrics.streams.dec();
            connected.said
        })
    }

    /// Notes what a proxy said about a generation.
    pub fn acknowledge(&self, watching: &Watching, generation: u64, error: &str, now: i64) {
        let Some(mut connected) = self.by_lineage.get_mut(&watching.lineage) else { return };
        if connected.watching.stream != watching.stream {
            return;
        }
        let error: String = error.chars().filter(|c| !c.is_control()).take(MAX_ERROR).collect();
        if !error.is_empty() && connected.said.error != error {
            tracing::warn!(lineage = %watching.lineage, generation, %error, "a proxy refused a generation");
        }
        if connected.said.generation != generation {
            connected.said.acked_at = now;
        }
        connected.said.generation = generation;
        connected.said.error = error;
        connected.said.last_seen = now;
        connected.unsaved = true;
    }

    /// Notes what a proxy says of its handshakes: counters since a moment, milliseconds since 1970.
    pub fn report(&self, watching: &Watching, report: (i64, Counters)) {
        let connected = self.by_lineage.get_mut(&watching.lineage);
        if let Some(mut connected) = connected.filter(|c| c.watching.stream == watching.stream) {
            connected.report = Some(report);
        }
    }

    /// What the connected proxy of this lineage said last.
    pub fn said(&self, lineage: &str) -> Option<Acknowledgement> {
        self.by_lineage.get(lineage).map(|c| c.said.clone())
    }

    /// What all connected proxies said last.
    pub fn all(&self) -> Vec<Acknowledgement> {
        self.by_lineage.iter().map(|c| c.said.clone()).collect()
    }

    /// Writes what is new to the store, all of it in one change: a thousand acknowledgements cost one sync.
    ///
    /// What they said of their handshakes goes to the rotations whose canary is watched.
    pub async fn save(&self, store: &Store, trials: &Trials) -> Result<(), StoreError> {
        let (mut unsaved, mut reports) = (Vec::new(), Vec::new());
        for mut connected in self.by_lineage.iter_mut() {
            if std::mem::take(&mut connected.unsaved) {
                unsaved.push(connected.said.clone());
            }
            reports.extend(connected.report.take().map(|report| (connected.said.lineage.clone(), report)));
        }
        if unsaved.is_empty() && reports.is_empty() {
            return Ok(());
        }
        // In one order on every replica, so that two of them never wait for each other.
        unsaved.sort_by(|a, b| a.lineage.cmp(&b.lineage));
        reports.sort_by(|a, b| a.0.cmp(&b.0));
        let mut change = store.change_rows().await?;
        for said in &unsaved {
            change.put_acknowledgement(said).await?;
        }
        for (lineage, report) in &reports {
            for rotation in trials.watched() {
                change.put_canary_report(&rotation.id, lineage, report, now_ms()).await?;
            }
        }
        change.commit().await
    }
}
