//! Warnings about policies that are valid and probably not meant.

use clap::Args;
use postern_config::policy::lint::{Setting, Warning, lint};
use serde_json::json;

use super::{CliError, Common, Files, Read, output};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern policy lint -f policies.yaml --tcp-port 5433

Exits with 1 if there is a warning.")]
pub(in crate::cli) struct Lint {
    #[command(flatten)]
    files: Files,
    /// A port that speaks no HTTP, besides the well-known ones; may be repeated
    #[arg(long = "tcp-port", value_name = "PORT")]
    tcp_ports: Vec<u16>,
    /// The namespace whose policies apply everywhere
    #[arg(long, default_value = super::ROOT_NAMESPACE, value_name = "NAMESPACE")]
    root_namespace: String,
}

impl Lint {
    pub(super) fn run(self, common: &Common) -> Result<(), CliError> {
        let documents = self.files.read()?;
        let warnings = of(&documents, &self.root_namespace, &self.tcp_ports);
        if common.is_json() {
            output::json(&warnings.0.iter().map(Placed::value).collect::<Vec<_>>())?;
        } else {
            warnings.0.iter().try_for_each(|warning| output::print(&warning.text()))?;
        }
        match warnings.0.len() {
            0 => Ok(()),
            1 => Err(CliError::Failed("there is 1 warning".to_owned())),
            count => Err(CliError::Failed(format!("there are {count} warnings"))),
        }
    }
}

/// Warnings, each with its file's name.
pub(super) struct Warnings(Vec<Placed>);

struct Placed {
    file: String,
    warning: Warning,
}

/// The warnings about what was read.
pub(super) fn of(documents: &Read, root_namespace: &str, tcp_ports: &[u16]) -> Warnings {
    let warnings = lint(&documents.documents, &Setting { root_namespace, tcp_ports });
    let placed = |warning: Warning| Placed {
        file: documents.files.get(warning.file).cloned().unwrap_or_default(),
        warning,
    };
    Warnings(warnings.into_iter().map(placed).collect())
}

impl Warnings {
    /// Says them beside a command's own answer.
    pub(super) fn tell(&self, common: &Common) {
        for warning in &self.0 {
            if common.is_json() {
                eprintln!("{}", warning.value());
            } else {
                eprintln!("{}", warning.text());
            }
        }
    }
}

impl Placed {
    fn text(&self) -> String {
        let Warning { line, message, .. } = &self.warning;
        format!("{}:{line}  warning: {message}", self.file)
    }

    fn value(&self) -> serde_json::Value {
        let Warning { line, kind, message, .. } = &self.warning;
        json!({ "file": self.file, "line": line, "kind": kind, "warning": message })
    }
}
