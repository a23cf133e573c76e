//! `postern ca`: the authority that signs, its rotation, and what to do when a key got out.

use std::time::Duration;

use clap::{Args, Subcommand};
use postern_config::file::control::Percent;
use serde_json::json;

use super::{CliError, Common, output};
use crate::api::model::{
    Approve, Approved, AuthorityView, BeginRotation, IssuingView, RotationView, TaintIssuing, TaintedView,
};

/// How often a rotation's progress is asked for.
const LOOK: Duration = Duration::from_millis(250);

mod ceremony;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the trust domain's roots and issuing CAs
    #[command(after_help = "Example:\n  postern ca list")]
    List,
    /// Let a new issuing CA of this replica take over now, or, with --root, a new root in stages
    Rotate(Rotate),
    /// A key got out: no proxy believes what it signed from the next push on
    #[command(after_help = "Examples:
  postern ca taint --root         the root: a new one is made, and the old one cut off as soon as connected proxies have it
  postern ca taint 3f9a…c2        one issuing CA, by its key id; its replica gets another one within a second")]
    Taint {
        /// Key id of an issuing CA, as `postern ca list` shows it
        #[arg(value_name = "KEY_ID", required_unless_present = "root")]
        key_id: Option<String>,
        /// The root that signs now
        #[arg(long, conflicts_with = "key_id")]
        root: bool,
    },
    /// Let another replica have an issuing CA: run it on the host that holds the root, with the fingerprint that the replica shows
    #[command(
        after_help = "Example:\n  postern ca approve 3f9a…c2 (the key that the waiting replica prints)"
    )]
    Approve {
        /// SHA-256 of the replica's key, hex
        #[arg(value_name = "FINGERPRINT")]
        key: String,
    },
    /// Make a root on a machine of its own, where no control plane runs
    #[command(subcommand)]
    Root(ceremony::Root),
    /// Print the request for an issuing CA that waits for a signature
    Csr(ceremony::Request),
    /// Sign the request of an issuing CA, where the root's key lies
    Sign(ceremony::Sign),
    /// Take in an issuing CA that was signed elsewhere
    Install(ceremony::Install),
}

/// Let a new CA take over
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern ca rotate               a new issuing CA; root and certificates stay valid, nobody has to be told
  postern ca rotate --canary 25%  the same for a quarter of the proxies first; withdrawn if their handshakes fail
  postern ca rotate --root        a new root: published, confirmed by every live proxy, tried with a share of them
                                  (ca.rotation.canary), then used; ^C leaves it running
  postern ca rotate --root --no-canary    the same for all at once
  postern ca rotate --root --force        the same without waiting for proxies that cannot be reached")]
pub(super) struct Rotate {
    /// The root instead of the issuing CA
    #[arg(long)]
    root: bool,
    /// Wait for no proxy that cannot be reached; makes a rotation that is under way hurry, too
    #[arg(long, requires = "root")]
    force: bool,
    /// Which share of the proxies goes first; their handshakes are watched, and failures roll the rotation back
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["force", "no_canary"])]
    canary: Option<Percent>,
    /// Let the new root sign for all proxies at once
    #[arg(long, requires = "root")]
    no_canary: bool,
    /// Return at once instead of showing the progress until the new authority signs
    #[arg(long)]
    detach: bool,
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        match self {
            Self::List => list(common).await,
            Self::Rotate(Rotate { root: false, canary: None, .. }) => rotate_issuing(common).await,
            Self::Rotate(Rotate { root, force, canary, no_canary, detach }) => {
                let share = if no_canary { Some(0) } else { canary.map(Percent::get) };
                let begin = BeginRotation { force, taint: false, share, issuing: !root };
                rotate(common, begin, detach).await
            }
            Self::Taint { key_id: Some(key_id), .. } => taint(common, key_id).await,
            Self::Taint { .. } => {
                let begin = BeginRotation { force: true, taint: true, ..BeginRotation::default() };
                rotate(common, begin, false).await
            }
            Self::Approve { key } => approve(common, key).await,
            Self::Root(command) => command.run(common),
            Self::Csr(command) => command.run(common).await,
            Self::Sign(command) => command.run(common),
            Self::Install(command) => command.run(common).await,
        }
    }
}

async fn list(common: &Common) -> Result<(), CliError> {
    let all: Vec<AuthorityView> = common.client()?.get("/v1/ca/authorities").await?;
    if common.is_json() {
        return output::json(&all);
    }
    let rows = all
        .into_iter()
        .map(|a| [a.kind, a.state, a.key_id, a.name, a.replica, a.not_after])
        .collect::<Vec<_>>();
    output::table(["KIND", "STATE", "KEY ID", "NAME", "REPLICA", "UNTIL"], &rows)?;
    // What ended well needs no word.
    let last: Vec<RotationView> = common.client()?.get("/v1/ca/rotations").await?;
    for rotation in last.iter().filter(|r| r.state != "pruned").take(3) {
        output::print(&format!(
            "{} rotation since {}: {}",
            rotation.kind,
            rotation.began_at,
            told(rotation)
        ))?;
    }
    Ok(())
}

