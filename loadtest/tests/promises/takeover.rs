//! One process after another on the same sockets: nobody who connects notices.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::programs::program;
use crate::support::{REQUEST, SOON, steady};
use nix::sys::signal::Signal;
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::load::Tally;
use postern_loadtest::mesh::{Binaries, Mesh, Sidecar, SidecarOptions, free_port, until};

const PER_SECOND: u32 = 60;

/// A sidecar that can be taken over from: it keeps its identity on disk, and its sockets can be asked for.
fn lasting(mesh: &Mesh, options: SidecarOptions) -> SidecarOptions {
    let place = mesh.dir().join(&options.name);
    let mut options = options.cache(&place);
    options.args.extend(["--handover-socket".to_owned(), format!("{}.handover", place.display())]);
    options
}

/// The next generation of `sidecar`: everything as before, on the addresses that it has. It needs no join string.
fn next_of(sidecar: &mut Sidecar, generation: usize) -> SidecarOptions {
    let mut options = sidecar.options().clone();
    options.name = format!("{}-{generation}", options.name);
    options.join = None;
    options
}

/// How many requests go over one connection: bytes that are only relayed know no orderly end but the client's.
const KEPT_FOR: u32 = 25;

/// A client that keeps its connections for a while, and says what went wrong on them.
struct KeepAlive {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl KeepAlive {
    fn start(target: SocketAddr) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            let (mut errors, mut open, mut sent) = (Vec::new(), None, 0);
            while !stopped.load(Ordering::Relaxed) && errors.len() < 10 {
                // A server may close a connection while nobody asks anything on it; that harms no request.
                let kept = open.take().filter(|stream| !is_closed(stream));
                let stream = kept.map_or_else(|| TcpStream::connect(target), Ok);
                sent += 1;
                let keep = sent % KEPT_FOR != 0;
                match stream.and_then(|mut s| exchange(&mut s).map(|goes_on| (goes_on && keep).then_some(s)))
                {
                    Ok(left) => open = left,
                    Err(error) => errors.push(format!("request {counted:?}: {error}")),
                }
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
            errors
        });
        Self { stop, requests, thread: Some(thread) }
    }

    fn finish(mut self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let errors = self.thread.take().unwrap().join().unwrap();
        (self.requests.load(Ordering::Relaxed), errors)
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let looked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    !matches!(looked, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

/// One request; whether the connection goes on.
fn exchange(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.set_read_timeout(Some(REQUEST))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"hello") {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(std::io::Error::other(format!("ended after {:?}", String::from_utf8_lossy(&answer))));
        }
        answer.extend_from_slice(&buffer[..n]);
    }
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    Ok(!head.contains("\r\nconnection: close"))
}

/// An app that keeps connections, too.
fn keeping_app() -> App {
    App::start(|mut stream| {
        let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => head.extend_from_slice(&buffer[..n]),
                }
            }
            let close = String::from_utf8_lossy(&head).to_ascii_lowercase().contains("connection: close");
            let connection = if close { "connection: close\r\n" } else { "" };
            write!(stream, "HTTP/1.1 200 OK\r\n{connection}content-length: 5\r\n\r\nhello")?;
            if close {
                return stream.shutdown(std::net::Shutdown::Write);
            }
            head.clear();
        }
    })
    .unwrap()
}

fn unharmed(tally: &Tally) {
    assert!(tally.requests > 0);
    assert_eq!(tally.failed, 0, "{tally:?}");
}

#[test]
fn three_generations_of_both_sidecars_fail_no_request_and_reset_no_connection() {
    three_generations("tcp");
}

#[test]
fn three_generations_of_both_sidecars_fail_no_http_request() {
    three_generations("http");
}

