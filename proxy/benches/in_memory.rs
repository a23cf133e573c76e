//! The full mutual handshake without a socket: CPU of each side, of the library as it comes and of what is shipped, in turn.
//!
//! `cargo bench -p postern-proxy --bench in_memory -- [--rounds N] [--json]` runs all settings A B C A B C …, on one thread,
//! so that a machine that changes its speed changes it for all. Leaves are P-256 and signed by a P-256 root. The thread's CPU
//! time is not asked for each step (the question costs more than some steps): with nothing else running wall time is CPU time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proxy::tls::Alpn;

mod support;

use support::Shape;

/// What is compared across implementations.
const FAIR: Shape = Shape { x25519: true, aes_128: true, tickets: false };
/// Handshakes of one setting in one round.
const TURN: u32 = 300;

struct Setting {
    name: &'static str,
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    /// Microseconds a handshake, one by each round.
    server_us: Vec<f64>,
    client_us: Vec<f64>,
}

fn main() {
    // The shipped side knows a chain by the thread that it was seen on, so settings must not share one chain.
    let known = support::chain(false);
    let unknown = support::chain(false);
    let plain = support::chain(false);
    let library = |shape| support::library(&plain, &shape);
    let shipped = |chain: &support::Chain, seen: bool| {
        let (_, tls, connector) = support::tls(chain);
        if seen {
            support::acquaint(&tls, &connector);
        }
        (Arc::clone(tls.server_config(Alpn::Tcp)), Arc::clone(connector.client_config(Alpn::Tcp)))
    };
    // A client of the library's with the same chain: the server is ours, and takes what it is offered.
    let offering_x25519 = |chain, (server, _)| (server, support::library(chain, &FAIR).1);
    let mut settings: Vec<Setting> = [
        ("library: its defaults, hybrid first", library(Shape::DEFAULTS)),
        ("library: X25519, AES-128-GCM, no tickets", library(FAIR)),
        ("shipped: chain never seen", shipped(&unknown, false)),
        ("shipped: chain seen before", shipped(&known, true)),
        ("shipped: chain never seen, X25519 offered", offering_x25519(&unknown, shipped(&unknown, false))),
        ("shipped: chain seen before, X25519 offered", offering_x25519(&known, shipped(&known, true))),
    ]
    .into_iter()
    .map(|(name, (server, client))| Setting {
        name,
        server,
        client,
        server_us: Vec::new(),
        client_us: Vec::new(),
    })
    .collect();

    let arguments: Vec<String> = std::env::args().collect();
    let asked =
        arguments.iter().position(|a| a == "--rounds").and_then(|at| arguments.get(at + 1)?.parse().ok());
    for round in 0..=asked.unwrap_or(15) {
        for setting in &mut settings {
            let (server, client) = turn(setting);
            // The first round fills what is filled once.
            if round > 0 {
                setting.server_us.push(server);
                setting.client_us.push(client);
            }
        }
    }
    show(&settings, arguments.iter().any(|a| a == "--json"));
}

/// Microseconds of server and client, each by handshake.
fn turn(setting: &Setting) -> (f64, f64) {
    let (mut server, mut client) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..TURN {
        support::handshake(&setting.server, &setting.client, |is_server, step| {
            let begun = Instant::now();
            step();
            *(if is_server { &mut server } else { &mut client }) += begun.elapsed();
        });
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(TURN);
    (each(server), each(client))
}

fn show(settings: &[Setting], as_json: bool) {
    let against = settings.first().map(|s| s.server_us.clone()).unwrap_or_default();
    let row = |setting: &Setting| {
        let ratios: Vec<f64> = setting.server_us.iter().zip(&against).map(|(a, b)| a / b).collect();
        (spread(&setting.server_us), spread(&setting.client_us), spread(&ratios))
    };
    if as_json {
        let rows: Vec<_> = settings
            .iter()
            .map(|setting| {
                let (server, client, ratio) = row(setting);
                serde_json::json!({ "setting": setting.name, "server_us": server, "client_us": client, "ratio_to_first": ratio })
            })
            .collect();
        println!("{}", serde_json::json!({ "bench": "in_memory", "median_min_max": true, "rows": rows }));
        return;
    }
    println!(
        "{:<46}{:>22}{:>22}{:>24}",
        "µs a handshake: median (least–most)", "server", "client", "server ÷ first row"
    );
    for setting in settings {
        let (server, client, ratio) = row(setting);
        let us = |s: [f64; 3]| format!("{:.1} ({:.1}–{:.1})", s[0], s[1], s[2]);
        let ratio = format!("{:.2} ({:.2}–{:.2})", ratio[0], ratio[1], ratio[2]);
        println!("{:<46}{:>22}{:>22}{:>24}", setting.name, us(server), us(client), ratio);
    }
}

/// Median, least, most.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or_default();
    [at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1))]
}
