//! Certificates by ACME, from Debian's `pebble`: obtained by each challenge, kept over a restart, renewed under traffic.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Process, Sidecar, free_port, until};
use serde_json::json;

use super::edge::{Ca, Seen, curl, s_client, start};
use crate::programs::{program, run};
use crate::support::SOON;

/// For an order: the server looks twice a second at what it is waiting for.
const ORDER: Duration = Duration::from_secs(40);

/// An ACME server that finds every name at 127.0.0.1, and a gateway of whose ports it knows.
struct Stage {
    https: SocketAddr,
    http: SocketAddr,
    directory: String,
    management: SocketAddr,
    ca: PathBuf,
    _pebble: Process,
    _dns: Process,
    shop: (App, Sidecar),
    mesh: Mesh,
}

impl Stage {
    /// `life`: seconds for which a certificate is valid.
    fn new(life: u32) -> Self {
        let mesh = Mesh::start().unwrap();
        let dir = mesh.dir();
        let app = App::http("hello").unwrap();
        let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).protocol("http");
        let shop = (app, mesh.server_with(shop).unwrap());
        let [https, http, acme, management, dns, dns_management] =
            std::array::from_fn(|_| free_port().unwrap());
        let ca = Ca::new("acme server");
        let pair = ca.server(&dir.join("acme-server"), &["localhost"]);
        let config = json!({ "pebble": {
            "listenAddress": acme.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": pair.chain,
            "privateKey": pair.key,
            "httpPort": http.port(),
            "tlsPort": https.port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": life,
        }});
        std::fs::write(dir.join("pebble.json"), config.to_string()).unwrap();
        let mut command = Command::new(program("pebble-challtestsrv", "pebble"));
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]);
        command.args(["-dns01", &dns.to_string(), "-management", &dns_management.to_string()]);
        let dns_server = Process::spawn("dns", command, dir).unwrap();
        let mut command = Command::new(program("pebble", "pebble"));
        command.arg("-config").arg(dir.join("pebble.json")).args(["-dnsserver", &dns.to_string()]);
        // No pauses of its own, and every name is proven every time.
        command.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")]);
        let pebble = Process::spawn("pebble", command, dir).unwrap();
        let up = |address: SocketAddr| until(SOON, || std::net::TcpStream::connect(address).ok());
        assert!(
            [acme, management, dns_management].into_iter().all(|a| up(a).is_some()),
            "{}",
            pebble.tail(20)
        );
        let ca = ca.file(dir);
        let directory = format!("https://localhost:{}/dir", acme.port());
        Self { https, http, directory, management, ca, _pebble: pebble, _dns: dns_server, shop, mesh }
    }

    fn issuer(&self, name: &str, directory: &str, challenge: &str) -> String {
        format!(
            "    - name: {name}
      directory: {directory}
      ca: {}
      contact: ['mailto:ops@example.com']
      terms_of_service_agreed: true
      storage: {}
      challenge: {challenge}
      allow_loopback: true",
            self.ca.display(),
            self.storage(name).display()
        )
    }

    fn storage(&self, issuer: &str) -> PathBuf {
        self.mesh.dir().join(format!("acme-{issuer}"))
    }

    /// A gateway with these issuers and hosts, on the ports that the server knows.
    fn gateway(&self, issuers: &[String], hosts: &[(&str, &str)]) -> Sidecar {
        let host = |(names, issuer): &(&str, &str)| {
            format!(
                "    - {{ names: [{names}], certificate: {{ acme: {issuer} }}, routes: [{{ service: shop }}] }}"
            )
        };
        let hosts: Vec<String> = hosts.iter().map(host).collect();
        start(
            &self.mesh,
            &format!(
                "  listeners: [{{ listen: '{}', protocol: https }}, {{ listen: '{}', protocol: http }}]
  acme:\n{}\n  hosts:\n{}",
                self.https,
                self.http,
                issuers.join("\n"),
                hosts.join("\n")
            ),
        )
    }

    /// The CA that the server issues with.
    fn trust(&self) -> String {
        let path = self.mesh.dir().join("root.pem");
        let mut command = Command::new(program("curl", "curl"));
        command.args(["--silent", "--fail", "--noproxy", "*", "--cacert"]).arg(&self.ca);
        let port = self.management.port();
        std::fs::write(&path, run(command.arg(format!("https://localhost:{port}/roots/0")))).unwrap();
        path.display().to_string()
    }

    fn get(&self, host: &str, trust: &str) -> Seen {
        curl(self.https, &format!("https://{host}/"), &["--cacert", trust])
    }

    /// The serial number of the certificate that a host shows.
    fn serial(&self, host: &str) -> Option<String> {
        let shown = s_client(self.https, &["-servername", host], "");
        let pem = &shown[shown.find("-----BEGIN CERTIFICATE")?..shown.find("-----END CERTIFICATE")?];
        let path = self.mesh.dir().join("shown.pem");
        std::fs::write(&path, format!("{pem}-----END CERTIFICATE-----\n")).unwrap();
        let mut command = Command::new(program("openssl", "openssl"));
        Some(run(command.args(["x509", "-noout", "-serial", "-in"]).arg(path)))
    }

    #[track_caller]
    fn until_served(&self, gateway: &Sidecar, host: &str, trust: &str) {
        let mut last = None;
        let served = until(ORDER, || {
            let seen = self.get(host, trust);
            let good = seen.status == 200 && seen.body == "hello";
            last = Some(seen);
            good.then_some(())
        });
        assert!(served.is_some(), "{host}: {last:?}\n{:?}", gateway.logs());
    }
}

