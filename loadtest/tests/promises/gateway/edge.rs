//! What the gateway's promises share: CAs and their files, a gateway as a process, foreign clients.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use postern_loadtest::mesh::{Mesh, Sidecar};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};

use crate::programs::program;

/// A CA of a test's own.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate as a file.
    pub(crate) fn file(&self, dir: &Path) -> PathBuf {
        let path = dir.join(format!("ca-{}.pem", unique()));
        std::fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// A server's certificate, written to `dir`.
    pub(crate) fn server(&self, dir: &Path, names: &[&str]) -> Pair {
        self.issue(dir, names, ExtendedKeyUsagePurpose::ServerAuth, 7)
    }

    /// A client's certificate with a serial number, written to `dir`.
    pub(crate) fn client(&self, dir: &Path, name: &str, serial: u64) -> Pair {
        self.issue(dir, &[name], ExtendedKeyUsagePurpose::ClientAuth, serial)
    }

    pub(crate) fn issue(
        &self,
        dir: &Path,
        names: &[&str],
        purpose: ExtendedKeyUsagePurpose,
        serial: u64,
    ) -> Pair {
        let mut params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.extended_key_usages = vec![purpose];
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        std::fs::create_dir_all(dir).unwrap();
        let pair = Pair { chain: dir.join("tls.crt"), key: dir.join("tls.key") };
        // Key first: a reader between the two sees a key that does not fit, never a chain without its key.
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        std::fs::write(&pair.chain, leaf.pem()).unwrap();
        pair
    }

    /// A revocation list with these serial numbers.
    pub(crate) fn crl(&self, path: &Path, serials: &[u64]) {
        let now = date_time_ymd(2020, 1, 1);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(path, params.signed_by(&self.0).unwrap().pem().unwrap()).unwrap();
    }
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Starts a gateway: `gateway` is what stands below `gateway:`, in flow or block style, indented by two.
pub(crate) fn start(mesh: &Mesh, gateway: &str) -> Sidecar {
    mesh.sidecar(mesh.options("edge").unwrap().config(&config(gateway))).unwrap()
}

/// A gateway's whole file.
pub(crate) fn config(gateway: &str) -> String {
    format!("mode: gateway\ngateway:\n{gateway}\n")
}

/// What curl saw.
#[derive(Debug)]
pub(crate) struct Seen {
    /// curl's exit code: 0, 35 a failed handshake, 60 a certificate that is not believed …
    pub(crate) exit: i32,
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) errors: String,
}

impl Seen {
    /// One header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }
}

/// GETs `https://HOST/path` or `http://…` at `to`, whatever DNS says.
pub(crate) fn curl(to: SocketAddr, url: &str, args: &[&str]) -> Seen {
    let mut command = Command::new(program("curl", "curl"));
    command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--include"]);
    command.args([
        "--connect-to",
        &format!("::{}:{}", to.ip(), to.port()),
        "--write-out",
        "\n%{response_code}",
    ]);
    let output = command.args(args).arg(url).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (answer, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    Seen {
        exit: output.status.code().unwrap_or(-1),
        status: status.parse().unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `openssl s_client` with what it is told on its standard input; both of its outputs.
pub(crate) fn s_client(to: SocketAddr, args: &[&str], input: &str) -> String {
    let mut command = Command::new(program("openssl", "openssl"));
    command.args(["s_client", "-connect", &to.to_string()]).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have been refused before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
