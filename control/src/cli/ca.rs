//! `postern ca`: the authority that signs.

use clap::Subcommand;

use super::{CliError, Common, output};
use crate::api::model::IssuingView;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let a new issuing CA take over now; the root and every certificate stay valid
    #[command(after_help = "Example:\n  postern ca rotate")]
    Rotate,
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let Self::Rotate = self;
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