fn three_generations(protocol: &str) {
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let inbound = format!("{},protocol={protocol}", app.address());
    let options = lasting(&mesh, mesh.options("shop").unwrap().inbound(inbound, Some("shop")));
    let mut shop = mesh.server_with(options).unwrap();
    let outbound = format!("shop,protocol={protocol}");
    let options = lasting(&mesh, mesh.options("web").unwrap().outbound(&outbound));
    let mut web = mesh.sidecar(options).unwrap();
    let load = steady(web.outbound(), PER_SECOND);
    let keeping = KeepAlive::start(web.outbound());
    for generation in 2..=3 {
        for old in [&mut shop, &mut web] {
            let (address, before) = (old.metrics_address(), load.tally().requests);
            let new = mesh.sidecar(next_of(old, generation)).unwrap();
            assert_eq!(new.listeners(), old.listeners());
            assert_eq!(new.metrics_address(), address);
            assert!(new.ready().unwrap().0, "probes are answered by the one that is ready");
            assert_eq!(new.admin(&["get", "/"]).unwrap()["pid"], new.pid(), "and so are operators");
            until(SOON, || (load.tally().requests > before + u64::from(PER_SECOND)).then_some(())).unwrap();
            let mut gone = std::mem::replace(old, new);
            let status = gone.process().wait(2 * SOON).unwrap();
            assert!(status.success(), "{status}");
            let ends = |outcome: &str| gone.logs().into_iter().filter(|l| l["outcome"] == outcome).count();
            assert_eq!(ends("drained"), 0, "nothing was cut off");
            if protocol == "tcp" {
                assert!(ends("completed") > 0);
                assert_eq!(ends("broken"), 0, "no byte was lost");
            }
        }
    }
    unharmed(&load.finish());
    let (requests, errors) = keeping.finish();
    assert!(requests > 50 && errors.is_empty(), "{requests} kept-alive requests, errors: {errors:?}");
    assert!(shop.admin_socket().exists() && web.admin_socket().exists());
}

/// The proxy, in `dir`, so that whatever it moves to its place arrives late.
fn slow_to_publish(mesh: &Mesh, dir: &Path) -> Binaries {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    std::fs::create_dir(dir).unwrap();
    // `-D` keeps the tracer out of the way: who starts the script gets the proxy's own process.
    let script = format!(
        "#!/bin/sh\nexec {} -D -f -qq -o /dev/null -e trace=/rename -e inject=/rename:delay_enter=300000 {} \"$@\"\n",
        program("strace", "strace").display(),
        mesh.binaries().proxy().display()
    );
    symlink(mesh.binaries().postern(), dir.join("postern")).unwrap();
    std::fs::write(dir.join("postern-proxy"), script).unwrap();
    std::fs::set_permissions(dir.join("postern-proxy"), std::fs::Permissions::from_mode(0o755)).unwrap();
    Binaries::at(dir).unwrap()
}

/// A manager goes on to the next step once it reads that a proxy is ready, an operator asks it something.
#[test]
fn who_reads_that_it_is_ready_finds_its_sockets_in_their_places() {
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let slow = slow_to_publish(&mesh, &mesh.dir().join("slow"));
    let options = lasting(&mesh, mesh.options("shop").unwrap().inbound(app.address(), None));
    let mut first = Sidecar::start(&slow, mesh.dir(), options).unwrap();
    assert_eq!(first.admin(&["get", "/"]).unwrap()["pid"], first.pid());
    let second = Sidecar::start(&slow, mesh.dir(), next_of(&mut first, 2)).unwrap();
    assert_eq!(second.admin(&["get", "/"]).unwrap()["pid"], second.pid());
    assert!(first.process().wait(2 * SOON).unwrap().success(), "the handover socket was there");
}

