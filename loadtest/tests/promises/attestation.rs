//! Proxies enroll by what their platform says of them, and come back by it without anybody's help.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{ControlOptions, Mesh, Metrics, SidecarOptions, until};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use serde_json::{Value, json};

const REQUEST: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(30);

/// A cluster's issuer: its key signs tokens, its public half lies in a file.
struct Cluster {
    key: KeyPair,
}

impl Cluster {
    fn new(keys: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let raw = key.public_key_raw();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&raw[1..33]), URL_SAFE_NO_PAD.encode(&raw[33..]));
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "x": x, "y": y });
        std::fs::write(keys, json!({ "keys": [jwk] }).to_string()).unwrap();
        Self { key }
    }

    /// The projected token of a pod of `account` in the namespace `demo`.
    fn token(&self, account: &str, audience: &str) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "https://cluster.test", "aud": [audience], "iat": now, "exp": now + 600,
            "sub": format!("system:serviceaccount:demo:{account}"),
            "kubernetes.io": {
                "namespace": "demo",
                "serviceaccount": { "name": account, "uid": "a" },
                "pod": { "name": format!("{account}-0"), "uid": format!("uid-of-{account}") },
            },
        });
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed =
            format!("{}.{}", encode(json!({ "alg": "ES256", "kid": "1", "typ": "JWT" })), encode(claims));
        let signer =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.key.serialize_der()).unwrap();
        let signature = signer.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// The house's PKI: writes its root, and a machine's certificate with its key; says the pin of the CA that issued it.
fn machine(dir: &Path, name: &str) -> String {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "House root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    std::fs::write(dir.join("roots.pem"), params.self_signed(&root_key).unwrap().pem()).unwrap();
    let pin = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root_key.subject_public_key_info());
    let issuer = Issuer::new(params, root_key);
    let mut leaf = CertificateParams::new([name.to_owned()]).unwrap();
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    std::fs::write(dir.join("machine.pem"), leaf.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join("machine.key"), key.serialize_pem()).unwrap();
    let digits: String = pin.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// A mesh that takes pods of the namespace `demo`, and the machine `web.corp.test`.
fn mesh(dir: &Path) -> (Mesh, Cluster) {
    let (keys, cluster) = (dir.join("keys.json"), Cluster::new(&dir.join("keys.json")));
    let pin = machine(dir, "web.corp.test");
    let config = format!(
        r#"
attest:
  kubernetes:
    - name: main
      issuer: https://cluster.test
      audience: postern
      jwks: {{ file: "{keys}" }}
      rules:
        - match: {{ k8s.namespace: demo, k8s.service_account: "*" }}
          id: spiffe://mesh.test/ns/{{k8s.namespace}}/sa/{{k8s.service_account}}
  x509:
    roots: "{roots}"
    rules:
      - match: {{ x509.issuer: "{pin}", x509.dns: web.corp.test }}
        id: spiffe://mesh.test/ns/demo/sa/web
"#,
        keys = keys.display(),
        roots = dir.join("roots.pem").display(),
    );
    (Mesh::start_with(ControlOptions { config, ..ControlOptions::default() }).unwrap(), cluster)
}

/// A sidecar's options: how it enrolls, and whose root it believes.
fn attested(mesh: &Mesh, name: &str, pin: &str, attest: &str) -> SidecarOptions {
    let address = mesh.control.listen();
    SidecarOptions::new(name, None).config(&format!(
        "control:\n  address: \"{address}\"\n  trust: {{ trust_domain: mesh.test, pins: [\"{pin}\"] }}\n  attest: {attest}\n"
    ))
}

#[test]
fn a_pod_and_a_machine_enroll_by_themselves_and_come_back_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (mut mesh, cluster) = mesh(dir.path());
    let app = App::http("hello").unwrap();
    let token = dir.path().join("token");
    let pod = format!("{{ kubernetes: {{ token_file: \"{}\" }} }}", token.display());
    let pod =
        attested(&mesh, "shop", mesh.control.root(), &pod).inbound(app.address(), Some("shop")).ttl("5s");
    mesh.control.apply_service("shop", &mesh.id("shop"), &[]).unwrap();
    let mut shop = mesh.launch(pod).unwrap();
    let says = |words: &'static str| {
        move |line: &Value| {
            let said = ["message", "why"].map(|field| line[field].as_str().unwrap_or_default());
            said.iter().any(|said| said.contains(words))
        }
    };
    // The kubelet is late; then its token is for somebody else; then it is right.
    shop.wait_for_log(SOON, says("No such file")).unwrap();
    std::fs::write(&token, cluster.token("shop", "vault")).unwrap();
    shop.wait_for_log(SOON, says("the credential is not taken")).unwrap();
    std::fs::write(&token, cluster.token("shop", "postern")).unwrap();
    shop.wait_until_ready(SOON).unwrap();

    let files = ["machine.pem", "machine.key"].map(|name| dir.path().join(name).display().to_string());
    let web = format!("{{ x509: {{ certificate_file: \"{}\", key_file: \"{}\" }} }}", files[0], files[1]);
    let web = attested(&mesh, "web", mesh.control.root(), &web).outbound("shop").ttl("5s");
    let web = mesh.sidecar(web).unwrap();
    let answer = || http::get(web.outbound(), "/", REQUEST).ok().filter(|a| a.status == 200);
    assert!(until(SOON, answer).is_some(), "the two know each other");

    // An outage that outlives both certificates. There is no grace, and no operator.
    mesh.control.kill9();
    let expired = |m: &Metrics| m.value("postern_certificate_expiry_seconds", &[]) < 0.0;
    for proxy in [&shop, &web] {
        proxy.wait_for_metric(SOON, expired).unwrap();
    }
    assert!(http::get(web.outbound(), "/", REQUEST).is_err(), "an expired identity serves nobody");
    mesh.control.restart().unwrap();
    assert!(until(SOON, answer).is_some(), "they did not come back");
    assert!(shop.ready().unwrap().0 && web.ready().unwrap().0);
}

#[test]
fn a_proxy_sends_its_token_to_nobody_but_the_pinned_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, cluster) = mesh(dir.path());
    let token = dir.path().join("token");
    std::fs::write(&token, cluster.token("shop", "postern")).unwrap();
    let other = format!("sha256:{}", "0".repeat(64));
    let pod = format!("{{ kubernetes: {{ token_file: \"{}\" }} }}", token.display());
    let pod = attested(&mesh, "shop", &other, &pod).inbound("127.0.0.1:1", None);
    mesh.sidecar(pod).unwrap_err();
    // Nothing was asked of the control plane, so the token is as good as new.
    let records = mesh.control.json(&["audit", "--last", "100"]).unwrap();
    assert!(records.as_array().unwrap().iter().all(|record| record["action"] != "enroll"), "{records}");
}
