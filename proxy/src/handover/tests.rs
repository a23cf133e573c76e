//! Both sides in one process: what a successor gets, and what becomes of those that should get nothing.

use std::net::TcpListener;
use std::path::PathBuf;
use std::thread::JoinHandle;

use socket2::Socket;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::inherit::Inherited;
use crate::os::passing;
use crate::os::private_socket::{self, Kind, Occupied, PrivateSocket};
use crate::succession::{Pen, Succession};

/// A predecessor with one inbound and one metrics socket.
struct Rig {
    dir: tempfile::TempDir,
    inbound: SocketAddr,
    metrics: SocketAddr,
    giver: Giver,
    stop: CancellationToken,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets = [Role::Inbound, Role::Metrics]
            .map(|role| Offer { role, socket: TcpListener::bind("127.0.0.1:0").unwrap() });
        let [inbound, metrics] = [0, 1].map(|i: usize| sockets[i].socket.local_addr().unwrap());
        let giver = Giver {
            offers: Offers::new(sockets.into()),
            pen: Pen::default(),
            succession: Succession::default(),
        };
        let (open, stop) = (CancellationToken::new(), CancellationToken::new());
        open.cancel();
        let path = dir.path().join("handover.sock");
        let socket = PrivateSocket::prepare(&path, Kind::Messages, Occupied::Refuse).unwrap();
        let running = giver.clone();
        let stopped = stop.clone();
        let (published, mut is_published) = tokio::sync::mpsc::channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let run = running.run(socket, Occupied::Refuse, open, stopped, published);
            LocalSet::new().block_on(&runtime, run)
        });
        let rig = Self { dir, inbound, metrics, giver, stop, thread: Some(thread) };
        assert_eq!(is_published.blocking_recv(), None);
        assert!(rig.path().exists());
        rig
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("handover.sock")
    }

    fn take(&self) -> Result<(Predecessor, Inherited), HandoverError> {
        let mut inherited = Inherited::default();
        take(&self.path(), &mut inherited).map(|p| (p.expect("somebody answers"), inherited))
    }

    fn refusal(&self) -> String {
        match self.take() {
            Err(HandoverError::Refused(why)) => why,
            other => panic!("{:?}", other.map(|_| "taken")),
        }
    }

    /// A connection of somebody who speaks for himself.
    fn connect(&self) -> Socket {
        private_socket::connect(&self.path(), Kind::Messages).unwrap()
    }

    fn may_renew(&self) -> bool {
        self.giver.pen.try_take().is_some()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn eventually(so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    panic!("waited in vain");
}

#[test]
fn the_sockets_arrive_and_only_the_word_of_the_successor_ends_the_old_one() {
    let rig = Rig::new();
    let (predecessor, mut inherited) = rig.take().unwrap();
    assert!(!rig.may_renew(), "the identity is about to be the successor's");
    let inbound = inherited.claim(Role::Inbound, rig.inbound).unwrap();
    assert_eq!(inbound.local_addr().unwrap(), rig.inbound);
    assert!(inherited.claim(Role::Inbound, rig.metrics).is_none(), "roles come along");
    assert!(!rig.giver.succession.includes(rig.inbound));
    // It serves one of the two.
    let leaving = predecessor.ready(&[rig.inbound]).expect("it says farewell");
    assert!(rig.giver.succession.includes(rig.inbound) && !rig.giver.succession.includes(rig.metrics));
    assert!(!rig.may_renew());
    rig.giver.offers.close();
    assert!(rig.refusal().contains("already"), "it gives nothing twice");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut gone = Box::pin(leaving.gone());
    runtime.block_on(async {
        let now = tokio::time::timeout(std::time::Duration::ZERO, gone.as_mut()).await;
        assert!(now.is_err(), "its process still runs");
    });
    drop(rig);
    runtime.block_on(gone).unwrap();
}

#[test]
fn a_successor_that_dies_before_it_is_ready_changes_nothing() {
    let rig = Rig::new();
    for _ in 0..3 {
        drop(rig.take().unwrap());
        eventually(|| rig.may_renew());
    }
    assert!(!rig.giver.succession.includes(rig.inbound));
    assert!(rig.take().is_ok(), "the next one may try");
}

#[test]
fn of_two_successors_the_second_is_refused() {
    let rig = Rig::new();
    let first = rig.take().unwrap();
    assert!(rig.refusal().contains("another process is taking over"));
    let _leaving = first.0.ready(&[rig.inbound, rig.metrics]);
    assert!(rig.giver.succession.includes(rig.metrics), "the first was not disturbed");
}

#[test]
fn a_process_that_stops_gives_nothing() {
    let rig = Rig::new();
    rig.giver.offers.close();
    assert!(rig.refusal().contains("stopping"));
    eventually(|| rig.may_renew());
}

#[test]
fn another_protocol_half_a_talk_and_noise_are_turned_away() {
    let rig = Rig::new();
    let hello = |protocol| Message::Hello { protocol, version: "9.9".to_owned() }.to_bytes();
    let future = rig.connect();
    passing::send(&future, &hello(PROTOCOL + 1), None).unwrap();
    let (answer, _) = Message::read(passing::receive(&future).unwrap()).unwrap();
    assert!(matches!(&answer, Message::Refused { why } if why.contains("9.9")), "{answer:?}");
    for noise in [&b"noise"[..], b"{\"say\":\"ready\"}", b"{", &[0; passing::MAX_MESSAGE + 1]] {
        let stranger = rig.connect();
        passing::send(&stranger, noise, None).unwrap();
        assert!(passing::receive(&stranger).unwrap().0.is_empty(), "it is hung up on");
    }
    // Ends in the midst of what it takes.
    let half = rig.connect();
    passing::send(&half, &hello(PROTOCOL), None).unwrap();
    for _ in 0..3 {
        passing::receive(&half).unwrap();
    }
    passing::send(&half, &Message::Taken { address: rig.inbound }.to_bytes(), None).unwrap();
    drop(half);
    eventually(|| rig.may_renew());
    assert!(!rig.giver.succession.includes(rig.inbound));
}

#[test]
fn nobody_there_is_no_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handover.sock");
    assert!(take(&path, &mut Inherited::default()).unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    // A dead socket of the wrong kind, too.
    let taken = take(&path, &mut Inherited::default());
    assert!(matches!(taken, Ok(None) | Err(HandoverError::Broken(_))));
}

/// A predecessor that says something else than it should.
#[test]
fn a_predecessor_that_breaks_off_or_lies_is_no_predecessor() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let one = Message::Socket { role: Role::Inbound, address }.to_bytes();
    let other = Message::Socket { role: Role::Inbound, address: "127.0.0.1:1".parse().unwrap() }.to_bytes();
    let end = |count| Message::End { count }.to_bytes();
    type Said = Vec<(Vec<u8>, bool)>;
    let lies: [Said; 6] = [
        vec![],
        vec![(one.clone(), true)],
        vec![(one.clone(), true), (end(2), false)],
        vec![(one.clone(), false), (end(1), false)],
        vec![(other, true), (end(1), false)],
        vec![(end(0), true)],
    ];
    for said in lies {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("handover.sock");
        let prepared = PrivateSocket::prepare(&path, Kind::Messages, Occupied::Refuse).unwrap();
        let (listener, _place) = prepared.publish(Occupied::Refuse).unwrap();
        let listener = Socket::from(listener);
        listener.set_nonblocking(false).unwrap();
        let passed = OwnedFd::from(socket.try_clone().unwrap());
        let lying = std::thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            passing::receive(&connection).unwrap();
            for (message, with) in &said {
                use std::os::fd::AsFd as _;
                // The other side hangs up at the first lie.
                let _ = passing::send(&connection, message, with.then(|| passed.as_fd()));
            }
        });
        let taken = take(&path, &mut Inherited::default());
        assert!(matches!(taken, Err(HandoverError::Broken(_))), "{:?}", taken.map(|_| ()));
        lying.join().unwrap();
    }
}
