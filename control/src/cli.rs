//! The operator's command. Every command but `serve`, `policy check` and `demo` is a client of the admin socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use postern_config::file::FileError;

mod apply;
mod audit;
mod backup;
mod ca;
mod client;
mod demo;
mod federation;
mod identities;
mod jwt;
mod output;
mod policy;
mod remote;
mod revoke;
mod serve;
mod service;
mod status;
mod token;

use client::Client;

/// `postern`, taken apart.
#[derive(Debug, Parser)]
#[command(
    name = "postern",
    version,
    about = "The control plane of Postern: identities, policy and endpoints for every proxy"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// The control plane's data directory; its admin socket lies there [default: pki]
    #[arg(long, global = true, env = "POSTERN_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// The operators' port, https://host:port, instead of the socket
    #[arg(long, global = true, env = "POSTERN_API", value_name = "URL")]
    api: Option<String>,
    /// An operator's certificate, PEM; the file may hold its key and the root as well
    #[arg(long, global = true, env = "POSTERN_API_CERT", value_name = "FILE")]
    api_cert: Option<PathBuf>,
    /// The certificate's private key, PEM [default: in the certificate's file]
    #[arg(long, global = true, env = "POSTERN_API_KEY", value_name = "FILE")]
    api_key: Option<PathBuf>,
    /// The trust domain's root, PEM [default: in the certificate's file]
    #[arg(long, global = true, env = "POSTERN_API_CA", value_name = "FILE")]
    api_ca: Option<PathBuf>,
    /// How answers are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The same as `--output json`
    #[arg(long, global = true)]
    json: bool,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: one JSON value with stable field names.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane
    Serve(serve::Serve),
    /// Join tokens for proxies
    #[command(subcommand)]
    Token(token::Command),
    /// Declare identities from files
    Apply(apply::Apply),
    /// Withdraw a declaration
    #[command(subcommand)]
    Delete(apply::Delete),
    /// Show live identities and their proxies
    Identities(identities::Identities),
    /// Services: names, expected identities, endpoints
    #[command(subcommand)]
    Service(service::Command),
    /// Authorization policies
    #[command(subcommand)]
    Policy(policy::Command),
    /// Other trust domains: whose bundles are fetched, and who gets them
    #[command(subcommand)]
    Federation(federation::Command),
    /// Show the state of the mesh in two lines
    Status(status::StatusCommand),
    /// Take back certificates or whole identities
    Revoke(revoke::Revoke),
    /// The certificate authority
    #[command(subcommand)]
    Ca(ca::Command),
    /// The keys that sign JWT-SVIDs
    #[command(subcommand)]
    Jwt(jwt::Command),
    /// Show the newest audit records
    Audit(audit::Audit),
    /// Write the store, and keys if asked for, into one file
    Backup(backup::Backup),
    /// Restore a backup into an empty data directory
    Restore(backup::Restore),
    /// Run a whole mesh on this machine (hands over to `postern-loadtest demo`)
    #[command(disable_help_flag = true)]
    Demo(demo::Demo),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// A mistake in a file; names the place itself.
    #[error("{0}")]
    File(String),
    /// Said by the control plane.
    #[error("{error}")]
    Refused {
        /// For people.
        error: String,
        /// A closed word.
        kind: String,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<FileError> for CliError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Yaml { .. } => Self::File(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Runs the command line and says how the process shall exit: 0 done, 1 refused or failed, 2 wrong usage.
pub fn main() -> ExitCode {
    // Everything behind `demo` belongs to the other program, options that look like ours included.
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|a| a == "demo") {
        return report(Output::Text, Err(demo::hand_over(&arguments[2..])));
    }
    let mut cli = Cli::parse();
    if cli.common.json {
        cli.common.output = Output::Json;
    }
    let output = cli.common.output;
    report(output, run(cli))
}

fn run(cli: Cli) -> Result<(), CliError> {
    let mut runtime = match cli.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build().map_err(|e| CliError::Failed(format!("no runtime: {e}")))?;
    let common = &cli.common;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(command) => command.run(common).await,
            Command::Token(command) => command.run(common).await,
            Command::Apply(command) => command.run(common).await,
            Command::Delete(command) => command.run(common).await,
            Command::Identities(command) => command.run(common).await,
            Command::Service(command) => command.run(common).await,
            Command::Policy(command) => command.run(common).await,
            Command::Federation(command) => command.run(common).await,
            Command::Status(command) => command.run(common).await,
            Command::Revoke(command) => command.run(common).await,
            Command::Ca(command) => command.run(common).await,
            Command::Jwt(command) => command.run(common).await,
            Command::Audit(command) => command.run(common).await,
            Command::Backup(command) => command.run(common).await,
            Command::Restore(command) => command.run(common).await,
            Command::Demo(command) => Err(demo::hand_over(&command.arguments)),
        }
    })
}

fn report(output: Output, result: Result<(), CliError>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    match (output, &error) {
        (Output::Json, CliError::Refused { error, kind }) => {
            eprintln!("{}", serde_json::json!({ "error": error, "kind": kind }));
        }
        (Output::Json, _) => {
            eprintln!("{}", serde_json::json!({ "error": error.to_string(), "kind": "failed" }))
        }
        (Output::Text, CliError::File(text)) => eprintln!("{text}"),
        (Output::Text, _) => eprintln!("error: {error}"),
    }
    ExitCode::FAILURE
}

impl Common {
    fn data(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new("pki"))
    }

    fn client(&self) -> Result<Client, CliError> {
        let Some(url) = &self.api else { return Ok(Client::new(self.data())) };
        let wanted = "--api needs --api-cert: an operator's certificate";
        let certificate = self.api_cert.as_deref().ok_or_else(|| CliError::Failed(wanted.to_owned()))?;
        let files = remote::Files { certificate, key: self.api_key.as_ref(), roots: self.api_ca.as_ref() };
        Ok(Client::Remote(remote::Remote::new(url, &files)?))
    }

    fn is_json(&self) -> bool {
        self.output == Output::Json
    }
}
