//! What others can use up is bounded, and an honest peer gets through all the same.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::client::{Client, config, tcp};
use crate::support::eventually;
use crate::support::metrics::{failed, open};
use crate::support::scene::Scene;

/// Silent connections from one source.
const FLOOD: usize = 5000;

/// A connection that is begun from this source; whether it is taken does not matter.
fn begin(source: Ipv4Addr, to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&to.into());
    socket
}

#[test]
fn silent_connections_of_one_source_do_not_keep_others_out() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    // Half of what there may be, for the rest of this test.
    let flood = FLOOD.min(usize::try_from(hard / 2).unwrap());
    let scene = Scene::new();
    let idle = scene.proxy.descriptors();
    let before = scene.proxy.metrics();
    let flooded = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let source = Ipv4Addr::new(127, 0, 0, 2);
            let silent: Vec<Socket> = (0..flood).map(|_| begin(source, scene.proxy.inbound)).collect();
            flooded.store(true, Ordering::Release);
            silent
        });
        let mut most = 0;
        let mut served = 0;
        while served < 50 || !flooded.load(Ordering::Acquire) {
            // From another source each time, and from one that stays the same.
            scene.inbound_works();
            most = most.max(scene.proxy.descriptors());
            served += 1;
        }
        let silent = flooding.join().unwrap();
        scene.inbound_works();
        drop(silent);
        most
    });
    // 64 handshakes and eight times as many in line; every connection beyond them is closed at once.
    assert!(most <= idle + 64 * 9 + 16, "{most} descriptors");
    let counted = || {
        let now = scene.proxy.metrics();
        let of = |reason| now.of(&failed("inbound", reason)) - before.of(&failed("inbound", reason));
        (of("overload"), of("overload") + of("timeout") + of("reset"))
    };
    eventually("each of them to be counted", || (counted().1 == flood as u64).then_some(()));
    assert!(counted().0 > 0);
    eventually("their end", || (scene.proxy.metrics().of(&open("inbound")) == 0).then_some(()));
    scene.inbound_works();
    scene.nothing_is_left();
    let log = scene.proxy.log();
    let lines = log.iter().filter(|l| l.contains("\"source\":\"127.0.0.2:")).count();
    let dropped = scene.proxy.metrics().of("postern_records_dropped_total");
    assert_eq!(
        lines as u64 + dropped,
        flood as u64,
        "one line for each, or one on the count of what was dropped"
    );
}

#[test]
fn a_lack_of_descriptors_costs_patience_not_cpu() {
    let scene = Scene::with(|mut options| {
        options.descriptors = Some(96);
        options.yaml("limits: { handshake_timeout: 10s, handshakes_per_source: 256 }")
    });
    let before = scene.proxy.metrics().of("postern_accept_errors_total");
    let silent: Vec<Socket> =
        (0..200).map(|_| begin(Ipv4Addr::new(127, 0, 0, 3), scene.proxy.inbound)).collect();
    eventually("a lack of descriptors", || {
        scene.proxy.log().iter().any(|line| line.contains("cannot accept")).then_some(())
    });
    let (begun, ticks) = (Instant::now(), scene.proxy.cpu_ticks());
    eventually("a second", || (begun.elapsed() >= Duration::from_secs(1)).then_some(()));
    let used = scene.proxy.cpu_ticks() - ticks;
    let wall = begun.elapsed().as_millis() as u64 / 10;
    assert!(used * 3 < wall, "{used} of {wall} ticks were spent on nothing");
    drop(silent);
    scene.inbound_works();
    scene.outbound_works();
    eventually("their end", || (scene.proxy.metrics().of(&open("inbound")) == 0).then_some(()));
    scene.nothing_is_left();
    assert!(scene.proxy.metrics().of("postern_accept_errors_total") > before);
}

#[test]
fn connections_beyond_the_limit_wait_their_turn() {
    let scene = Scene::with(|options| options.yaml("limits: { connections: 3 }"));
    let honest = scene.mesh.honest();
    let config = || config(Some(&honest));
    let mut clients: Vec<Client> =
        (0..3).map(|_| Client::connect(scene.proxy.inbound, config()).unwrap()).collect();
    for client in &mut clients {
        client.send(b"in").unwrap();
        assert_eq!(client.receive(2), b"in");
    }
    let mut next = Client::prepare(tcp(scene.proxy.inbound), config());
    next.tls.write_tls(&mut next.tcp).unwrap();
    assert_eq!(scene.proxy.metrics().of(&open("inbound")), 3);
    clients.truncate(2);
    next.handshake().unwrap();
    assert_eq!(next.echo(b"next").0, b"next");
}

/// Handshakes that never end stand in line with those of their own source alone.
#[test]
fn a_source_waits_for_itself() {
    let limits = "limits: { handshakes_in_progress: 4, handshakes_per_source: 2, handshake_timeout: 10s }";
    let scene = Scene::with(|options| options.yaml(limits));
    let source = Ipv4Addr::new(127, 0, 0, 4);
    // Two in progress, sixteen in line; the others are refused.
    let silent: Vec<Socket> = (0..30).map(|_| begin(source, scene.proxy.inbound)).collect();
    let overload = || scene.proxy.metrics().of(&failed("inbound", "overload"));
    eventually("twelve refusals", || (overload() == 12).then_some(()));
    scene.inbound_works();
    let metrics = scene.proxy.metrics();
    assert_eq!((metrics.of(&open("inbound")), metrics.of("postern_handshakes_queued_total")), (2, 16));
    drop(silent);
    scene.nothing_is_left();
}