fn orders(gateway: &Sidecar, result: &str) -> u64 {
    gateway.metrics().unwrap().count("postern_acme_orders_total", &[("result", result)])
}

#[test]
fn a_certificate_is_obtained_by_each_challenge_and_kept_over_a_restart() {
    let stage = Stage::new(86_400);
    let issuers = [
        stage.issuer("alpn", &stage.directory, "tls-alpn-01"),
        stage.issuer("page", &stage.directory, "http-01"),
        stage.issuer(
            "dead",
            &format!("https://localhost:{}/dir", free_port().unwrap().port()),
            "tls-alpn-01",
        ),
    ];
    let hosts = [("a.acme.test, b.acme.test", "alpn"), ("c.acme.test", "page"), ("d.acme.test", "dead")];
    let mut gateway = stage.gateway(&issuers, &hosts);
    let trust = stage.trust();
    for host in ["a.acme.test", "b.acme.test", "c.acme.test"] {
        stage.until_served(&gateway, host, &trust);
    }
    assert_eq!(orders(&gateway, "ok"), 2);
    for (line, by) in [("a.acme.test", "tls-alpn-01"), ("c.acme.test", "http-01")] {
        let ordered = |l: &serde_json::Value| l["certificate"] == line && l["challenge"] == by;
        gateway.wait_for_log(SOON, ordered).unwrap();
    }

    // A host whose issuer is away is closed, and the others do not notice.
    assert_ne!(stage.get("d.acme.test", &trust).exit, 0);
    gateway.wait_for_log(SOON, |l| l["reason"] == "not_issued").unwrap();
    assert_eq!(orders(&gateway, "failed"), 1);
    assert!(stage.storage("dead").join("d.acme.test.failures.json").exists());

    // A challenge is answered while it is open, and to nobody but the issuer.
    let shown = s_client(stage.https, &["-servername", "a.acme.test", "-alpn", "acme-tls/1"], "");
    assert!(!shown.contains("BEGIN CERTIFICATE"), "{shown}");
    let page = curl(stage.http, "http://c.acme.test/.well-known/acme-challenge/anything", &[]);
    assert_eq!(page.status, 308, "a path like any other: {page:?}");

    let directory = stage.storage("alpn");
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for file in ["account.json", "a.acme.test.pem"] {
        assert_eq!(mode(&directory.join(file)), 0o600, "{file}");
    }
    let key = std::fs::read_to_string(directory.join("a.acme.test.pem")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!std::fs::read_to_string(gateway.log_path()).unwrap().contains(secret), "a key is a secret");

    let before = stage.serial("a.acme.test").unwrap();
    let account = std::fs::read(directory.join("account.json")).unwrap();
    gateway.stop().unwrap();
    let gateway = stage.gateway(&issuers, &hosts);
    assert_eq!(stage.get("a.acme.test", &trust).status, 200, "from the first moment on");
    assert_eq!(stage.serial("a.acme.test").unwrap(), before);
    // The order that failed waits on; what it is due at outlives a restart.
    assert_eq!((orders(&gateway, "ok"), orders(&gateway, "failed")), (0, 0));
    assert_eq!(std::fs::read(directory.join("account.json")).unwrap(), account);
    drop((&stage.shop, gateway));
}

#[test]
fn a_certificate_is_renewed_in_time_and_no_request_notices() {
    let stage = Stage::new(20);
    let gateway = stage.gateway(&[stage.issuer("le", &stage.directory, "both")], &[("a.acme.test", "le")]);
    let trust = stage.trust();
    stage.until_served(&gateway, "a.acme.test", &trust);
    let first = stage.serial("a.acme.test").unwrap();
    let renewed = until(ORDER, || {
        let seen = stage.get("a.acme.test", &trust);
        assert_eq!((seen.exit, seen.status), (0, 200), "{seen:?}");
        stage.serial("a.acme.test").filter(|serial| *serial != first)
    });
    assert!(renewed.is_some(), "{:?}", gateway.logs());
    assert!(orders(&gateway, "ok") >= 2);
    assert_eq!(orders(&gateway, "failed"), 0);
}

#[test]
fn an_issuer_that_cannot_reach_the_name_is_heard_and_a_storage_for_everybody_refused() {
    let stage = Stage::new(86_400);
    // The server looks at ports where nobody is.
    let (https, http) = (free_port().unwrap(), free_port().unwrap());
    let elsewhere = Stage { https, http, ..stage };
    let issuer = elsewhere.issuer("le", &elsewhere.directory, "http-01");
    let gateway = elsewhere.gateway(std::slice::from_ref(&issuer), &[("a.acme.test", "le")]);
    let said = gateway.wait_for_log(ORDER, |l| l["failures"] == 1).unwrap();
    let error = said["error"].as_str().unwrap();
    assert!(error.starts_with("a.acme.test was not proven by http-01: "), "{error}");
    drop(gateway);

    let storage = elsewhere.storage("le");
    std::fs::set_permissions(&storage, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = elsewhere.mesh.options("edge2").unwrap();
    let yaml = format!(
        "mode: gateway\ngateway:\n  listeners: [{{ listen: '127.0.0.1:0', protocol: https }}, {{ listen: '127.0.0.1:0', protocol: http }}]
  acme:\n{issuer}\n  hosts:\n    - {{ names: [a.acme.test], certificate: {{ acme: le }}, routes: [{{ service: shop }}] }}\n"
    );
    let refused = elsewhere.mesh.sidecar(options.config(&yaml)).unwrap_err();
    assert!(format!("{refused:#}").contains("mode 0755 lets other users in"), "{refused:#}");
}
