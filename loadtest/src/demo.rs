//! `postern demo`: a whole mesh on this machine, under traffic, with certificates that live ten seconds.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use postern_config::file::Span;

use crate::load::{Load, Plan};
use crate::mesh::{Binaries, until};

mod interrupt;
mod place;
mod show;
mod stage;
mod tally;

pub use interrupt::Interrupt;
use place::Place;
use show::Show;
use stage::Stage;
use tally::Summary;

/// What the program behind the shop's sidecar answers.
pub const GREETING: &str = "hello from the shop\n";

/// New connections a second through `web`: each is a full handshake, and a laptop does not notice them.
const RATE: f64 = 200.0;
/// … and through `stranger`.
const STRANGER_RATE: f64 = 1.0;
/// For the records of the last connections to be counted.
const SETTLE: Duration = Duration::from_secs(3);

/// Run a control plane, two sidecars around an HTTP program and one that the policy denies, under traffic
#[derive(Debug, Args)]
#[command(
    override_usage = "postern demo [OPTIONS]",
    after_help = "Examples:
  postern demo
  postern demo --duration 60s --json
  postern demo --duration 5s --keep

Exit codes: 0 every request was answered and the stranger never, 1 otherwise, 2 wrong usage."
)]
pub struct Demo {
    /// How long traffic flows
    #[arg(long, default_value = "30s", value_name = "TIME")]
    duration: Span,
    /// Leave everything running after the summary, until ^C, and its directory for good
    #[arg(long)]
    keep: bool,
    /// Where data and logs lie; made, and removed at exit
    #[arg(long, default_value = "./postern-demo", value_name = "DIR")]
    data: PathBuf,
    /// How the summary is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The same as `--output json`
    #[arg(long)]
    json: bool,
}

/// How the summary is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people, with a live table.
    Text,
    /// One JSON object.
    Json,
}

impl Demo {
    /// Whether one JSON object is all that standard output gets.
    pub fn is_json(&self) -> bool {
        self.json || self.output == Output::Json
    }
}

/// Runs it to its end; says whether every promise was kept.
pub fn run(demo: &Demo) -> Result<bool> {
    // Before the first process: from here on ^C is an orderly end.
    let interrupt = Interrupt::watch()?;
    let binaries = Binaries::siblings()?;
    let place = Place::claim(&demo.data, demo.keep)?;
    let show = match (demo.is_json(), std::io::stdout().is_terminal()) {
        (true, _) => Show::Nothing,
        (false, true) => Show::Live,
        (false, false) => Show::Lines,
    };
    show.title(stage::TRUST_DOMAIN, place.path(), demo.keep)?;
    let Some(stage) = Stage::set_up(&binaries, place.path(), &interrupt)? else {
        return Ok(true);
    };
    show.stage(&stage)?;

    let summary = drive(demo, &stage, show, &interrupt)?;
    if demo.is_json() {
        show::json(&summary.to_json())?;
    } else {
        show.summary(&stage, &summary, demo.keep)?;
    }
    if demo.keep {
        show.by_hand(&stage, &binaries)?;
        interrupt.wait();
    }
    stage.strike();
    Ok(summary.is_good())
}

/// Traffic until the time is over or somebody ends it, and what came of it.
fn drive(demo: &Demo, stage: &Stage, show: Show, interrupt: &Interrupt) -> Result<Summary> {
    let began = Instant::now();
    let web = Load::start(Plan::new(stage.web.outbound(), RATE))?;
    let stranger = Load::start(Plan::new(stage.stranger.outbound(), STRANGER_RATE))?;
    let end = began + demo.duration.as_duration();
    show.head()?;
    let mut next = began + show.step();
    while Instant::now() < end && !interrupt.within(next.min(end).saturating_duration_since(Instant::now())) {
        if Instant::now() >= next {
            show.row(&Summary::read(stage, began.elapsed(), web.tally(), stranger.tally())?)?;
            next += show.step();
        }
    }
    let took = began.elapsed();
    let (web, stranger) = (web.finish(), stranger.finish());
    // The shop counts a connection when both its ends are closed, which may be after its caller has read the answer.
    until(SETTLE, || stage.is_quiet().then_some(()));
    Summary::read(stage, took, web, stranger).context("at the end")
}
