//! `postern status`: the mesh in two lines, and the proxies that lag behind.

use clap::Args;

use super::{CliError, Common, output};
use crate::api::model::Status;
use crate::clock::now_ms;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern status --output json | jq .proxies")]
pub(super) struct StatusCommand {}

impl StatusCommand {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let status: Status = common.client()?.get("/v1/status").await?;
        if common.is_json() {
            return output::json(&status);
        }
        let (root, until) = (output::short_pin(&status.root), year(&status.root_expires_at));
        let issuing = format!("{} until {}", status.issuing.name, status.issuing.expires_at);
        output::print(&format!(
            "trust domain {} · root {root} until {until} · CA {issuing}",
            status.trust_domain
        ))?;
        let proxies = &status.proxies;
        let expiry = status
            .nearest_expiry
            .as_deref()
            .map_or(String::new(), |at| format!(" · nearest expiry {}", left(at)));
        output::print(&format!(
            "proxies {} connected, {} at generation {} · identities {}{expiry}",
            proxies.connected, proxies.current, status.generation, status.identities
        ))?;
        for rotation in &status.rotations {
            output::print(&format!("rotation of {rotation}"))?;
        }
        for one in &proxies.behind {
            let why = if one.error.is_empty() { "has not answered yet" } else { one.error.as_str() };
            output::print(&format!(
                "behind: {} at generation {} · {why} · {}",
                one.instance, one.generation, one.last_seen
            ))?;
        }
        Ok(())
    }
}

fn year(at: &str) -> &str {
    at.split('-').next().unwrap_or(at)
}

fn left(at: &str) -> String {
    let Ok(end) = at.parse::<jiff::Timestamp>() else { return at.to_owned() };
    match end.as_second() - now_ms() / 1000 {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