/// Both hold the same certificate for a while; if both renewed it, or one after the other too early, the control plane
/// would see a stolen one.
#[test]
fn the_identity_goes_along_and_is_renewed_by_one_process_at_a_time() {
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let options =
        lasting(&mesh, mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).ttl("10s"));
    let mut shop = mesh.server_with(options).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    for generation in 2..=3 {
        // The old one has something left to do while the new one serves already.
        let mut open = TcpStream::connect(web.outbound()).unwrap();
        assert!(exchange(&mut open).unwrap());
        let new = mesh.sidecar(next_of(&mut shop, generation)).unwrap();
        let renewed =
            |m: &postern_loadtest::mesh::Metrics| m.count("postern_renewals_total", &[("result", "ok")]) > 0;
        assert!(exchange(&mut open).unwrap(), "the old one serves what it has");
        drop(open);
        let mut gone = std::mem::replace(&mut shop, new);
        assert!(gone.process().wait(2 * SOON).unwrap().success());
        let metrics = shop.wait_for_metric(SOON, renewed).unwrap();
        assert_eq!(metrics.count("postern_renewals_total", &[("result", "failed")]), 0);
        assert!(http::get(web.outbound(), "/", SOON).is_ok());
    }
    let audit = mesh.control.json(&["audit"]).unwrap().to_string();
    assert!(audit.contains("renew") && !audit.contains("superseded"), "{audit}");
}

/// One that never becomes ready: its control plane does not answer.
fn never_ready(mesh: &Mesh, old: &mut Sidecar) -> Sidecar {
    let mut options = next_of(old, 0);
    options.join = mesh.options("shop").unwrap().join;
    options.cache = None;
    options.args.extend(["--control", "127.0.0.1:1"].map(str::to_owned));
    let sidecar = mesh.launch(options).unwrap();
    sidecar.wait_for_log(SOON, |l| l["message"] == "waiting for the control plane").unwrap();
    sidecar
}

#[test]
fn a_successor_that_is_killed_before_it_is_ready_is_not_noticed() {
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let options = lasting(&mesh, mesh.options("shop").unwrap().inbound(app.address(), Some("shop")));
    let mut shop = mesh.server_with(options).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let load = steady(web.outbound(), PER_SECOND);
    let mut stuck = never_ready(&mesh, &mut shop);
    // Of two at once the second is told why it cannot.
    let second = next_of(&mut shop, 2);
    let error = format!("{:#}", mesh.sidecar(second.clone()).unwrap_err());
    assert!(error.contains("another process is taking over already"), "{error}");
    stuck.kill9();
    shop.wait_for_log(SOON, |l| l["message"].as_str().is_some_and(|m| m.contains("this proxy goes on")))
        .unwrap();
    let before = load.tally().requests;
    until(SOON, || (load.tally().requests > before + u64::from(PER_SECOND)).then_some(())).unwrap();
    assert!(shop.ready().unwrap().0);
    assert_eq!(shop.admin(&["get", "/"]).unwrap()["pid"], shop.pid());
    // The next one finds no trace of it.
    let new = mesh.sidecar(second).unwrap();
    assert!(shop.process().wait(4 * SOON).unwrap().success());
    unharmed(&load.finish());
    assert!(new.ready().unwrap().0);
}

#[test]
fn listeners_that_come_and_go_with_the_configuration_are_bound_and_drained() {
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let options = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).outbound("shop");
    let mut shop = mesh.server_with(lasting(&mesh, options)).unwrap();
    let gone = shop.outbound();
    // It is in a conversation that only the old process knows.
    let mut open = TcpStream::connect(gone).unwrap();
    assert!(exchange(&mut open).unwrap());
    let mut options = next_of(&mut shop, 2).inbound(app.address(), None);
    options.outbound.clear();
    let new = mesh.sidecar(options).unwrap();
    assert_eq!(new.listeners().0.len(), 2);
    assert_eq!(new.inbound(), shop.inbound());
    until(SOON, || TcpStream::connect(gone).is_err().then_some(())).expect("nobody listens there any more");
    drop(open);
    assert!(shop.process().wait(4 * SOON).unwrap().success());
}

