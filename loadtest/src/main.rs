//! `postern-loadtest`: arguments → demo, measurements of the control plane, or the small app that stands behind a sidecar.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use postern_loadtest::app::App;
use postern_loadtest::demo::{self, Demo, Interrupt};
use postern_loadtest::{compare, fleet, peers, report, run};

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
    Run(Box<run::Command>),
    Report(report::Command),
    Fleet(fleet::Command),
    Issuance(fleet::Issuance),
    Compare(compare::Command),
    /// An HTTP server that says hello, where there is no python3.
    #[command(hide = true)]
    App,
    #[command(hide = true)]
    Copy(peers::Copy),
}

fn main() -> ExitCode {
    let done = |is_good| if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let (result, is_json) = match Cli::parse().command {
        Command::Run(command) => (run::run(&command), command.is_json()),
        Command::Report(command) => (report::run(&command).map(|()| done(true)), false),
        Command::Demo(demo) => (demo::run(&demo).map(done), demo.is_json()),
        Command::Fleet(command) => (fleet::run(&command).map(done), command.is_json()),
        Command::Issuance(command) => (fleet::run_issuance(&command).map(done), command.is_json()),
        Command::Compare(command) => (compare::run(&command).map(done), command.is_json()),
        Command::Copy(copy) => (copy.run().map(|()| done(true)), false),
        Command::App => (app().map(|()| done(true)), false),
    };
    let error = match result {
        Ok(code) => return code,
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
