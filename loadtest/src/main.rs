//! `postern-loadtest`: arguments → demo, measurements of the control plane, or the small app that stands behind a sidecar.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use postern_loadtest::app::App;
use postern_loadtest::demo::{self, Demo, Interrupt};
use postern_loadtest::fleet;

/// Runs whole meshes of real processes on this machine.
#[derive(Debug, Parser)]
#[command(name = "postern-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(Demo),
    Fleet(fleet::Command),
    Issuance(fleet::Issuance),
    /// An HTTP server that says hello, where there is no python3.
    #[command(hide = true)]
    App,
}

fn main() -> ExitCode {
    let (result, is_json) = match Cli::parse().command {
        Command::Demo(demo) => (demo::run(&demo), demo.is_json()),
        Command::Fleet(command) => (fleet::run(&command), command.is_json()),
        Command::Issuance(command) => (fleet::run_issuance(&command), command.is_json()),
        Command::App => (app().map(|()| true), false),
    };
    let error = match result {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::FAILURE,
        Err(error) => format!("{error:#}"),
    };
    let line = match is_json {
        true => serde_json::json!({ "error": error, "kind": "failed" }).to_string(),
        false => format!("error: {error}"),
    };
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::FAILURE
}

fn app() -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let app = App::http(demo::GREETING)?;
    writeln!(std::io::stdout(), "listening on {}", app.address())?;
    interrupt.wait();
    Ok(())
}
