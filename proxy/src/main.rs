//! `postern-proxy`: arguments → configuration → run.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postern_config::file::{self, proxy::ProxyConfig};
use postern_proxy::inherit::Inherited;
use postern_proxy::os::activation::{self, Passed};
use postern_proxy::{Ready, Start, telemetry};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "jemalloc")]
mod allocator;
mod args;
mod operator;

use args::{Cli, Command, Output, RunArgs};

fn main() -> ExitCode {
    // Before anything else runs or is opened: descriptors are passed by number.
    let passed = activation::take();
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Check { file, output }) => check(&file, output),
        Some(Command::Admin(asked)) => operator::run(*asked),
        None => run(cli.run, passed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = format!("{error:#}");
            // A mistake in a file already says "error" behind its place.
            let head = if text.contains("error: ") { "" } else { "error: " };
            let _ = writeln!(std::io::stderr(), "{head}{text}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path, output: Output) -> anyhow::Result<()> {
    let result = file::load::<ProxyConfig>(path)
        .map_err(anyhow::Error::from)
        .and_then(|config| config.check().map_err(|e| anyhow::anyhow!("{}: {e}", path.display())));
    let mut out = std::io::stdout();
    match (output, result) {
        (Output::Text, result) => {
            result?;
            writeln!(out, "{}: ok", path.display())?;
            Ok(())
        }
        (Output::Json, Ok(())) => Ok(writeln!(out, "{}", serde_json::json!({ "ok": true }))?),
        (Output::Json, Err(error)) => {
            writeln!(out, "{}", serde_json::json!({ "ok": false, "error": format!("{error:#}") }))?;
            Err(error)
        }
    }
}

fn run(args: RunArgs, passed: Vec<Passed>) -> anyhow::Result<()> {
    let output = args.output;
    let (config, join) = args.resolve()?;
    let (log, _flush) = telemetry::logs(&config.log).map_err(anyhow::Error::msg)?;
    raise_descriptor_limit(config.limits.connections);
    #[cfg(feature = "jemalloc")]
    allocator::give_back_when_idle();
    let shutdown = CancellationToken::new();
    stop_on_signal(shutdown.clone()).context("signals cannot be watched")?;
    let start = Start { config, join, log, inherited: inherit(passed)? };
    postern_proxy::run(start, &shutdown, |ready| announce(ready, output))?;
    Ok(())
}

/// The sockets that systemd has bound for this process. One that cannot be used is a mistake in the unit.
fn inherit(passed: Vec<Passed>) -> anyhow::Result<Inherited> {
    let mut inherited = Inherited::default();
    for Passed { name, fd } in passed {
        let number = fd.as_raw_fd();
        let added = inherited.add(fd, None);
        let at =
            added.map_err(|why| anyhow::anyhow!("socket activation: descriptor {number} ({name}): {why}"))?;
        tracing::info!(address = %at, name, "a socket was passed by socket activation");
    }
    Ok(inherited)
}

/// Two descriptors per connection: takes what the system allows.
fn raise_descriptor_limit(connections: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let raised =
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let needed = connections as u64 * 2;
    if raised < needed {
        tracing::warn!(
            limit = raised,
            needed,
            "too few file descriptors for limits.connections; raise `ulimit -n`"
        );
    }
}

/// SIGTERM and SIGINT begin the drain; a second one ends the process at once.
fn stop_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut term, mut int) = runtime.block_on(async {
        Ok::<_, std::io::Error>((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    })?;
    std::thread::Builder::new().name("postern-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            for first in [true, false] {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                if first {
                    shutdown.cancel();
                } else {
                    std::process::exit(1);
                }
            }
        });
    })?;
    Ok(())
}

fn announce(ready: &Ready, output: Output) {
    let seconds = ready.expires_in.as_secs();
    let line = match output {
        Output::Json => serde_json::json!({
            "event": "ready",
            "id": ready.id,
            "expires_in_s": seconds,
            "inbound": ready.bound.inbound,
            "outbound": ready.bound.outbound,
            "gateway": ready.bound.gateway,
            "metrics": ready.bound.metrics,
            "admin": ready.bound.admin,
        })
        .to_string(),
        Output::Text => {
            format!(
                "ready · {} · expires in {}, renews in about {}",
                ready.id,
                spoken(seconds),
                spoken(seconds * 45 / 100)
            )
        }
    };
    // Whoever started this process may have closed its standard output.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A length of time as people say it.
fn spoken(seconds: u64) -> String {
    if seconds >= 120 { format!("{} min", (seconds + 30) / 60) } else { format!("{seconds} s") }
}
