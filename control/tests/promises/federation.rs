//! Foreign trust domains: fetched by what proves them, delivered to whom they are for, never rolled back, never callers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::wire::v1;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::{Connection, Control, Keys, LONG, OTHER, TD, enrolled, failed};
use crate::public::Web;
use crate::watching::Watch;

/// A control plane of the other trust domain, with a public port.
fn other(config: &str) -> Control {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = dir.path().join("control.yaml");
    std::fs::write(&path, config).unwrap();
    Control::start_in(dir, &["--trust-domain", OTHER, "--config", path.to_str().unwrap()])
}

fn port(control: &Control) -> u16 {
    control.ready["public"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The root of a control plane as a bundle file, as an operator carries it over.
fn bootstrap(control: &Control, domain: &str) -> String {
    let root = std::fs::read(control.data().join("ca/root.pem")).unwrap();
    let root = CertificateDer::from_pem_slice(&root).unwrap();
    let bundle = TrustBundle::new(domain.parse().unwrap(), 0, [root]).unwrap();
    let path = control.data().parent().unwrap().join(format!("{domain}.json"));
    std::fs::write(&path, bundle.to_document()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Whom the workload at the end of this stream believes, by trust domain.
fn domains(message: &v1::WatchResponse) -> Option<BundleSet> {
    message.bundles.as_ref().map(|set| BundleSet::try_from(set).unwrap())
}

/// Reads pushes until the bundles are as wanted.
async fn until_bundles(watch: &mut Watch, wanted: impl Fn(&BundleSet) -> bool) {
    loop {
        if domains(&watch.next().await.unwrap()).is_some_and(|set| wanted(&set)) {
            return;
        }
    }
}

fn believes(set: &BundleSet) -> BTreeSet<String> {
    set.iter().map(|bundle| bundle.trust_domain().to_string()).collect()
}

/// F-2, F-5, F-10: by either profile, to the members alone, and gone when it is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_bundle_reaches_those_whom_it_is_for_and_nobody_else() {
    let web = Web::new();
    let (control, foreign) = (Control::start(), other(&web.config("")));
    let (join, svid) = enrolled(&control, "/ns/shop/sa/web", &[]).await;
    let mut member = Watch::open(&control, &join, &svid).await.unwrap();
    let (join, svid) = enrolled(&control, "/ns/bank/sa/ledger", &[]).await;
    let mut stranger = Watch::open(&control, &join, &svid).await.unwrap();
    let (join, svid) = enrolled(&control, "/named", &[]).await;
    let mut named = Watch::open(&control, &join, &svid).await.unwrap();
    let (join, svid) = enrolled(&control, "/declared", &[]).await;
    let mut declared = Watch::open(&control, &join, &svid).await.unwrap();
    let document = format!(
        "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: {{ name: declared }}\nspec:\n  \
         spiffeId: spiffe://{TD}/declared\n  owner: us\n  federatesWith: [{OTHER}]\n"
    );
    let path = control.data().join("declared.yaml");
    std::fs::write(&path, document).unwrap();
    control.json(&["apply", "-f", path.to_str().unwrap()]);
    let (both, own): (BTreeSet<_>, BTreeSet<_>) =
        ([TD.to_owned(), OTHER.to_owned()].into(), [TD.to_owned()].into());
    for watch in [&mut member, &mut stranger, &mut named, &mut declared] {
        until_bundles(watch, |set| believes(set) == own).await;
    }

    let (by_ip, by_name) = (
        format!("https://127.0.0.1:{}/bundle", port(&foreign)),
        format!("https://localhost:{}/bundle", port(&foreign)),
    );
    let (file, ca) = (bootstrap(&foreign, OTHER), web.ca.to_str().unwrap().to_owned());
    let id = format!("spiffe://{OTHER}/postern/control");
    let named_id = format!("spiffe://{TD}/named");
    let profiles: [&[&str]; 2] = [
        &["--url", &by_ip, "--profile", "https_spiffe", "--endpoint-id", &id, "--bundle", &file],
        &["--url", &by_name, "--profile", "https_web", "--ca", &ca],
    ];
    for profile in profiles {
        let whom = ["--for", "shop", "--for", &named_id];
        let added = control.json(&[&["federation", "add", OTHER], profile, &whom].concat());
        assert_eq!(added["error"], "", "{added}");
        assert!(added["federation"]["sequence"].as_u64().unwrap() > 0, "{added}");
        assert_eq!(added["federation"]["jwt_keys"], 1);
        for watch in [&mut member, &mut named, &mut declared] {
            // It has what was fetched, and not only what was given to begin with.
            until_bundles(watch, |set| {
                believes(set) == both && set.of(OTHER).is_some_and(|bundle| bundle.sequence() > 0)
            })
            .await;
        }
        let listed = control.json(&["federation", "list"]);
        assert_eq!(listed[0]["for"], json!(["shop", named_id]));
        assert!(listed[0]["fetched_at"].is_string() && listed[0]["error"] == "", "{listed}");
        control.json(&["federation", "remove", OTHER]);
        for watch in [&mut member, &mut named, &mut declared] {
            until_bundles(watch, |set| believes(set) == own).await;
        }
        assert_eq!(control.json(&["federation", "list"]), json!([]));
    }
    // Sections are complete and sent when they differ: the stranger's never did.
    control.json(&["service", "apply", "--name", "late", "--identity", &named_id]);
    let last = stranger.next().await.unwrap();
    assert!(last.bundles.is_none() && last.services.is_some());
}

/// The control plane believes its own trust domain alone, whoever is federated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_identity_is_no_caller() {
    let (control, foreign) = (Control::start(), other("public: { listen: '127.0.0.1:0' }\n"));
    let url = format!("https://127.0.0.1:{}/bundle", port(&foreign));
    let (file, id) = (bootstrap(&foreign, OTHER), format!("spiffe://{OTHER}/postern/control"));
    control.json(&[
        "federation",
        "add",
        OTHER,
        "--url",
        &url,
        "--profile",
        "https_spiffe",
        "--endpoint-id",
        &id,
        "--bundle",
        &file,
        "--for",
        "shop",
    ]);
    let created = foreign.json(&["token", "create", "--id", &format!("spiffe://{OTHER}/ns/shop/sa/web")]);
    let join: postern_config::enroll::JoinString = created["join"].as_str().unwrap().parse().unwrap();
    let keys = Keys::new();
    let (pin, home) = (control.token("/a", &[]).pins[0], join.pins[0]);
    let mut connection = Connection::open(foreign.listen, home, None).await.unwrap();
    let response = connection.enroll(&join, &keys).await.unwrap();
    let svid = crate::harness::Svid::new(response.svid, &keys.key);
    let refused = match Connection::open(control.listen, pin, Some(&svid)).await {
        Err(_) => true,
        Ok(mut connection) => crate::jwt::fetch(&mut connection, &["a"], 0).await.is_err(),
    };
    assert!(refused);
    assert_eq!(control.issued("jwt"), 0);
}

/// F-2, F-3: everything explicit, and nothing that contradicts itself.
#[test]
fn what_is_not_said_is_not_guessed() {
    let control = Control::start();
    let file = bootstrap(&control, TD);
    let add = |more: &[&str]| control.cli(&[&["federation", "add"], more].concat());
    let id = format!("spiffe://{OTHER}/endpoint");
    let url = "https://localhost:1/bundle";
    let web = ["--url", url, "--profile", "https_web"];
    let spiffe = ["--url", url, "--profile", "https_spiffe"];
    failed(&add(&[OTHER, "--url", url, "--for", "a"]), 2, "--profile");
    failed(&add(&[OTHER, "--profile", "https_web", "--for", "a"]), 2, "--url");
    failed(&add(&[&[OTHER], &web[..]].concat()), 2, "--for");
    for bad in
        ["http://localhost/bundle", "https://user@localhost/bundle", "https://u:p@localhost/", "localhost"]
    {
        failed(&add(&[OTHER, "--url", bad, "--profile", "https_web", "--for", "a"]), 1, "not an https URL");
    }
    let whom = &["--for", "a"][..];
    for (more, why) in [
        ([&[OTHER], &spiffe[..], whom].concat(), "--endpoint-id"),
        ([&[OTHER], &spiffe[..], whom, &["--endpoint-id", &id]].concat(), "--bundle"),
        (
            [&["third.example"], &spiffe[..], whom, &["--endpoint-id", &id, "--bundle", &file]].concat(),
            "of the trust domain",
        ),
        ([&[OTHER], &web[..], whom, &["--endpoint-id", &id]].concat(), "https_spiffe"),
        ([&[OTHER], &web[..], whom, &["--bundle", &file]].concat(), "https_spiffe"),
        ([&[TD], &web[..], whom].concat(), "itself"),
        ([&[OTHER], &web[..], &["--for", &id]].concat(), "neither a SPIFFE ID of"),
        ([&[OTHER], &web[..], &["--for", "a/b"]].concat(), "neither a SPIFFE ID of"),
        // B-6: this trust domain's own root, said to be the other's.
        (
            [&[OTHER], &spiffe[..], whom, &["--endpoint-id", &id, "--bundle", &file]].concat(),
            "would speak for both",
        ),
    ] {
        failed(&add(&more), 1, why);
    }
    failed(&control.cli(&["federation", "remove", OTHER]), 1, "no federation");
    failed(&control.cli(&["federation", "refresh", OTHER]), 1, "no federation");
    assert_eq!(control.json(&["federation", "list"]), json!([]));
}

/// A bundle endpoint of the web that says what it is told to, and counts.
struct Endpoint {
    port: u16,
    says: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn start(web: &Web) -> Self {
        let chain = vec![CertificateDer::from_pem_file(&web.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&web.key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (says, asked) = (Arc::<Mutex<String>>::default(), Arc::<AtomicUsize>::default());
        let (answer, count) = (Arc::clone(&says), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer.lock().unwrap().clone();
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { port, says, asked }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/bundle", self.port)
    }

    fn say(&self, status: &str, more: &str, body: &str) {
        *self.says.lock().unwrap() = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{more}\r\n{body}",
            body.len()
        );
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A foreign bundle document with fresh authorities.
fn document(sequence: u64, authorities: usize) -> String {
    let one = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.self_signed(&key).unwrap().der().clone()
    };
    let authorities = std::iter::repeat_with(one).take(authorities);
    TrustBundle::new(OTHER.parse().unwrap(), sequence, authorities)
        .unwrap()
        .with_refresh_hint(1)
        .to_document()
}

/// F-6, F-8, F-11, B-1, B-5, B-7: what an endpoint says that is hostile, or just mistaken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_bundle_is_kept_and_never_goes_back() {
    let web = Web::new();
    let (control, endpoint, elsewhere) =
        (Control::start(), Endpoint::start(&web).await, Endpoint::start(&web).await);
    let state = || control.json(&["federation", "list"])[0].clone();
    let held = |state: &Value| (state["sequence"].as_u64(), state["authorities"].as_u64());
    endpoint.say("503 Unavailable", "", "");
    let (url, ca) = (endpoint.url(), web.ca.to_str().unwrap().to_owned());
    let added = control.json(&[
        "federation",
        "add",
        OTHER,
        "--url",
        &url,
        "--profile",
        "https_web",
        "--ca",
        &ca,
        "--for",
        "shop",
    ]);
    assert_eq!(
        (added["error"].as_str(), held(&state())),
        (Some("the endpoint answered 503"), (None, Some(0)))
    );
    let refresh = |why: &str| match why {
        "" => assert_eq!(control.json(&["federation", "refresh", OTHER])["error"], ""),
        why => {
            let output = control.cli(&["federation", "refresh", OTHER]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(1) && said.contains(why), "{said} does not say {why:?}");
        }
    };
    endpoint.say("200 OK", "", &document(5, 2));
    refresh("");
    assert_eq!(held(&state()), (Some(5), Some(2)));

    let twice = document(9, 1).replacen("\"keys\":", "\"keys\":[],\"keys\":", 1);
    let kid = r#"{"kty":"EC","use":"jwt-svid","kid":"a","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;
    let same_kid = format!(r#"{{"keys":[{kid},{kid}],"spiffe_sequence":9}}"#);
    let large = format!("{{\"keys\":[],\"spiffe_sequence\":9,\"x\":\"{}\"}}", "x".repeat(1 << 20));
    for (body, why) in [
        (document(4, 1), "goes back from sequence 5 to 4"),
        (r#"{"keys":[]}"#.to_owned(), "goes back from sequence 5 to 0"),
        ("{}".to_owned(), "not a SPIFFE bundle"),
        ("<html>".to_owned(), "not a SPIFFE bundle"),
        (twice, "stands twice"),
        (same_kid, "same `kid`"),
        (large, "larger than"),
    ] {
        endpoint.say("200 OK", "", &body);
        refresh(why);
        let now = state();
        assert_eq!(held(&now), (Some(5), Some(2)), "{why}");
        assert!(now["error"].as_str().unwrap().contains(why), "{now}");
    }
    // Redirects: only where the first URL could have led, and never remembered.
    elsewhere.say("200 OK", "", &document(6, 1));
    for (location, why) in [
        (elsewhere.url().replace("https", "http"), "must begin with https"),
        (elsewhere.url().replace("localhost", "user@localhost"), "user and password"),
        (elsewhere.url().replace("localhost", "127.0.0.1"), "TLS with"),
        ("https://169.254.169.254/".to_owned(), "link-local"),
    ] {
        endpoint.say("302 Found", &format!("location: {location}\r\n"), "");
        refresh(why);
    }
    assert_eq!(elsewhere.asked(), 0);
    endpoint.say("301 Moved Permanently", &format!("location: {}\r\n", elsewhere.url()), "");
    refresh("");
    assert_eq!((held(&state()), elsewhere.asked()), ((Some(6), Some(1)), 1));
    endpoint.say("200 OK", "", &document(7, 3));
    refresh("");
    assert_eq!((held(&state()), elsewhere.asked()), ((Some(7), Some(3)), 1), "the first URL is asked again");
    // The same number over something else is odd, and newer all the same; an empty one revokes the trust domain.
    endpoint.say("200 OK", "", &document(7, 1));
    refresh("");
    assert_eq!(held(&state()), (Some(7), Some(1)));
    endpoint.say("200 OK", "", &document(8, 0));
    refresh("");
    assert_eq!((held(&state()), state()["error"].as_str()), ((Some(8), Some(0)), Some("")));
}

/// F-7: by itself, an interval apart, whether it succeeds or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_fetched_when_they_are_due_and_no_more_often() {
    let web = Web::new();
    let (control, endpoint) =
        (Control::configured("federation: { min_interval: 1s }\n"), Endpoint::start(&web).await);
    let (join, svid) = enrolled(&control, "/ns/shop/sa/web", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    endpoint.say("200 OK", "", &document(1, 1));
    let began = Instant::now();
    let (url, ca) = (endpoint.url(), web.ca.to_str().unwrap().to_owned());
    control.json(&[
        "federation",
        "add",
        OTHER,
        "--url",
        &url,
        "--profile",
        "https_web",
        "--ca",
        &ca,
        "--for",
        "shop",
    ]);
    for sequence in [2, 3] {
        endpoint.say("200 OK", "", &document(sequence, 1));
        until_bundles(&mut watch, |set| set.of(OTHER).is_some_and(|bundle| bundle.sequence() == sequence))
            .await;
    }
    let before = endpoint.asked();
    endpoint.say("500 Oops", "", "");
    while endpoint.asked() < before + 3 {
        assert!(began.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(endpoint.asked() as u64 <= began.elapsed().as_secs() + 2, "{} times", endpoint.asked());
    // An endpoint that fails the same way again and again is one record.
    assert_eq!(control.refusals("federation refresh"), ["status"]);
    assert_eq!(control.json(&["federation", "list"])[0]["sequence"], 3);
}
