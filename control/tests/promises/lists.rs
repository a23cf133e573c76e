//! Revocation lists and OCSP, as OpenSSL, nginx and pkilint read them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;

use crate::harness::{self, Control, LONG, Svid, TD, enrolled};
use crate::keys::run;
use crate::lint::{files, findings, python_program};

/// A control plane whose certificates say where their lists are.
struct Mesh {
    control: Control,
    url: String,
}

/// A workload with its files.
struct Workload {
    svid: Svid,
    leaf: PathBuf,
    issuing: PathBuf,
    root: PathBuf,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Mesh {
    fn start(more: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let url = format!("http://127.0.0.1:{}", free_port());
        let config = dir.path().join("control.yaml");
        let listen = &url["http://".len()..];
        std::fs::write(&config, format!("revocation: {{ listen: {listen:?}, url: {url:?}{more} }}\n"))
            .unwrap();
        let mut command = harness::serve(dir.path(), &["--trust-domain", TD]);
        command.arg("--config").arg(config);
        Self { control: Control::spawn(dir, command), url }
    }

    async fn workload(&self, path: &str) -> Workload {
        let (_, svid) = enrolled(&self.control, path, &[]).await;
        let [leaf, issuing, root] = files(&self.control, &svid, &path[1..]);
        Workload { svid, leaf, issuing, root }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.control.data().join(name)
    }

    /// Fetches a list, DER.
    fn fetch(&self, url: &str, name: &str) -> PathBuf {
        let path = self.file(name);
        run(Command::new("curl").args(["-sS", "--fail", "-o"]).arg(&path).arg(url));
        path
    }

    /// The whole list of whoever signed with `certificate`'s key.
    fn whole(&self, certificate: &Path, name: &str) -> PathBuf {
        self.fetch(&format!("{}/crl/{}.crl", self.url, key_id(certificate)), name)
    }

    fn ocsp(&self, workload: &Workload, more: &[&str]) -> String {
        let mut command = Command::new("openssl");
        command.arg("ocsp").arg("-issuer").arg(&workload.issuing).arg("-CAfile").arg(&workload.root);
        command.args(["-url", &format!("{}/ocsp", self.url)]).args(more);
        let Output { stdout, stderr, .. } = command.output().unwrap();
        String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr)
    }
}

fn key_id(certificate: &Path) -> String {
    let said = run(Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectKeyIdentifier", "-in"])
        .arg(certificate));
    said.lines().last().unwrap().replace([':', ' '], "").to_lowercase()
}

/// What a certificate says about itself, by OpenSSL.
fn text(certificate: &Path) -> String {
    run(Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(certificate))
}

fn distribution_point(workload: &Workload) -> String {
    let text = text(&workload.leaf);
    let uri = text.lines().find_map(|line| line.trim().strip_prefix("URI:").filter(|u| u.ends_with(".crl")));
    uri.unwrap_or_else(|| panic!("no distribution point: {text}")).to_owned()
}

