//! What the demo prints for people: who takes part, a table that lives, a summary, and what to try by hand.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::stage::Stage;
use super::tally::Summary;
use crate::mesh::Binaries;

/// How much of it is printed while traffic flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// A row that is redrawn.
    Live,
    /// A line now and then.
    Lines,
    /// None of it: standard output is for one JSON object.
    Nothing,
}

impl Show {
    /// Between two rows.
    pub(super) fn step(self) -> Duration {
        match self {
            Self::Live => Duration::from_millis(500),
            Self::Lines | Self::Nothing => Duration::from_secs(5),
        }
    }

    pub(super) fn title(self, trust_domain: &str, dir: &Path, keep: bool) -> io::Result<()> {
        let fate = if keep { "stays" } else { "removed at exit; --keep to stay" };
        let dir = dir.display();
        self.line(&format!(
            "postern demo · trust domain {trust_domain} · certificates live 10 s · data in {dir} ({fate})\n"
        ))
    }

    pub(super) fn stage(self, stage: &Stage) -> io::Result<()> {
        let Stage { control, web, shop, stranger, .. } = stage;
        let took = format!("ready in {:.1} s", stage.control_took.as_secs_f64());
        let inbound = shop.inbound().port();
        self.line(&format!("  control   {}   {took}   root {}", control.listen(), short(control.root())))?;
        let way = format!("curl → :{} ─ mTLS ─▶ :{inbound} ─▶ shop", web.outbound().port());
        self.line(&format!("  web       {way:<44} {}", web.id()))?;
        let way = format!("{} :{}", stage.app_name, stage.app_address.port());
        self.line(&format!("  shop      {way:<44} {}", shop.id()))?;
        let way = format!("curl → :{} ─ same CA, no permission", stranger.outbound().port());
        self.line(&format!("  stranger  {way:<44} {}", stranger.id()))?;
        for (name, sidecar) in stage.sidecars() {
            let (metrics, log) = (sidecar.metrics_address(), sidecar.log_path().display());
            self.line(&format!("  {name:<9} metrics http://{metrics}/metrics   log {log}"))?;
        }
        self.line("")
    }

    pub(super) fn head(self) -> io::Result<()> {
        self.line(
            "   time   requests   failed   handshakes       p50       p99   rotations                 denied",
        )
    }

    pub(super) fn row(self, now: &Summary) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Lines => self.line(&row(now)),
            Self::Live => {
                let mut out = io::stdout().lock();
                // Without line wrap: in a narrow terminal the row is cut, and can still be drawn over.
                write!(out, "\r\x1b[?7l{}\x1b[K\x1b[?7h", row(now))?;
                out.flush()
            }
        }
    }

    pub(super) fn summary(self, stage: &Stage, end: &Summary, keep: bool) -> io::Result<()> {
        self.row(end)?;
        self.line(if self == Self::Live { "\n" } else { "" })?;
        if end.is_good() {
            self.line(
                "  Every request went over mutual TLS between two identities that did not exist before.",
            )?;
        } else {
            self.line(&format!(
                "  FAILED: {} of {} requests failed, the stranger was answered {} times.",
                end.web.failed, end.web.requests, end.stranger.answered
            ))?;
            for error in &end.web.errors {
                self.line(&format!("    {error}"))?;
            }
        }
        let log = stage.shop.log_path().display();
        if let Some(denial) = stage.shop.logs().into_iter().rfind(|l| l["outcome"] == "denied") {
            let word = |field: &str| denial[field].as_str().unwrap_or("").to_owned();
            self.line(&format!("  The stranger's last refusal, from {log}:"))?;
            self.line(&format!("    {} {} · {}", word("denial"), word("peer"), word("detail")))?;
        }
        if !keep {
            self.line("  Metrics and logs end with this run; with --keep they stay to be looked at.")?;
        }
        Ok(())
    }

    pub(super) fn by_hand(self, stage: &Stage, binaries: &Binaries) -> io::Result<()> {
        let Stage { control, web, shop, stranger, .. } = stage;
        let (data, log) = (control.data(), shop.log_path().display());
        let postern = binaries.postern();
        let (postern, data) = (postern.display(), data.display());
        self.line("\n  It runs on until ^C. Try:")?;
        self.line(&format!("    curl http://{}/            # through two sidecars", web.outbound()))?;
        self.line(&format!("    curl http://{}/            # the stranger: refused", stranger.outbound()))?;
        self.line(&format!("    grep '\"outcome\":\"denied\"' {log} | tail -1"))?;
        self.line(&format!(
            "    openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -dates -ext subjectAltName",
            shop.inbound()
        ))?;
        self.line(&format!("    curl http://{}/metrics", shop.metrics_address()))?;
        self.line(&format!("    {postern} status --data {data}"))?;
        self.line(&format!("    {postern} identities --data {data}"))
    }

    fn line(self, text: &str) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Live | Self::Lines => writeln!(io::stdout(), "{text}"),
        }
    }
}

/// The one object that standard output gets.
pub(super) fn json(value: &Value) -> io::Result<()> {
    writeln!(io::stdout(), "{value}")
}

fn row(now: &Summary) -> String {
    let quantile = |q| now.quantile_us(q).map_or("-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1e3));
    let rotations: Vec<String> = now.rotations.iter().map(|(name, n)| format!("{name} {n}")).collect();
    format!(
        "{:>5} s {:>10} {:>8} {:>12} {:>9} {:>9}   {:<25} {:>6}   (stranger: {} of {})",
        now.took.as_secs(),
        grouped(now.web.requests),
        grouped(now.web.failed),
        grouped(now.handshakes),
        quantile(0.5),
        quantile(0.99),
        rotations.join(" "),
        grouped(now.denied),
        now.stranger.requests - now.stranger.answered,
        now.stranger.requests,
    )
}

/// 11842 as 11,842.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The ends of a pin.
fn short(pin: &str) -> String {
    let (kind, hex) = pin.split_once(':').unwrap_or(("", pin));
    match (hex.get(..4), hex.get(hex.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) => format!("{kind}:{head}…{tail}"),
        _ => pin.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_pins_are_made_readable() {
        assert_eq!(
            [0, 999, 1000, 11_842, 1_234_567].map(grouped),
            ["0", "999", "1,000", "11,842", "1,234,567"]
        );
        assert_eq!(short("sha256:7be1aaaaaae09c"), "sha256:7be1…e09c");
    }
}
