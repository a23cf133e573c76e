//! The acceptor under a flood.

use std::future::poll_fn;
use std::net::TcpStream;
use std::task::Poll;

use tokio::task::LocalSet;

use super::*;
use crate::inbound::App;
use crate::snapshot::Snapshots;
use crate::telemetry::{self, Metrics};

fn acceptor() -> Acceptor {
    let metrics = Arc::new(Metrics::new(&Arc::new(Snapshots::default()), &Default::default()));
    let (telemetry, _) = telemetry::start(metrics, None).unwrap();
    Acceptor {
        connections: Connections::new(10_000),
        admission: Admission::new(256, 64),
        workers: Vec::new(),
        telemetry,
    }
}

/// SIGTERM, the line of those that wait, and the other listeners all need their turn on this thread.
#[test]
fn a_flood_on_one_listener_does_not_keep_the_thread_to_itself() {
    let listener = Listener::bind(
        ([127, 0, 0, 1], 0).into(),
        Route::Outbound(crate::outbound::Exit {
            to: crate::outbound::Destination::Service("none".into()),
            protocol: postern_config::file::proxy::Protocol::Tcp,
            rate: None,
        }),
    )
    .unwrap();
    let address = listener.address().unwrap();
    let flood: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(address).unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    flood.iter().for_each(|s| s.set_nonblocking(true).unwrap());
    // Without a worker, what was accepted is closed at once.
    let accepted = || {
        flood
            .iter()
            .filter(|s| !matches!(s.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock))
            .count()
    };
    LocalSet::new().block_on(&runtime, async {
        let socket = os::watch_listener(listener.socket).unwrap();
        socket.readable().await.unwrap().retain_ready();
        let acceptor = acceptor();
        let accepting = accept_all(&socket, &listener.route, &acceptor);
        tokio::pin!(accepting);
        poll_fn(|cx| {
            assert!(accepting.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let first_turn = accepted();
        assert!((1..flood.len()).contains(&first_turn), "{first_turn} accepted without a pause");
    });
}

/// What the kernel has accepted for a listener that stops is served; closing the socket would reset it.
#[test]
fn whoever_waits_in_the_kernels_queue_when_a_listener_stops_is_taken() {
    let listener = Listener::bind(
        ([127, 0, 0, 1], 0).into(),
        Route::Outbound(crate::outbound::Exit {
            to: crate::outbound::Destination::Service("none".into()),
            protocol: postern_config::file::proxy::Protocol::Tcp,
            rate: None,
        }),
    )
    .unwrap();
    let address = listener.address().unwrap();
    let queued: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    let (inquiry, _questions) = crate::worker::show::Inquiry::new(0);
    let (handle, mut jobs) = Handle::new(inquiry);
    let mut acceptor = acceptor();
    acceptor.workers = vec![handle];
    // Stopped before it began: not one was accepted until then.
    let stops = Stops::default();
    stops.inbound.cancel();
    stops.outbound.cancel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, run(vec![listener], acceptor, stops)).unwrap();
    let mut taken = 0;
    while jobs.try_recv().is_ok() {
        taken += 1;
    }
    assert_eq!(taken, queued.len());
    assert!(TcpStream::connect(address).is_err(), "the listener is closed");
}

/// Who stands in line for a handshake when the listeners stop gets it as soon as one is free.
#[test]
fn the_line_is_served_to_its_end() {
    let route = Route::Inbound(App::new(
        "127.0.0.1:1",
        postern_config::file::proxy::Protocol::Tcp,
        &Default::default(),
    ));
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), route).unwrap();
    let queued: Vec<TcpStream> =
        (0..7).map(|_| TcpStream::connect(listener.address().unwrap()).unwrap()).collect();
    let (inquiry, _questions) = crate::worker::show::Inquiry::new(0);
    let (handle, mut jobs) = Handle::new(inquiry);
    let mut acceptor = acceptor();
    acceptor.workers = vec![handle];
    // One handshake at a time.
    acceptor.admission = Admission::new(1, 1);
    let stops = Stops::default();
    stops.inbound.cancel();
    stops.outbound.cancel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut served = 0;
    LocalSet::new().block_on(&runtime, async {
        let serving = async {
            while let Some(job) = jobs.recv().await {
                served += 1;
                drop(job);
            }
        };
        let (ended, ()) = tokio::join!(run(vec![listener], acceptor, stops), serving);
        ended.unwrap();
    });
    assert_eq!(served, queued.len());
}