#[test]
fn another_users_process_gets_no_socket_and_is_no_predecessor() {
    if !nix::unistd::geteuid().is_root() {
        return; // only root can pretend to be somebody else
    }
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let options = lasting(&mesh, mesh.options("shop").unwrap().inbound(app.address(), Some("shop")));
    let shop = mesh.server_with(options).unwrap();
    let socket = mesh.dir().join("shop.handover");
    // Its mode alone would stop them; with that out of the way, the kernel's word does.
    for (path, mode) in [(socket.as_path(), 0o666), (mesh.dir(), 0o755)] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let script = "\
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(10); s.connect(sys.argv[1])
try:
    s.send(b'{\"say\":\"hello\",\"protocol\":1,\"version\":\"0\"}')
    print(socket.recv_fds(s, 4096, 4))
except OSError as e:
    print('closed', e)
";
    let stranger = Command::new("setpriv")
        .args(["--reuid", "4242", "--clear-groups", "/usr/bin/python3", "-c", script])
        .arg(&socket)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&stranger.stdout).into_owned();
    assert!(told.starts_with("closed") || told.starts_with("(b'', []"), "{told}{stranger:?}");
    shop.wait_for_log(SOON, |l| l["message"] == "a stranger on the handover socket was turned away").unwrap();
    assert!(shop.ready().unwrap().0);
}

/// What systemd does with a socket unit: it binds, starts the program with the sockets, and keeps them while it restarts it.
const MANAGER: &str = r#"
import os, signal, socket, sys
addresses, program = sys.argv[1].split(","), sys.argv[2:]
listeners = []
for address in addresses:
    host, port = address.rsplit(":", 1)
    listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port))); listener.listen(4096); listeners.append(listener)
child = 0
def start():
    global child
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        kept = [os.dup(l.fileno()) for l in listeners]
        high = [os.dup2(k, 100 + i) for i, k in enumerate(kept)]
        for i, fd in enumerate(high): os.dup2(fd, 3 + i)
        os.closerange(3 + len(high), 200)
        environ = dict(os.environ, LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="in:metrics")
        os.execve(program[0], program, environ)
def stop():
    os.kill(child, signal.SIGTERM); return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGTERM])
start()
while True:
    if signal.sigwait([signal.SIGHUP, signal.SIGTERM]) == signal.SIGTERM: sys.exit(stop())
    code = stop()
    if code: sys.exit(code)
    start()
"#;

#[test]
fn a_restart_under_socket_activation_fails_no_request() {
    let mesh = Mesh::start().unwrap();
    let app = keeping_app();
    let [inbound, metrics] = [free_port().unwrap(), free_port().unwrap()];
    let mut options = lasting(&mesh, mesh.options("shop").unwrap().inbound(app.address(), Some("shop")));
    options.inbound[0].0 = inbound;
    options.metrics = metrics;
    options.launcher =
        ["python3", "-c", MANAGER, &format!("{inbound},{metrics}")].map(str::to_owned).to_vec();
    let mut shop = mesh.server_with(options).unwrap();
    let fds = open_listeners(shop.pid());
    assert_eq!(fds, 2, "the manager holds the sockets");
    let web = mesh.client("web", "shop").unwrap();
    let load = steady(web.outbound(), PER_SECOND);
    for restart in 1..=2 {
        let ready = |s: &Sidecar| s.admin(&["get", "/"]).ok().map(|a| a["pid"].clone());
        let before = ready(&shop).unwrap();
        shop.process().signal(Signal::SIGHUP);
        until(4 * SOON, || ready(&shop).filter(|pid| *pid != before)).expect("a new process answers");
        until(SOON, || shop.ready().ok().filter(|(ready, _)| *ready))
            .unwrap_or_else(|| panic!("restart {restart}"));
        let requests = load.tally().requests;
        until(SOON, || (load.tally().requests > requests + u64::from(PER_SECOND)).then_some(())).unwrap();
    }
    unharmed(&load.finish());
    let passed = shop
        .logs()
        .into_iter()
        .filter(|l| l["message"] == "a socket was passed by socket activation")
        .count();
    assert_eq!(passed, 2 * 3, "each of three processes got both");
}

/// How many sockets a process holds.
fn open_listeners(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let is_socket =
        |path: &Path| std::fs::read_link(path).is_ok_and(|l| l.to_string_lossy().starts_with("socket:"));
    fds.filter(|fd| is_socket(&fd.path())).count()
}
