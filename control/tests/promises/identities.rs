//! Declared identities bind whoever becomes them, environments keep apart, and what ends is taken out of service.

use std::fs;

use postern_config::enroll::JoinString;
use postern_config::wire::v1;
use serde_json::json;
use tonic::Code;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::harness::{Connection, Control, Keys, Svid, TD, enrolled, failed};
use crate::watching::Watch;

fn document(name: &str, more: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: {{ name: {name} }}\nspec:\n  \
         spiffeId: spiffe://{TD}/{name}\n  owner: team-{name}\n{more}---\n"
    )
}

fn apply(control: &Control, text: &str) -> std::process::Output {
    let file = control.data().join("identities.yaml");
    fs::write(&file, text).unwrap();
    control.cli(&["apply", "-f", file.to_str().unwrap()])
}

fn applied(control: &Control, text: &str) {
    let output = apply(control, text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn id(name: &str) -> String {
    format!("spiffe://{TD}/{name}")
}

fn names(chain: &Svid) -> Vec<String> {
    let (_, leaf) = X509Certificate::from_der(&chain.chain[0]).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("{other:?}"),
    };
    san.value.general_names.iter().map(name).collect()
}

fn lifetime(svid: &Svid) -> i64 {
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    leaf.validity().not_after.timestamp() - jiff::Timestamp::now().as_second()
}

async fn renews(control: &Control, join: &JoinString, svid: &Svid) -> bool {
    let request = v1::RenewRequest { csr: Keys::new().csr, ttl_ms: 0 };
    // The server's refusal of a certificate shows with the first bytes that are read, not with the handshake.
    match Connection::open(control.listen, join.pins[0], Some(svid)).await {
        Ok(mut connection) => connection.client.renew(request).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_declared_identity_has_its_terms_in_every_certificate() {
    let control = Control::start();
    let terms = "  maxTtl: 90s\n  dnsNames: [pay.shop.svc, \"*.pay.shop.svc\"]\n  labels: { tier: gold }\n";
    applied(&control, &document("pay", terms));
    let (join, svid) = enrolled(&control, "/pay", &[]).await;
    assert_eq!(names(&svid), [&*id("pay"), "pay.shop.svc", "*.pay.shop.svc"]);
    assert!(lifetime(&svid) <= 91, "{}", lifetime(&svid));

    // A new document binds who is there already.
    applied(&control, &document("pay", "  maxTtl: 60s\n"));
    let keys = Keys::new();
    let request = v1::RenewRequest { csr: keys.csr.clone(), ttl_ms: 3_600_000 };
    let mut connection = Connection::to(&control, &join, Some(&svid)).await;
    let renewed = Svid::new(connection.client.renew(request).await.unwrap().into_inner().svid, &keys.key);
    assert_eq!(names(&renewed), [id("pay")]);
    assert!(lifetime(&renewed) <= 61);

    let live = control.json(&["identities"]);
    assert_eq!((&live[0]["owner"], live.as_array().unwrap().len()), (&json!("team-pay"), 1));
    enrolled(&control, "/other", &[]).await;
    let orphans = control.json(&["identities", "--orphans"]);
    assert_eq!((&orphans[0]["id"], orphans.as_array().unwrap().len()), (&json!(id("other")), 1));
    let soon = control.json(&["identities", "--near-expiry", "2m"]);
    assert_eq!((&soon[0]["id"], soon.as_array().unwrap().len()), (&json!(id("pay")), 1));
}

#[tokio::test]
async fn a_credential_of_staging_never_yields_an_identity_of_prod() {
    let control = Control::start();
    applied(
        &control,
        &(document("pay", "  environment: prod\n") + &document("web", "  environment: staging\n")),
    );
    let create = |name: &str, environment: &str| {
        control.cli(&["token", "create", "--id", &id(name), "--environment", environment])
    };
    failed(&create("pay", "staging"), 1, "is declared in prod; a token for staging would not yield it");
    // A token of before, for an identity that moves to prod afterwards.
    let join = control.token("/web", &["--environment", "staging"]);
    applied(&control, &document("web", "  environment: prod\n"));
    let refused = Connection::to(&control, &join, None).await.enroll(&join, &Keys::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(control.refusals("enroll"), ["environment"]);
    // And the same for who is there already.
    let (join, svid) = enrolled(&control, "/pay", &[]).await;
    assert_eq!(control.json(&["identities"])[0]["environment"], "prod");
    applied(&control, &document("pay", "  environment: staging\n"));
    let request = v1::RenewRequest { csr: Keys::new().csr, ttl_ms: 0 };
    let refused = Connection::to(&control, &join, Some(&svid)).await.client.renew(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(control.refusals("renew"), ["environment"]);
}

#[tokio::test]
async fn what_has_ended_is_taken_out_of_service() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/pay", &[]).await;
    applied(&control, &document("pay", "  expires: 2026-01-01T00:00:00Z\n"));
    assert!(!renews(&control, &join, &svid).await, "nothing is issued from the first moment on");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while control.json(&["identities"]) != json!([]) {
        assert!(std::time::Instant::now() < deadline, "it is in service still");
        tokio::task::yield_now().await;
    }
    failed(
        &control.cli(&["token", "create", "--id", &id("pay")]),
        1,
        "is declared with an end that has come",
    );

    // A command does the same; a new token brings it back, for it was not revoked.
    let (join, svid) = enrolled(&control, "/web", &[]).await;
    control.json(&["identities", "remove", &id("web")]);
    assert!(!renews(&control, &join, &svid).await, "its certificate is good still");
    enrolled(&control, "/web", &[]).await;
    // A spent one does not bring back what is refused, not even to the key that spent it.
    let (spent, keys) = (control.token("/gone", &[]), Keys::new());
    Connection::to(&control, &spent, None).await.enroll(&spent, &keys).await.unwrap();
    control.json(&["identities", "remove", &id("gone")]);
    let refused = Connection::to(&control, &spent, None).await.enroll(&spent, &keys).await.unwrap_err();
    assert!(refused.message().contains("revoked"), "{refused}");
    // A token that waits is dead with it.
    let waiting = control.token("/late", &[]);
    control.json(&["identities", "remove", &id("late")]);
    let refused = Connection::to(&control, &waiting, None).await.enroll(&waiting, &Keys::new()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    failed(&control.cli(&["identities", "remove", &id("nobody")]), 1, "has no enrollment and no token here");
}

#[tokio::test]
async fn labels_of_a_changed_document_reach_whoever_is_there_already() {
    let control = Control::start();
    let policy = control.data().join("p.yaml");
    fs::write(
        &policy,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: gold, namespace: istio-system }\n\
         spec:\n  selector: { matchLabels: { tier: gold } }\n  rules: [{}]\n",
    )
    .unwrap();
    control.json(&["policy", "apply", "-f", policy.to_str().unwrap()]);
    let (join, svid) = enrolled(&control, "/pay", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    let documents = |response: Result<v1::WatchResponse, tonic::Status>| {
        response.unwrap().policies.map(|set| set.documents.len())
    };
    assert_eq!(documents(watch.next().await), Some(0));
    applied(&control, &document("pay", "  labels: { tier: gold }\n"));
    assert_eq!(documents(watch.next().await), Some(1));
    applied(&control, &document("pay", "  labels: { tier: tin }\n"));
    assert_eq!(documents(watch.next().await), Some(0));
}

#[test]
fn a_mistake_names_its_place_and_applies_nothing() {
    let control = Control::start();
    let good = document("pay", "");
    let bad = document("web", "  dnsName: [a.b]\n");
    failed(&apply(&control, &(good.clone() + &bad)), 1, "identities.yaml:");
    failed(
        &apply(&control, &(good.clone() + &good.replace("{ name: pay }", "{ name: pay2 }"))),
        1,
        "is declared by",
    );
    failed(
        &apply(&control, &(good.clone() + &good.replace("/pay", "/web"))),
        1,
        "\"pay\" stands twice in the input",
    );
    failed(&apply(&control, &good.replace(TD, "other.example")), 1, "is not of this trust domain");
    assert_eq!(control.json(&["identities", "declared"]), json!([]));
    applied(&control, &good);
    assert_eq!(control.json(&["identities", "declared"])[0]["spec"]["owner"], "team-pay");
    control.json(&["delete", "identity", "pay"]);
    failed(&control.cli(&["delete", "identity", "pay"]), 1, "no identity is declared by the name");
}
