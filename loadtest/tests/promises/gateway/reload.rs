//! Certificate files that change while requests come: renamed into place, swapped by a link as Kubernetes does, broken.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Metrics, Sidecar, until};

use super::edge::{Ca, Pair, Seen, curl, s_client, start};
use crate::support::SOON;

fn get(edge: SocketAddr, trust: &str, args: &[&str]) -> Seen {
    curl(edge, "https://a.example/", &[&["--cacert", trust], args].concat())
}

/// A gateway with one host whose files lie in `dir`.
struct Stage {
    mesh: Mesh,
    gateway: Sidecar,
    servers: Ca,
    trust: String,
    _app: App,
    _shop: Sidecar,
}

impl Stage {
    fn new(pair: impl FnOnce(&Path, &Ca) -> Pair, further: impl FnOnce(&Path) -> String) -> Self {
        let mesh = Mesh::start().unwrap();
        let app = App::http("hello").unwrap();
        let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).protocol("http");
        let shop = mesh.server_with(shop).unwrap();
        let servers = Ca::new("servers");
        let Pair { chain, key } = pair(mesh.dir(), &servers);
        let gateway = start(
            &mesh,
            &format!(
                "  listeners: [{{ listen: '127.0.0.1:0', protocol: https }}]
  hosts:
    - names: [a.example]
      certificate: {{ chain: {}, key: {} }}
      routes: [{{ service: shop }}]
      {}",
                chain.display(),
                key.display(),
                further(mesh.dir()),
            ),
        );
        let trust = servers.file(mesh.dir()).display().to_string();
        Self { mesh, gateway, servers, trust, _app: app, _shop: shop }
    }

    /// The certificate that a client is shown, PEM.
    fn shown(&self) -> String {
        let said = s_client(self.gateway.gateway()[0], &["-servername", "a.example"], "");
        let begin = said.find("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("{said}"));
        let end = said.find("-----END CERTIFICATE-----").unwrap();
        said[begin..end].trim().to_owned()
    }

    fn is_shown(&self, chain: &Path) -> bool {
        std::fs::read_to_string(chain).unwrap().starts_with(&self.shown())
    }

    /// Waits until the certificate in `chain` is the one that clients are shown.
    fn wait_for(&self, chain: &Path) {
        until(SOON, || self.is_shown(chain).then_some(())).expect("the new certificate is shown");
    }

    fn reloads(&self, metrics: &Metrics, result: &str) -> u64 {
        metrics.count("postern_gateway_certificate_reloads_total", &[("result", result)])
    }

    fn get(&self, args: &[&str]) -> Seen {
        get(self.gateway.gateway()[0], &self.trust, args)
    }

    /// Does `work` while requests come without a pause; none of them fails. How many there were.
    fn under_load(&self, work: impl FnOnce()) -> u64 {
        let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        let (edge, trust) = (self.gateway.gateway()[0], self.trust.as_str());
        std::thread::scope(|scope| {
            // Told to stop however `work` ends.
            struct Stop<'a>(&'a AtomicBool);
            impl Drop for Stop<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            for version in ["--http1.1", "--http2"] {
                let (stop, asked) = (&stop, &asked);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let seen = get(edge, trust, &[version]);
                        assert_eq!((seen.exit, seen.status), (0, 200), "{version}: {seen:?}");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let stopping = Stop(&stop);
            let before = asked.load(Ordering::Relaxed);
            until(SOON, || (asked.load(Ordering::Relaxed) > before + 4).then_some(())).unwrap();
            work();
            let after = asked.load(Ordering::Relaxed);
            until(SOON, || (asked.load(Ordering::Relaxed) > after + 4).then_some(())).unwrap();
            drop(stopping);
        });
        asked.load(Ordering::Relaxed)
    }
}