/// OpenSSL's verdict on a leaf by one list (DER).
fn verdict(workload: &Workload, list: &Path) -> (bool, String) {
    let pem = list.with_extension("crl.pem");
    run(Command::new("openssl").args(["crl", "-inform", "DER", "-in"]).arg(list).arg("-out").arg(&pem));
    let mut verify = Command::new("openssl");
    verify
        .args(["verify", "-x509_strict", "-crl_check", "-CAfile"])
        .arg(&workload.root)
        .arg("-untrusted")
        .arg(&workload.issuing);
    let output = verify.arg("-CRLfile").arg(&pem).arg(&workload.leaf).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn openssl_reads_from_the_lists_who_is_revoked_across_a_rotation() {
    let mesh = Mesh::start(", shards: 3");
    let (gone, stays) = (mesh.workload("/gone").await, mesh.workload("/stays").await);
    let point = distribution_point(&gone);
    assert!(point.starts_with(&format!("{}/crl/{}/", mesh.url, key_id(&gone.issuing))), "{point}");
    assert!(text(&gone.leaf).contains(&format!("OCSP - URI:{}/ocsp", mesh.url)));
    assert!(verdict(&gone, &mesh.fetch(&point, "before.crl")).0, "nobody is revoked yet");

    mesh.control.json(&["revoke", &format!("spiffe://{TD}/gone"), "--reason", "keyCompromise"]);
    let list = mesh.fetch(&point, "after.crl");
    let said =
        run(Command::new("openssl").args(["crl", "-inform", "DER", "-noout", "-text", "-in"]).arg(&list));
    assert!(
        said.contains("Key Compromise") && said.contains(&point) && said.contains("Only User Certificates"),
        "{said}"
    );
    let (good, why) = verdict(&gone, &list);
    assert!(!good && why.contains("certificate revoked"), "{why}");
    assert!(verdict(&stays, &mesh.fetch(&distribution_point(&stays), "stays.crl")).0);

    // Another CA signs from now on; the list of the one before goes on, also across a restart.
    mesh.control.json(&["ca", "rotate"]);
    let later = mesh.workload("/later").await;
    assert_ne!(later.svid.chain[1], gone.svid.chain[1]);
    mesh.control.json(&["revoke", &format!("spiffe://{TD}/stays")]);
    for (workload, name) in [(&gone, "gone-2.crl"), (&stays, "stays-2.crl")] {
        let (good, why) = verdict(workload, &mesh.whole(&workload.issuing, name));
        assert!(!good && why.contains("certificate revoked"), "{why}");
    }
    assert!(verdict(&later, &mesh.whole(&later.issuing, "later.crl")).0);

    let serial = run(Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(&later.leaf));
    mesh.control.json(&["revoke", serial.trim().strip_prefix("serial=").unwrap().to_lowercase().as_str()]);
    assert!(!verdict(&later, &mesh.whole(&later.issuing, "later-2.crl")).0, "by its serial alone");
}

#[tokio::test]
async fn pkilint_finds_nothing_in_lists_nor_in_certificates_that_point_to_them() {
    let mesh = Mesh::start("");
    let gone = mesh.workload("/gone").await;
    let lint = |kind: &str, list: &Path| {
        findings(python_program("lint_crl").args(["lint", "-p", "PKIX", "-t", kind]).arg(list))
    };
    for round in ["empty", "one"] {
        let shard = mesh.fetch(&distribution_point(&gone), &format!("{round}-shard.crl"));
        assert_eq!(lint("CRL", &shard), [""; 0]);
        assert_eq!(lint("CRL", &mesh.whole(&gone.issuing, &format!("{round}.crl"))), [""; 0]);
        mesh.control.json(&["revoke", &format!("spiffe://{TD}/gone"), "--reason", "superseded"]);
    }
    assert_eq!(lint("ARL", &mesh.whole(&gone.root, "root.crl")), [""; 0]);
    let leaf = findings(python_program("lint_pkix_cert").arg("lint").arg(&gone.leaf));
    assert_eq!(leaf, ["pkix.invalid_uri_syntax"], "its SPIFFE ID alone");
}

#[tokio::test]
async fn openssl_asks_ocsp_and_believes_the_answer() {
    let mesh = Mesh::start("");
    let (gone, stays) = (mesh.workload("/gone").await, mesh.workload("/stays").await);
    let (gone_file, stays_file) = (gone.leaf.to_str().unwrap(), stays.leaf.to_str().unwrap());
    let said = mesh.ocsp(&gone, &["-cert", gone_file]);
    assert!(said.contains("Response verify OK") && said.contains(": good"), "{said}");
    assert!(!said.contains("WARNING: no nonce"), "the nonce comes back: {said}");

    mesh.control.json(&["revoke", &format!("spiffe://{TD}/gone"), "--reason", "keyCompromise"]);
    let said = mesh.ocsp(&gone, &["-sha256", "-cert", gone_file, "-sha1", "-cert", stays_file]);
    assert!(
        said.contains(&format!("{gone_file}: revoked")) && said.contains("Reason: keyCompromise"),
        "{said}"
    );
    assert!(said.contains(&format!("{stays_file}: good")), "{said}");
    let said = mesh.ocsp(&gone, &["-no_nonce", "-serial", "0x4242"]);
    assert!(
        said.contains("Response verify OK") && said.contains("0x4242: unknown"),
        "never issued is not good: {said}"
    );

    mesh.control.json(&["ca", "rotate"]);
    let said = mesh.ocsp(&gone, &["-cert", gone_file]);
    assert!(said.contains("Response verify OK") && said.contains(": revoked"), "by the CA of before: {said}");
    let foreign = Workload { issuing: gone.root.clone(), ..gone };
    assert!(
        mesh.ocsp(&foreign, &["-serial", "1"]).contains("unauthorized"),
        "the root's certificates are not ours to judge"
    );
}

#[tokio::test]
async fn ocsp_by_get_and_what_is_no_request() {
    use base64::Engine as _;
    let mesh = Mesh::start("");
    let workload = mesh.workload("/a").await;
    let request = mesh.file("request.der");
    let mut make = Command::new("openssl");
    make.args(["ocsp", "-no_nonce", "-issuer"]).arg(&workload.issuing).arg("-cert").arg(&workload.leaf);
    run(make.arg("-reqout").arg(&request));
    let text = base64::engine::general_purpose::STANDARD.encode(std::fs::read(&request).unwrap());
    for text in [text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"), text] {
        let answer = mesh.fetch(&format!("{}/ocsp/{text}", mesh.url), "answer.der");
        let mut read = Command::new("openssl");
        read.args(["ocsp", "-issuer"])
            .arg(&workload.issuing)
            .arg("-CAfile")
            .arg(&workload.root)
            .arg("-cert")
            .arg(&workload.leaf);
        let said = run(read.arg("-respin").arg(&answer));
        assert!(said.contains(": good"), "{said}");
    }
    let status = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        run(command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"]).args(arguments))
    };
    let ocsp = format!("{}/ocsp", mesh.url);
    // A mistake has an answer of its own kind: malformedRequest (1), without a body.
    let malformed = run(Command::new("curl").args(["-sS", "--data-binary", "no request", &ocsp]));
    assert_eq!(malformed.as_bytes(), [0x30, 3, 0x0a, 1, 1]);
    assert_eq!(status(&["--data-binary", &"x".repeat(5000), &ocsp]), "413");
    assert_eq!(status(&[&format!("{ocsp}/%%%")]), "400");
    assert_eq!(status(&["-X", "DELETE", &ocsp]), "405");
    assert_eq!(status(&[&format!("{}/crl/00.crl", mesh.url)]), "404");
    assert_eq!(
        status(&[&format!("{}/crl/{}/1.crl", mesh.url, key_id(&workload.issuing))]),
        "404",
        "there is one shard"
    );
    assert_eq!(status(&[&format!("{}/crl/../../etc/passwd.crl", mesh.url)]), "404");
    assert_eq!(status(&[&format!("{}/", mesh.url)]), "404");
}

/// nginx in a directory of its own; ends with its guard.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn nginx_turns_a_revoked_client_away_by_our_lists() {
    let mesh = Mesh::start("");
    let (gone, stays) = (mesh.workload("/gone").await, mesh.workload("/stays").await);
    let server = mesh.workload("/server").await;
    mesh.control.json(&["revoke", &format!("spiffe://{TD}/gone")]);

    // It checks every member of the path, so it needs the root's list, too.
    let pem = |list: PathBuf| run(Command::new("openssl").args(["crl", "-inform", "DER", "-in"]).arg(list));
    let lists = pem(mesh.whole(&gone.issuing, "issuing.crl")) + &pem(mesh.whole(&gone.root, "root.crl"));
    std::fs::write(mesh.file("lists.pem"), lists).unwrap();
    let chain = |w: &Workload| [&w.leaf, &w.issuing].map(|p| std::fs::read_to_string(p).unwrap()).concat();
    for (name, workload) in [("gone", &gone), ("stays", &stays), ("server", &server)] {
        std::fs::write(mesh.file(&format!("{name}-chain.pem")), chain(workload)).unwrap();
        std::fs::write(
            mesh.file(&format!("{name}.key")),
            harness::pem("PRIVATE KEY", workload.svid.key.secret_pkcs8_der()),
        )
        .unwrap();
    }
    let (dir, port) = (mesh.control.data(), free_port());
    let at = dir.display();
    let config = format!(
        "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.log info; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; server {{ listen 127.0.0.1:{port} ssl;\n\
         ssl_certificate {at}/server-chain.pem; ssl_certificate_key {at}/server.key; ssl_client_certificate {at}/ca/root.pem;\n\
         ssl_verify_client on; ssl_verify_depth 2; ssl_crl {at}/lists.pem; location / {{ return 200 in; }} }} }}\n"
    );
    std::fs::write(mesh.file("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    let _nginx = Nginx(command.arg("-p").arg(&dir).arg("-c").arg(mesh.file("nginx.conf")).spawn().unwrap());
    let asked = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("nginx does not start");

    let call = |who: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sSk", "-w", " %{http_code}", "--cert"])
            .arg(mesh.file(&format!("{who}-chain.pem")))
            .arg("--key")
            .arg(mesh.file(&format!("{who}.key")));
        run(curl.arg(format!("https://127.0.0.1:{port}/")))
    };
    assert_eq!(call("stays"), "in 200");
    let refused = call("gone");
    assert!(refused.contains("400"), "{refused}");
    let log = std::fs::read_to_string(mesh.file("nginx.log")).unwrap();
    assert!(log.contains("certificate revoked"), "{log}");
}
