//! The platforms that attest: an issuer of tokens with its keys behind HTTPS, and a cluster's API server. Real servers, real
//! signatures.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_RSA_SHA256, SigningKey as _,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
        .unwrap()
}

/// What a server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: String,
    pub(crate) body: Value,
}

/// An HTTPS server on `localhost`, whose certificate leads to the CA in `ca`.
pub(crate) struct Site {
    pub(crate) url: String,
    pub(crate) ca: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    down: Arc<AtomicBool>,
    _dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (acceptor, pem) = tls();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let down = Arc::<AtomicBool>::default();
        let (answer, log, off) = (Arc::new(answer), Arc::clone(&asked), Arc::clone(&down));
        tokio::spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else { return };
                if off.load(Ordering::SeqCst) {
                    continue;
                }
                let (acceptor, answer, log) = (acceptor.clone(), Arc::clone(&answer), Arc::clone(&log));
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                        async move {
                            let asked = read(request).await;
                            log.lock().unwrap().push(asked.clone());
                            let (status, body) = answer(&asked);
                            let status = StatusCode::from_u16(status).unwrap();
                            let body = Full::new(Bytes::from(body.to_string()));
                            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        });
        Self { url, ca, asked, down, _dir: dir }
    }

    /// How often this path was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path == path).count()
    }

    pub(crate) fn all(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Whether it answers; while it does not, it takes connections and closes them.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }
}

async fn read(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        authorization: head.headers.get("authorization").map_or("", |h| h.to_str().unwrap()).to_owned(),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    }
}

fn tls() -> (TlsAcceptor, String) {
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&authority).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(params, authority);
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], private)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), root.pem())
}

/// A key that signs tokens.
pub(crate) struct Signer {
    key: KeyPair,
    pub(crate) kid: String,
    algorithm: Algorithm,
}

impl Signer {
    pub(crate) fn new(kid: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self { key, kid: kid.into(), algorithm: Algorithm::ES256 }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        Self { key, kid: kid.into(), algorithm: Algorithm::RS256 }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        self.sign_with(&header, claims)
    }

    /// With a head of one's own.
    pub(crate) fn sign_with(&self, header: &Header, claims: &Value) -> String {
        if self.algorithm == Algorithm::ES256 {
            let key = EncodingKey::from_ec_der(&self.key.serialize_der());
            return jsonwebtoken::encode(header, claims, &key).unwrap();
        }
        let encode = |json: Vec<u8>| URL_SAFE_NO_PAD.encode(json);
        let signed = format!(
            "{}.{}",
            encode(serde_json::to_vec(header).unwrap()),
            encode(claims.to_string().into_bytes())
        );
        let signature = self.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) fn jwk(&self) -> Value {
        let raw = self.key.public_key_raw();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        if self.algorithm == Algorithm::ES256 {
            let (x, y) = (encode(&raw[1..33]), encode(&raw[33..]));
            return json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "x": x, "y": y });
        }
        use x509_parser::prelude::FromDer as _;
        let der = rcgen::PublicKeyData::subject_public_key_info(&self.key);
        let (_, spki) = x509_parser::x509::SubjectPublicKeyInfo::from_der(&der).unwrap();
        let x509_parser::public_key::PublicKey::RSA(rsa) = spki.parsed().unwrap() else { panic!("no RSA") };
        let n = rsa.modulus.iter().copied().skip_while(|b| *b == 0).collect::<Vec<_>>();
        json!({ "kty": "RSA", "kid": self.kid, "use": "sig", "alg": "RS256", "n": encode(&n), "e": encode(rsa.exponent) })
    }

    /// A token that is signed with the public key as if it were a secret.
    pub(crate) fn confused(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(self.kid.clone());
        let secret = self.jwk().to_string();
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }
}

/// What the API server of a cluster knows, and how it (mis)behaves.
#[derive(Default)]
pub(crate) struct Knows {
    /// Pods by `namespace/name`.
    pub(crate) pods: HashMap<String, Value>,
    /// As an API server of before Kubernetes 1.13, which knows nothing of audiences.
    pub(crate) ignores_audiences: bool,
}

/// A cluster: its API server reviews tokens that its own key has signed.
pub(crate) struct Cluster {
    pub(crate) site: Site,
    pub(crate) signer: Arc<Signer>,
    pub(crate) knows: Arc<Mutex<Knows>>,
    pub(crate) reviewer: tempfile::NamedTempFile,
}

pub(crate) const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const REVIEWER: &str = "reviewers-own-token";

impl Cluster {
    pub(crate) async fn start() -> Self {
        let signer = Arc::new(Signer::rsa("cluster-1"));
        let knows = Arc::<Mutex<Knows>>::default();
        let (key, known) = (Arc::clone(&signer), Arc::clone(&knows));
        let site = Site::start(move |asked| answer(&key, &known.lock().unwrap(), asked)).await;
        let reviewer = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(reviewer.path(), format!("{REVIEWER}\n")).unwrap();
        let cluster = Self { site, signer, knows, reviewer };
        cluster.run("shop", "web-1", "uid-1", "web");
        cluster
    }