#[test]
fn files_renamed_into_place_under_load_lose_no_request() {
    let stage = Stage::new(|dir, ca| ca.server(&dir.join("live"), &["a.example"]), |_| String::new());
    let dir = stage.mesh.dir().to_owned();
    let live = Pair { chain: dir.join("live/tls.crt"), key: dir.join("live/tls.key") };
    let first = stage.shown();
    let mut swaps = 0;
    stage.under_load(|| {
        for round in 0..5 {
            let next = stage.servers.server(&dir.join(format!("next-{round}")), &["a.example"]);
            // Chain first, so that for a moment it stands beside a key that is not its own.
            std::fs::rename(&next.chain, &live.chain).unwrap();
            std::fs::rename(&next.key, &live.key).unwrap();
            stage.wait_for(&live.chain);
            swaps += 1;
        }
    });
    assert_ne!(stage.shown(), first);
    let metrics = stage.gateway.metrics().unwrap();
    assert!(stage.reloads(&metrics, "ok") >= swaps, "{swaps} swaps");
    let left = metrics.value("postern_gateway_certificate_expiry_seconds", &[("host", "a.example")]);
    assert!(left > 86_400.0, "{left}");
}

/// As Kubernetes mounts a secret: the files are links over `..data`, itself a link to a directory that is replaced.
fn mounted(dir: &Path, pair: &Pair, version: &str) {
    let real = dir.join(format!("..{version}"));
    std::fs::create_dir_all(&real).unwrap();
    std::fs::rename(&pair.chain, real.join("tls.crt")).unwrap();
    std::fs::rename(&pair.key, real.join("tls.key")).unwrap();
    symlink(format!("..{version}"), dir.join("..tmp")).unwrap();
    let previous = std::fs::read_link(dir.join("..data")).ok();
    std::fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        let _ = symlink(Path::new("..data").join(file), dir.join(file));
    }
    if let Some(previous) = previous {
        std::fs::remove_dir_all(dir.join(previous)).unwrap();
    }
}

#[test]
fn a_directory_swapped_by_a_link_under_load_loses_no_request() {
    let stage = Stage::new(
        |dir, ca| {
            let secret = dir.join("secret");
            std::fs::create_dir(&secret).unwrap();
            mounted(&secret, &ca.server(&dir.join("first"), &["a.example"]), "first");
            Pair { chain: secret.join("tls.crt"), key: secret.join("tls.key") }
        },
        |_| String::new(),
    );
    let dir = stage.mesh.dir().to_owned();
    let secret = dir.join("secret");
    stage.under_load(|| {
        for round in 0..5 {
            let next = stage.servers.server(&dir.join("next"), &["a.example"]);
            mounted(&secret, &next, &format!("version-{round}"));
            stage.wait_for(&secret.join("tls.crt"));
        }
    });
    let failed = stage.reloads(&stage.gateway.metrics().unwrap(), "failed");
    assert_eq!(failed, 0, "chain and key change as one");
}

