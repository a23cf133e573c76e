//! `postern revoke`: takes back a certificate or an identity, and on wish waits until every proxy knows.

use std::time::Duration;

use clap::Args;
use postern_config::file::Span;
use postern_config::id::SpiffeId;
use serde_json::json;

use super::{CliError, Common, output};
use crate::api::model::{Lift, Progress, Revoke as Request, RevokedView};
use crate::revoke::Reason;

/// How often the proxies' progress is asked for.
const LOOK: Duration = Duration::from_millis(50);

/// Take back certificates or whole identities
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern revoke spiffe://corp.example/ns/shop/sa/report --reason keyCompromise --wait
  postern revoke 4fa3:09:…:1c          one certificate, by its serial, and the enrollment it belongs to
  postern revoke --lift spiffe://corp.example/ns/shop/sa/report")]
pub(super) struct Revoke {
    /// A SPIFFE ID, or the serial of one certificate in hex
    #[arg(value_name = "ID|SERIAL")]
    subject: String,
    /// Why, in the words of RFC 5280
    #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
    reason: Reason,
    /// Wait until every connected proxy refuses it; exits 1 if one does not in time
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "10s", value_name = "TIME", requires = "wait")]
    timeout: Span,
    /// Let a revoked identity have certificates again; what was revoked stays revoked
    #[arg(long, conflicts_with_all = ["wait", "reason"])]
    lift: bool,
}

impl Revoke {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        if self.lift {
            let id = self.id()?;
            common.client()?.post::<Lift>("/v1/revocations/lift", &Lift { id: id.clone() }).await?;
            return match common.is_json() {
                true => output::json(&json!({ "lifted": id })),
                false => output::print(&format!(
                    "{id} may have certificates again; what was revoked stays revoked"
                )),
            };
        }
        let request = match self.subject.starts_with("spiffe:") {
            true => Request { id: Some(self.id()?), serial: None, reason: self.reason },
            false => Request { id: None, serial: Some(self.subject.clone()), reason: self.reason },
        };
        let done: RevokedView = common.client()?.post("/v1/revocations", &request).await?;
        if !self.wait {
            return match common.is_json() {
                true => output::json(&done),
                false => output::print(&revoked(&done)),
            };
        }
        let all = self.watch(common, &done).await?;
        let spread = Spread::of(&done, &all);
        match common.is_json() {
            true => output::json(&spread.json(&done))?,
            false => spread.print(&done)?,
        }
        match spread.missing.len() {
            0 => Ok(()),
            missing => Err(CliError::Failed(format!(
                "{missing} of the proxies named above did not confirm within {}; they refuse it once they are connected again, \
                 and their own certificates end by themselves",
                self.timeout
            ))),
        }
    }

    fn id(&self) -> Result<SpiffeId, CliError> {
        self.subject
            .parse()
            .map_err(|e| CliError::Failed(format!("{:?} is not a SPIFFE ID: {e}", self.subject)))
    }

    /// Looks until all have it or the time is over.
    async fn watch(&self, common: &Common, done: &RevokedView) -> Result<Vec<Progress>, CliError> {
        let until = tokio::time::Instant::now() + self.timeout.as_duration();
        let path = format!("/v1/generations/{}/progress", done.generation);
        loop {
            let all: Vec<Progress> = common.client()?.get(&path).await?;
            if all.iter().all(|p| p.acked_at_ms.is_some()) || tokio::time::Instant::now() >= until {
                return Ok(all);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// How long each proxy took, and who did not answer.
struct Spread<'a> {
    /// (milliseconds, proxy), the quickest first.
    took: Vec<(i64, &'a Progress)>,
    missing: Vec<&'a Progress>,
}

impl<'a> Spread<'a> {
    fn of(done: &RevokedView, all: &'a [Progress]) -> Self {
        let (confirmed, missing): (Vec<_>, Vec<_>) = all.iter().partition(|p| p.acked_at_ms.is_some());
        let mut took: Vec<_> = confirmed
            .into_iter()
            .filter_map(|p| Some((p.acked_at_ms?.saturating_sub(done.at_ms).max(0), p)))
            .collect();
        took.sort_by_key(|(ms, _)| *ms);
        Self { took, missing }
    }

    /// The smallest time within which this share of the proxies had it, milliseconds.
    fn quantile(&self, share: f64) -> i64 {
        let rank = (self.took.len() as f64 * share).ceil() as usize;
        self.took.get(rank.saturating_sub(1)).map_or(0, |(ms, _)| *ms)
    }

    fn print(&self, done: &RevokedView) -> Result<(), CliError> {
        let all = self.took.len() + self.missing.len();
        let seconds = |ms: i64| format!("{:.2} s", ms as f64 / 1000.0);
        output::print(&format!(
            "{} · {}/{all} proxies in {} (p99 {}) · renewals refused from now on",
            revoked(done),
            self.took.len(),
            seconds(self.quantile(1.0)),
            seconds(self.quantile(0.99)),
        ))?;
        for proxy in &self.missing {
            let state = match (&*proxy.error, proxy.connected) {
                ("", true) => "connected, has not confirmed".to_owned(),
                ("", false) => format!("unreachable, last seen {}", proxy.last_seen),
                (error, _) => format!("refused the push: {error}"),
            };
            output::print(&format!("  {}  {}  {state}", proxy.instance, proxy.id))?;
        }
        Ok(())
    }

    fn json(&self, done: &RevokedView) -> serde_json::Value {
        let took = self
            .took
            .iter()
            .map(|(ms, p)| json!({ "instance": p.instance, "id": p.id, "lineage": p.lineage, "ms": ms }));
        json!({
            "id": done.id,
            "certificates": done.certificates,
            "generation": done.generation,
            "confirmed": self.took.len(),
            "missing": self.missing,
            "max_ms": self.quantile(1.0),
            "p99_ms": self.quantile(0.99),
            "proxies": took.collect::<Vec<_>>(),
        })
    }
}

fn revoked(done: &RevokedView) -> String {
    let plural = if done.certificates == 1 { "" } else { "s" };
    format!("revoked {} certificate{plural} of {}", done.certificates, done.id)
}
