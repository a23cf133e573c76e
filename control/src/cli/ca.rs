//! `postern ca`: the authority that signs.

use clap::Subcommand;

use super::{CliError, Common, output};
use crate::api::model::{Approve, Approved, IssuingView};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let a new issuing CA take over now; the root and every certificate stay valid
    #[command(after_help = "Example:\n  postern ca rotate")]
    Rotate,
    /// Let another replica have an issuing CA: run it on the host that holds the root, with the fingerprint that the replica shows
    #[command(
        after_help = "Example:\n  postern ca approve 3f9a…c2 (the key that the waiting replica prints)"
    )]
    Approve {
        /// SHA-256 of the replica's key, hex
        #[arg(value_name = "FINGERPRINT")]
        key: String,
    },
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        if let Self::Approve { key } = self {
            let done: Approved = common.client().post("/v1/ca/approve", &Approve { key }).await?;
            return match common.is_json() {
                true => output::json(&done),
                false => {
                    output::print(&format!("replica {} gets its issuing CA within a second", done.replica))
                }
            };
        }
        let issuing: IssuingView = common.client().post("/v1/ca/rotate", &serde_json::json!({})).await?;
        if common.is_json() {
            return output::json(&issuing);
        }
        output::print(&format!(
            "{} signs from now on, until {}; the root stays, so nobody has to be told",
            issuing.name, issuing.expires_at
        ))
    }
}