async fn rotate_issuing(common: &Common) -> Result<(), CliError> {
    let issuing: IssuingView = common.client()?.post("/v1/ca/rotate", &json!({})).await?;
    if common.is_json() {
        return output::json(&issuing);
    }
    output::print(&format!(
        "{} signs from now on, until {}; the root stays, so nobody has to be told",
        issuing.name, issuing.expires_at
    ))
}

/// Begins, then shows each stage until the new authority signs; one that was rolled back is a failure.
async fn rotate(common: &Common, begin: BeginRotation, detach: bool) -> Result<(), CliError> {
    let begun: RotationView = common.client()?.post("/v1/ca/rotation", &begin).await?;
    let (id, new_root, mut shown) = (begun.id.clone(), begun.new_root.clone(), String::new());
    let mut current = Some(begun);
    loop {
        let text = match &current {
            Some(rotation) => stage(rotation),
            None => "stage 5 of 5: done".to_owned(),
        };
        if text != shown && !common.is_json() {
            output::print(&text)?;
            shown = text;
        }
        let is_over = current.as_ref().is_none_or(|r| r.stage >= 4 || !r.reason.is_empty());
        if detach || is_over {
            break;
        }
        tokio::time::sleep(LOOK).await;
        let now: Vec<RotationView> = common.client()?.get("/v1/ca/rotations").await?;
        current = now.into_iter().find(|r| r.id == id);
    }
    if common.is_json() {
        output::json(&json!({ "new_root": new_root, "rotation": current }))?;
    }
    match current.filter(|r| !r.reason.is_empty()) {
        Some(rotation) => Err(CliError::Failed(told(&rotation))),
        None => Ok(()),
    }
}

/// Where a rotation is, in words.
fn told(rotation: &RotationView) -> String {
    match rotation.state.as_str() {
        "rolling_back" => format!(
            "rolled back, and its certificates are being replaced: {}; once the cause is gone, try again, or use --no-canary",
            rotation.reason
        ),
        "rolled_back" => format!("rolled back: {}", rotation.reason),
        _ => stage(rotation),
    }
}

/// One line for people.
fn stage(rotation: &RotationView) -> String {
    let RotationView { stage, proxies, confirmed, waiting_names, waiting_until, .. } = rotation;
    let until = waiting_until.as_deref().unwrap_or("soon");
    match rotation.waiting_for.as_str() {
        _ if !rotation.reason.is_empty() => told(rotation),
        _ if rotation.state == "pruned" => "stage 5 of 5: done".to_owned(),
        "canary" => {
            let names: Vec<&str> = waiting_names.iter().take(10).map(String::as_str).collect();
            let silent = if names.is_empty() {
                String::new()
            } else {
                format!("; not heard yet: {}", names.join(", "))
            };
            format!(
                "stage {stage} of 5: {}% of the proxies try it, watched until {until}{silent} · ^C leaves it running",
                rotation.share
            )
        }
        "proxies" if waiting_names.is_empty() => {
            format!("stage {stage} of 5: confirmed by all {proxies} proxies")
        }
        "proxies" => {
            let names: Vec<&str> = waiting_names.iter().take(10).map(String::as_str).collect();
            let more = waiting_names.len().saturating_sub(names.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!(
                "stage {stage} of 5: published to {confirmed} of {proxies} proxies; waiting for {}{more} · ^C leaves it running",
                names.join(", ")
            )
        }
        "tokens" => {
            format!("stage {stage} of 5: confirmed; join tokens that know the old root alone end at {until}")
        }
        "replicas" => {
            format!("stage {stage} of 5: the new root signs; replicas {} follow", waiting_names.join(", "))
        }
        _ => format!(
            "stage {stage} of 5: the new root signs; the last certificate of the old one ends at {until}"
        ),
    }
}

async fn taint(common: &Common, key_id: String) -> Result<(), CliError> {
    let done: TaintedView = common.client()?.post("/v1/ca/taint", &TaintIssuing { key_id }).await?;
    match common.is_json() {
        true => output::json(&done),
        false => output::print(&format!(
            "issuing CA {} is tainted: generation {} tells every proxy, and each renews at once",
            done.key_id, done.generation
        )),
    }
}

async fn approve(common: &Common, key: String) -> Result<(), CliError> {
    let done: Approved = common.client()?.post("/v1/ca/approve", &Approve { key }).await?;
    match common.is_json() {
        true => output::json(&done),
        false => output::print(&format!("replica {} gets its issuing CA within a second", done.replica)),
    }
}