#[test]
fn a_bad_file_changes_nothing_and_the_next_good_one_does() {
    let stage = Stage::new(|dir, ca| ca.server(&dir.join("live"), &["a.example"]), |_| String::new());
    let dir = stage.mesh.dir().join("live");
    let (chain, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    let good = stage.shown();
    let other = stage.servers.server(&stage.mesh.dir().join("other"), &["a.example"]);
    let mut failed = 0;
    let mut refused = |what: &str| {
        failed += 1;
        stage.gateway.wait_for_metric(SOON, |m| stage.reloads(m, "failed") >= failed).unwrap();
        failed = stage.reloads(&stage.gateway.metrics().unwrap(), "failed");
        assert_eq!(stage.shown(), good, "{what}");
    };
    let original = std::fs::read(&chain).unwrap();
    std::fs::write(&chain, "-----BEGIN CERT").unwrap();
    refused("no certificate");
    std::fs::write(&chain, std::fs::read(&other.chain).unwrap()).unwrap();
    refused("a chain whose key is another");
    std::fs::remove_file(&chain).unwrap();
    refused("no file");
    let told = stage.gateway.logs();
    let told: Vec<&str> =
        told.iter().filter(|l| l["level"] == "ERROR").filter_map(|l| l["error"].as_str()).collect();
    assert!(told.iter().any(|t| t.contains("tls.crt") && t.contains("No such file")), "{told:?}");
    assert!(told.iter().any(|t| t.contains("is not the key of the chain's first certificate")), "{told:?}");

    // Back, and then on.
    std::fs::write(&chain, original).unwrap();
    until(SOON, || (stage.reloads(&stage.gateway.metrics().unwrap(), "ok") == 1).then_some(())).unwrap();
    std::fs::rename(&other.key, &key).unwrap();
    std::fs::rename(&other.chain, &chain).unwrap();
    stage.wait_for(&chain);
}

#[test]
fn a_hangup_reads_the_files_and_ends_nothing() {
    let mut stage = Stage::new(|dir, ca| ca.server(&dir.join("live"), &["a.example"]), |_| String::new());
    stage.gateway.process().signal(Signal::SIGHUP);
    stage
        .gateway
        .wait_for_log(SOON, |l| l["message"].as_str().is_some_and(|m| m.contains("SIGHUP")))
        .unwrap();
    assert_eq!(stage.get(&[]).status, 200);
}

#[test]
fn a_revocation_list_that_comes_while_a_connection_is_open_counts_for_its_next_request() {
    let clients = Ca::new("clients");
    let files = |dir: &Path| -> (PathBuf, PathBuf) { (clients.file(dir), dir.join("clients.crl")) };
    let stage = Stage::new(
        |dir, ca| ca.server(&dir.join("live"), &["a.example"]),
        |dir| {
            let (ca, crl) = files(dir);
            clients.crl(&crl, &[]);
            format!(
                "client_certificate: {{ mode: required, ca: [{}], crl: [{}] }}",
                ca.display(),
                crl.display()
            )
        },
    );
    let dir = stage.mesh.dir().to_owned();
    let client = clients.client(&dir.join("client"), "client", 66);
    let [chain, key] = [&client.chain, &client.key].map(|p| p.to_str().unwrap());
    let certified = ["--cert", chain, "--key", key];
    assert_eq!(stage.get(&certified).status, 200);

    // One connection, asked before and after; openssl sends what comes on its standard input.
    let mut command = std::process::Command::new(crate::programs::program("openssl", "openssl"));
    command.args(["s_client", "-quiet", "-servername", "a.example", "-connect"]);
    command.arg(stage.gateway.gateway()[0].to_string()).args(["-cert", chain, "-key", key]);
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let (mut input, mut output) =
        (child.stdin.take().unwrap(), std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut ask = || {
        use std::io::{BufRead as _, Read as _, Write as _};
        input.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").unwrap();
        let (mut status, mut length) = (String::new(), 0);
        output.read_line(&mut status).unwrap();
        loop {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        output.read_exact(&mut vec![0; length]).unwrap();
        status
    };
    assert!(ask().contains(" 200 "));
    let ok = stage.reloads(&stage.gateway.metrics().unwrap(), "ok");
    clients.crl(&dir.join("clients.crl"), &[1]);
    stage.gateway.wait_for_metric(SOON, |m| stage.reloads(m, "ok") > ok).unwrap();
    assert!(ask().contains(" 200 "), "somebody else's revocation ends nothing");
    clients.crl(&dir.join("clients.crl"), &[1, 66]);
    stage.gateway.wait_for_metric(SOON, |m| stage.reloads(m, "ok") > ok + 1).unwrap();
    assert!(ask().contains(" 421 "), "no longer good for this host");
    assert_ne!(stage.get(&certified).exit, 0, "and a new connection is refused");
    child.kill().unwrap();
    child.wait().unwrap();

    // A list that cannot be read keeps the last good one in force.
    let failed = stage.reloads(&stage.gateway.metrics().unwrap(), "failed");
    std::fs::write(dir.join("clients.crl"), "nothing").unwrap();
    stage.gateway.wait_for_metric(SOON, |m| stage.reloads(m, "failed") > failed).unwrap();
    assert_ne!(stage.get(&certified).exit, 0);
}
