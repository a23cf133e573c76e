//! `postern identities`: who has a valid certificate, what is declared, and how to take an identity out of service.

use std::time::Duration;

use clap::{Args, Subcommand};
use postern_config::file::Span;
use postern_config::id::SpiffeId;
use postern_config::registry;

use super::{CliError, Common, output};
use crate::api::model::{Identity, RemoveIdentity, RevokedView};
use crate::clock::now_ms;

/// A live identity that no proxy has used for this long has probably been left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  postern identities --near-expiry 20m
  postern identities --orphans
  postern identities declared
  postern identities remove spiffe://corp.example/ns/shop/sa/report
  postern identities --output json | jq '.[] | select(.connected | not)'"
)]
pub(super) struct Identities {
    /// Those alone whose certificate ends within this time
    #[arg(long, value_name = "TIME")]
    near_expiry: Option<Span>,
    /// Those alone that nobody has declared, or whose proxy has not been seen for ten minutes
    #[arg(long)]
    orphans: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show declared identities, in use or not
    Declared,
    /// Take an identity out of service: its certificates are refused, its enrollments and unused tokens dead
    Remove {
        /// The SPIFFE ID
        id: String,
    },
}

impl Identities {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        match &self.command {
            None => self.live(common).await,
            Some(Command::Declared) => declared(common).await,
            Some(Command::Remove { id }) => remove(common, id).await,
        }
    }

    async fn live(&self, common: &Common) -> Result<(), CliError> {
        let mut all: Vec<Identity> = common.client()?.get("/v1/identities").await?;
        if let Some(within) = self.near_expiry {
            all.retain(|one| millis(&one.expires_at) - now_ms() <= within.as_duration().as_millis() as i64);
        }
        if self.orphans {
            all.retain(is_orphan);
        }
        if common.is_json() {
            return output::json(&all);
        }
        let rows: Vec<[String; 8]> = all.into_iter().map(row).collect();
        output::table(
            ["ID", "OWNER", "INSTANCE", "SERIAL", "EXPIRES", "LAST SEEN", "GENERATION", "STATE"],
            &rows,
        )
    }
}

fn is_orphan(one: &Identity) -> bool {
    let unseen = now_ms() - millis(&one.last_seen);
    one.owner.is_none() || (!one.connected && unseen > LEFT_BEHIND.as_millis() as i64)
}

fn row(one: Identity) -> [String; 8] {
    let state = match (one.connected, one.error.is_empty()) {
        (false, _) => "away".to_owned(),
        (true, true) => "connected".to_owned(),
        (true, false) => format!("refuses: {}", one.error),
    };
    let owner = one.owner.unwrap_or_else(|| "-".to_owned());
    [
        one.id.to_string(),
        owner,
        one.instance,
        one.serial,
        one.expires_at,
        one.last_seen,
        one.generation.to_string(),
        state,
    ]
}

async fn declared(common: &Common) -> Result<(), CliError> {
    let all: Vec<registry::Identity> = common.client()?.get("/v1/declarations").await?;
    if common.is_json() {
        return output::json(&all);
    }
    let or_any = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<[String; 5]> = all
        .into_iter()
        .map(|one| {
            let ends = one.spec.expires.map(|end| crate::clock::rfc3339(end.millis()));
            let id = one.spec.spiffe_id.to_string();
            [one.metadata.name, id, one.spec.owner, or_any(one.spec.environment), or_any(ends)]
        })
        .collect();
    output::table(["NAME", "ID", "OWNER", "ENVIRONMENT", "ENDS"], &rows)
}

async fn remove(common: &Common, id: &str) -> Result<(), CliError> {
    let id: SpiffeId = id.parse().map_err(|why| CliError::Failed(format!("not a SPIFFE ID: {why}")))?;
    let done: RevokedView = common.client()?.post("/v1/identities/remove", &RemoveIdentity { id }).await?;
    match common.is_json() {
        true => output::json(&done),
        false => output::print(&format!(
            "{} is out of service: {} certificates are refused, nothing is renewed",
            done.id, done.certificates
        )),
    }
}

/// Milliseconds since 1970 of a moment in an answer; one that cannot be read lies far back.
fn millis(moment: &str) -> i64 {
    moment.parse::<jiff::Timestamp>().map_or(0, |at| at.as_millisecond())
}
