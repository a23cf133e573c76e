//! Who takes part in the demo: control plane, the shop's program, and three sidecars.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{GREETING, Interrupt};
use crate::http;
use crate::mesh::{
    Binaries, ControlOptions, ControlPlane, Process, READY, Sidecar, SidecarOptions, allow_only, until,
};

pub(super) const TRUST_DOMAIN: &str = "demo.postern";
/// So short that even an impatient eye sees certificates change.
const TTL: &str = "10s";
/// For the first request to pass: endpoints are announced and pushed after the sidecars are ready.
const FIRST: Duration = Duration::from_secs(10);

/// Everything that runs, in the order in which it goes: callers first, the control plane last.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) web: Sidecar,
    pub(super) stranger: Sidecar,
    pub(super) shop: Sidecar,
    /// What the shop's program is, in words.
    pub(super) app_name: &'static str,
    pub(super) app_address: SocketAddr,
    app: Process,
    pub(super) control: ControlPlane,
    /// From start to ready.
    pub(super) control_took: Duration,
    /// What the shop's sidecar had counted before the traffic that is shown.
    pub(super) before: Counts,
}

/// What the shop's sidecar has counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Inbound handshakes that ended well.
    pub(super) handshakes: u64,
    /// Inbound connections that the policy denied.
    pub(super) denied: u64,
}

impl Stage {
    /// Starts everything below `dir`; `None` when somebody ended it in between.
    pub(super) fn set_up(binaries: &Binaries, dir: &Path, interrupt: &Interrupt) -> Result<Option<Self>> {
        let began = Instant::now();
        let options = ControlOptions { trust_domain: TRUST_DOMAIN.to_owned(), ..Default::default() };
        let control = ControlPlane::start(binaries, dir, options)?;
        let control_took = began.elapsed();
        control.apply_service("shop", &id("shop"), &[])?;
        let web_alone = [id("web").trim_start_matches("spiffe://").to_owned()];
        control.apply_policy(&allow_only("shop-callers", &web_alone))?;
        let (app, app_name, app_address) = shop_program(dir)?;
        let sidecar = |name: &str, connect: fn(SidecarOptions, SocketAddr) -> SidecarOptions| {
            let join = control.token(&id(name), &[])?;
            let options = connect(SidecarOptions::new(name, Some(join)).ttl(TTL), app_address);
            Sidecar::start(binaries, dir, options)
        };
        if interrupt.has_come() {
            return Ok(None);
        }
        let shop = sidecar("shop", |options, app| options.inbound(app, Some("shop")))?;
        let web = sidecar("web", |options, _| options.outbound("shop"))?;
        let stranger = sidecar("stranger", |options, _| options.outbound("shop"))?;
        let before = Counts::default();
        let mut stage =
            Self { web, stranger, shop, app_name, app_address, app, control, control_took, before };
        until(FIRST, || stage.is_known().then_some(()))
            .context("the shop's endpoint did not become known to its callers")?;
        stage.before = stage.shop_counts()?;
        Ok(if interrupt.has_come() { None } else { Some(stage) })
    }

    /// Whether both callers come as far as the shop's sidecar.
    fn is_known(&self) -> bool {
        let is_answered = http::get(self.web.outbound(), "/", FIRST).is_ok();
        let _ = http::get(self.stranger.outbound(), "/", FIRST);
        is_answered && self.is_quiet() && self.shop_counts().is_ok_and(|c| c.denied > 0)
    }

    /// What the shop's sidecar has counted so far.
    pub(super) fn shop_counts(&self) -> Result<Counts> {
        let metrics = self.shop.metrics()?;
        let inbound = |last| [("direction", "inbound"), last];
        Ok(Counts {
            handshakes: metrics.count("postern_handshakes_total", &inbound(("result", "ok"))),
            denied: metrics.count("postern_connections_total", &inbound(("outcome", "denied"))),
        })
    }

    /// The three sidecars with their names.
    pub(super) fn sidecars(&self) -> [(&'static str, &Sidecar); 3] {
        [("web", &self.web), ("shop", &self.shop), ("stranger", &self.stranger)]
    }

    /// Whether no connection is open at the shop.
    pub(super) fn is_quiet(&self) -> bool {
        self.shop.metrics().is_ok_and(|m| m.value("postern_open_connections", &[]) == 0.0)
    }

    /// Ends everything in order; what does not end by itself is killed.
    pub(super) fn strike(mut self) {
        let ended =
            [self.web.stop(), self.stranger.stop(), self.shop.stop(), self.app.stop(), self.control.stop()];
        for error in ended.iter().filter_map(|e| e.as_ref().err()) {
            eprintln!("{error:#}");
        }
    }
}

/// The identity of a workload.
pub(super) fn id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/demo/sa/{name}")
}

/// Python's own server, which knows nothing of us; our small one where python3 is missing.
fn shop_program(dir: &Path) -> Result<(Process, &'static str, SocketAddr)> {
    let www = dir.join("www");
    fs::create_dir(&www)?;
    fs::write(www.join("index.html"), GREETING)?;
    let mut python = Command::new("python3");
    python.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"]).arg(&www);
    if let Ok(mut process) = Process::spawn("app", python, dir) {
        // "Serving HTTP on 127.0.0.1 port 43210 (http://127.0.0.1:43210/) ..."
        let port = |line: &str| line.split_once(" port ")?.1.split(' ').next()?.parse::<u16>().ok();
        if let Ok(port) = process.wait_for_line(READY, port) {
            return Ok((process, "python http.server", SocketAddr::from(([127, 0, 0, 1], port))));
        }
    }
    let mut own = Command::new(std::env::current_exe()?);
    own.arg("app");
    let mut process = Process::spawn("app", own, dir)?;
    let listening = |line: &str| line.strip_prefix("listening on ")?.parse().ok();
    let address: SocketAddr = process.wait_for_line(READY, listening)?;
    if !address.ip().is_loopback() {
        bail!("{address} is not on loopback");
    }
    Ok((process, "a small HTTP server", address))
}
