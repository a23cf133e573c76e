//! `postern audit`: who asked for what, and what became of it.

use clap::Args;

use super::{CliError, Common, output};
use crate::clock::rfc3339;
use crate::store::Record;

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern audit --last 200 --output json | jq '.[] | select(.outcome == \"refused\")'")]
pub(super) struct Audit {
    /// How many records
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    last: u32,
}

impl Audit {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let records: Vec<Record> = common.client().get(&format!("/v1/audit?last={}", self.last)).await?;
        if common.is_json() {
            return output::json(&records);
        }
        let rows: Vec<[String; 6]> = records
            .into_iter()
            .map(|r| {
                let detail = match r.detail.get("reason").and_then(|reason| reason.as_str()) {
                    Some(reason) => reason.to_owned(),
                    None => String::new(),
                };
                [rfc3339(r.at), r.actor, r.action, r.subject, r.outcome, detail]
            })
            .collect();
        output::table(["AT", "WHO", "WHAT", "ON", "OUTCOME", "REASON"], &rows)
    }
}