    /// Starts a pod.
    pub(crate) fn run(&self, namespace: &str, pod: &str, uid: &str, account: &str) {
        let value = json!({
            "metadata": { "name": pod, "namespace": namespace, "uid": uid },
            "spec": { "serviceAccountName": account, "nodeName": "node-1" },
            "status": { "phase": "Running", "podIPs": [{ "ip": "127.0.0.1" }], "hostIPs": [{ "ip": "192.0.2.1" }] },
        });
        self.knows.lock().unwrap().pods.insert(format!("{namespace}/{pod}"), value);
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Knows)) {
        change(&mut self.knows.lock().unwrap());
    }

    /// The token that the kubelet puts into the pod `shop/web-1`, with changes.
    pub(crate) fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = pod_claims();
        change(&mut claims);
        self.signer.sign(&claims)
    }

    /// This section of the configuration, with more fields for the cluster.
    pub(crate) fn reviewed(&self, more: &str) -> String {
        let Self { site: Site { url, ca, .. }, reviewer, .. } = self;
        let (ca, reviewer) = (ca.display(), reviewer.path().display());
        format!(
            r#"
attest:
  kubernetes:
    - name: main
      audience: postern
      review: {{ url: "{url}", ca: "{ca}", token_file: "{reviewer}" }}
      {more}
      rules:
        - match: {{ k8s.namespace: shop, k8s.service_account: "*" }}
          id: spiffe://corp.example/ns/{{k8s.namespace}}/sa/{{k8s.service_account}}
          labels: {{ app: shop }}
"#
        )
    }
}

pub(crate) fn pod_claims() -> Value {
    json!({
        "iss": "https://cluster.example",
        "aud": ["postern"],
        "sub": "system:serviceaccount:shop:web",
        "iat": now(),
        "nbf": now(),
        "exp": now() + 600,
        "jti": "9f1c",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-1", "uid": "node-uid" },
            "pod": { "name": "web-1", "uid": "uid-1" },
            "serviceaccount": { "name": "web", "uid": "sa-uid" },
        },
    })
}

fn answer(signer: &Signer, knows: &Knows, asked: &Asked) -> (u16, Value) {
    if asked.authorization != format!("Bearer {REVIEWER}") {
        return (401, json!({ "kind": "Status", "code": 401 }));
    }
    if asked.method == "POST" && asked.path == REVIEWS {
        return (201, json!({ "kind": "TokenReview", "status": review(signer, knows, &asked.body["spec"]) }));
    }
    let parts: Vec<&str> = asked.path.split('/').collect();
    let pod = match parts[..] {
        ["", "api", "v1", "namespaces", namespace, "pods", pod] => {
            knows.pods.get(&format!("{namespace}/{pod}"))
        }
        _ => None,
    };
    pod.map_or((404, json!({ "kind": "Status", "code": 404 })), |pod| (200, pod.clone()))
}

/// As the API server does: the signature, the dates, the audiences that were asked for.
fn review(signer: &Signer, knows: &Knows, spec: &Value) -> Value {
    let mut validation = Validation::new(signer.algorithm);
    validation.validate_aud = false;
    let jwk = serde_json::from_value(signer.jwk()).unwrap();
    let token = spec["token"].as_str().unwrap();
    let Ok(decoded) =
        jsonwebtoken::decode::<Value>(token, &DecodingKey::from_jwk(&jwk).unwrap(), &validation)
    else {
        return json!({ "authenticated": false, "error": "invalid bearer token" });
    };
    let claims = decoded.claims;
    let own = claims["aud"].as_array().unwrap();
    let common: Vec<&Value> =
        spec["audiences"].as_array().unwrap().iter().filter(|a| own.contains(a)).collect();
    if common.is_empty() && !knows.ignores_audiences {
        return json!({ "authenticated": false, "error": "token audiences do not fit" });
    }
    let said = &claims["kubernetes.io"];
    let mut extra = serde_json::Map::new();
    for (name, value) in [
        ("pod-name", &said["pod"]["name"]),
        ("pod-uid", &said["pod"]["uid"]),
        ("node-name", &said["node"]["name"]),
    ] {
        if value.is_string() {
            extra.insert(format!("authentication.kubernetes.io/{name}"), json!([value]));
        }
    }
    let user = json!({ "username": claims["sub"], "uid": "sa-uid", "groups": ["system:serviceaccounts"], "extra": extra });
    match knows.ignores_audiences {
        true => json!({ "authenticated": true, "user": user }),
        false => json!({ "authenticated": true, "user": user, "audiences": common }),
    }
}

/// An issuer of tokens, such as a CI system's.
pub(crate) struct Issuing {
    pub(crate) site: Site,
    pub(crate) keys: Arc<Mutex<Vec<Value>>>,
    pub(crate) signer: Signer,
}

pub(crate) const KEYS: &str = "/jwks";

impl Issuing {
    pub(crate) async fn start() -> Self {
        let signer = Signer::new("key-1");
        let keys = Arc::new(Mutex::new(vec![signer.jwk()]));
        let published = Arc::clone(&keys);
        let site = Site::start(move |asked| match asked.path.as_str() {
            KEYS => (200, json!({ "keys": *published.lock().unwrap() })),
            _ => (404, json!({})),
        })
        .await;
        Self { site, keys, signer }
    }

    /// Where its keys are, for the configuration.
    pub(crate) fn key_set(&self) -> String {
        format!(r#"{{ url: "{}{KEYS}", ca: "{}" }}"#, self.site.url, self.site.ca.display())
    }
}
