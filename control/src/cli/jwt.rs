//! `postern jwt`: the keys that sign JWT-SVIDs, and what to do when one got out.

use clap::Subcommand;
use serde_json::json;

use super::{CliError, Common, output};
use crate::api::model::{JwtKeyView, TaintIssuing, TaintedView};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the published keys of all replicas
    #[command(after_help = "Example:\n  postern jwt list")]
    List,
    /// Publish this replica's next key now; it signs once it has been published for `jwt.publish_ahead`
    #[command(after_help = "Example:\n  postern jwt rotate")]
    Rotate,
    /// A key got out: it leaves the bundle and the JWKS at once, and every token under it is refused
    #[command(after_help = "Example:\n  postern jwt taint 2Yk1…Qw     (as `postern jwt list` shows it)

Its replica signs with another key within a second. Verifiers outside that cache the JWKS believe its tokens until they fetch it again.")]
    Taint {
        /// The key's name
        #[arg(value_name = "KID")]
        kid: String,
    },
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        match self {
            Self::List => show(common, common.client()?.get("/v1/jwt/keys").await?),
            Self::Rotate => show(common, common.client()?.post("/v1/jwt/rotate", &json!({})).await?),
            Self::Taint { kid } => taint(common, kid).await,
        }
    }
}

fn show(common: &Common, keys: Vec<JwtKeyView>) -> Result<(), CliError> {
    if common.is_json() {
        return output::json(&keys);
    }
    let row = |k: JwtKeyView| [k.state, k.kid, k.replica, k.signs_from, k.signs_until, k.ends_at];
    let rows: Vec<_> = keys.into_iter().map(row).collect();
    output::table(["STATE", "KID", "REPLICA", "SIGNS FROM", "SIGNS UNTIL", "PUBLISHED UNTIL"], &rows)
}

async fn taint(common: &Common, kid: String) -> Result<(), CliError> {
    let done: TaintedView = common.client()?.post("/v1/jwt/taint", &TaintIssuing { key_id: kid }).await?;
    match common.is_json() {
        true => output::json(&done),
        false => output::print(&format!(
            "key {} is tainted: generation {} takes it out of every bundle, and tokens under it are refused",
            done.key_id, done.generation
        )),
    }
}
