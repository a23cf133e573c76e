//! `postern identities`: who has a valid certificate, and what their proxies last said.

use clap::Args;

use super::{CliError, Common, output};
use crate::api::model::Identity;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern identities --output json | jq '.[] | select(.connected | not)'")]
pub(super) struct Identities {}

impl Identities {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let all: Vec<Identity> = common.client().get("/v1/identities").await?;
        if common.is_json() {
            return output::json(&all);
        }
        let rows: Vec<[String; 7]> = all
            .into_iter()
            .map(|one| {
                let state = match (one.connected, one.error.is_empty()) {
                    (false, _) => "away".to_owned(),
                    (true, true) => "connected".to_owned(),
                    (true, false) => format!("refuses: {}", one.error),
                };
                let generation = one.generation.to_string();
                [
                    one.id.to_string(),
                    one.instance,
                    one.serial,
                    one.expires_at,
                    one.last_seen,
                    generation,
                    state,
                ]
            })
            .collect();
        output::table(["ID", "INSTANCE", "SERIAL", "EXPIRES", "LAST SEEN", "GENERATION", "STATE"], &rows)
    }
}
