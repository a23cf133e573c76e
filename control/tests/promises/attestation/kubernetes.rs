//! Projected service-account tokens of Kubernetes.

use jsonwebtoken::{Algorithm, Header};
use postern_config::wire::v1::enroll_request::Credential;
use serde_json::{Value, json};
use tonic::Code;

use super::{enroll, identity, refused};
use crate::harness::{Connection, Control, Keys, LONG, Svid};
use crate::platform::{Cluster, Issuing, KEYS, REVIEWS, Signer, now, pod_claims};

fn by(token: String) -> Credential {
    Credential::KubernetesToken(token)
}

/// A control plane that verifies a cluster's tokens by the keys of its issuer.
fn by_keys(issuing: &Issuing) -> Control {
    Control::configured(&format!(
        r#"
attest:
  kubernetes:
    - name: edge
      issuer: https://cluster.example
      audience: postern
      jwks: {}
      rules:
        - match: {{ k8s.namespace: shop, k8s.service_account: web }}
          id: spiffe://corp.example/edge/{{k8s.node}}/till
"#,
        issuing.key_set()
    ))
}

#[tokio::test]
async fn a_pod_gets_the_identity_of_its_account() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let keys = Keys::new();
    let answer = enroll(&control, by(cluster.token(|_| {})), &keys).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/ns/shop/sa/web");
    let records = control.json(&["audit", "--last", "10"]);
    let record = records.as_array().unwrap().iter().find(|r| r["action"] == "enroll").unwrap();
    assert_eq!(record["detail"]["attested"], json!({ "kind": "kubernetes", "binding": "pod main uid-1" }));
    // It is renewed like any other.
    let svid = Svid::new(answer.svid, &keys.key);
    let mut connection = Connection::open(control.listen, control.pin(), Some(&svid)).await.unwrap();
    let request = postern_config::wire::v1::RenewRequest { csr: Keys::new().csr, ttl_ms: 0 };
    connection.client.renew(request).await.unwrap();
}

#[tokio::test]
async fn a_token_for_somebody_else_is_refused_whoever_reviews_it() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    // The default token of every pod, and one that another service got from this pod.
    for audience in ["https://kubernetes.default.svc", "vault"] {
        refused(&control, by(cluster.token(|c| c["aud"] = json!([audience]))), "token_review").await;
        // An API server that does not look at audiences has not looked at ours.
        cluster.change(|knows| knows.ignores_audiences = true);
        refused(&control, by(cluster.token(|c| c["aud"] = json!([audience]))), "token_review").await;
        cluster.change(|knows| knows.ignores_audiences = false);
    }
    assert_eq!(control.issued("enroll"), 0);
}

#[tokio::test]
async fn a_forged_token_is_refused() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let forger = Signer::rsa("cluster-1");
    refused(&control, by(forger.sign(&pod_claims())), "token_review").await;
    let asked = cluster.site.count(REVIEWS);
    // What the API server needs not be bothered with.
    refused(&control, by(cluster.signer.confused(&pod_claims())), "bad_algorithm").await;
    refused(&control, by("no token".into()), "malformed").await;
    refused(&control, by("a.b.c".into()), "malformed").await;
    refused(&control, by("x".repeat(9000)), "malformed").await;
    let ended = |c: &mut Value| (c["iat"], c["exp"]) = (json!(now() - 700), json!(now() - 100));
    refused(&control, by(cluster.token(ended)), "credential_expired").await;
    assert_eq!(cluster.site.count(REVIEWS), asked);
}

#[tokio::test]
async fn a_token_outlives_its_pod_in_vain() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let change = |change: &dyn Fn(&mut Value)| {
        cluster.run("shop", "web-1", "uid-1", "web");
        cluster.change(|knows| change(knows.pods.get_mut("shop/web-1").unwrap()));
    };
    change(&|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-23T00:00:00Z"));
    refused(&control, by(cluster.token(|_| {})), "pod_gone").await;
    change(&|pod| pod["status"]["phase"] = json!("Succeeded"));
    refused(&control, by(cluster.token(|_| {})), "pod_gone").await;
    // A new pod of the same name, as a StatefulSet makes it.
    change(&|pod| pod["metadata"]["uid"] = json!("uid-2"));
    refused(&control, by(cluster.token(|_| {})), "other_pod").await;
    change(&|pod| pod["spec"]["serviceAccountName"] = json!("other"));
    refused(&control, by(cluster.token(|_| {})), "other_pod").await;
    change(&|pod| pod["spec"]["nodeName"] = json!("node-2"));
    refused(&control, by(cluster.token(|_| {})), "other_pod").await;
    cluster.change(|knows| knows.pods.clear());
    refused(&control, by(cluster.token(|_| {})), "pod_gone").await;
    assert_eq!(control.issued("enroll"), 0);
}

#[tokio::test]
async fn a_token_that_is_bound_to_no_pod_or_no_account_is_refused() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let unbound = cluster.token(|c| c["kubernetes.io"]["pod"] = Value::Null);
    refused(&control, by(unbound), "token_claims").await;
    for user in ["system:node:n1", "admin", "system:serviceaccount:shop", "system:serviceaccount:shop:web:x"]
    {
        refused(&control, by(cluster.token(|c| c["sub"] = json!(user))), "token_claims").await;
    }
    // A name that would lead to another resource of the API server is not asked for.
    for pod in ["../../../../api/v1/namespaces/shop/pods/web-1", "web-1/status", "web-1?x", "WEB"] {
        let token = cluster.token(|c| c["kubernetes.io"]["pod"]["name"] = json!(pod));
        refused(&control, by(token), "token_claims").await;
    }
    assert!(cluster.site.all().iter().all(|asked| asked.path == REVIEWS));
}

#[tokio::test]
async fn accounts_that_no_rule_names_get_nothing() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    cluster.run("bank", "web-1", "uid-9", "web");
    let token = cluster.token(|c| {
        c["sub"] = json!("system:serviceaccount:bank:web");
        c["kubernetes.io"]["namespace"] = json!("bank");
        c["kubernetes.io"]["pod"]["uid"] = json!("uid-9");
    });
    refused(&control, by(token), "no_rule").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_keys_for_one_pod_exactly_one_wins() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let token = cluster.token(|_| {});
    let mut attempts = tokio::task::JoinSet::new();
    let gate = std::sync::Arc::new(tokio::sync::Barrier::new(64));
    for _ in 0..64 {
        let (token, listen, pin, gate) = (token.clone(), control.listen, control.pin(), gate.clone());
        attempts.spawn(async move {
            let mut connection = Connection::open(listen, pin, None).await.unwrap();
            let keys = Keys::new();
            let request = connection.attested(by(token), &keys);
            gate.wait().await;
            connection.client.enroll(request).await
        });
    }
    let results = attempts.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(control.refusals("enroll"), vec!["bound_to_another_key"; 63]);
    assert_eq!(control.json(&["identities"]).as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_stolen_token_gets_no_second_key_and_the_pod_itself_gets_its_lost_answer() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let (token, keys) = (cluster.token(|_| {}), Keys::new());
    let first = enroll(&control, by(token.clone()), &keys).await.unwrap();
    let again = enroll(&control, by(token.clone()), &keys).await.unwrap();
    assert_eq!(first.svid.unwrap().chain, again.svid.unwrap().chain);
    refused(&control, by(token), "bound_to_another_key").await;
    // Neither does the next token of this pod.
    refused(&control, by(cluster.token(|c| c["jti"] = json!("next"))), "bound_to_another_key").await;
    assert_eq!(control.issued("enroll"), 1);
}

#[tokio::test]
async fn once_the_token_is_over_a_new_key_takes_the_place_of_the_old_one() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let keys = Keys::new();
    // Clocks may be a minute apart, so this one is good for two seconds more. The API server's has the same leeway.
    let ends = |c: &mut Value| (c["iat"], c["exp"]) = (json!(now() - 600), json!(now() - 58));
    let first = enroll(&control, by(cluster.token(ends)), &keys).await.unwrap();
    let begun = std::time::Instant::now();
    let second = loop {
        match enroll(&control, by(cluster.token(|_| {})), &Keys::new()).await {
            Ok(answer) => break answer,
            Err(status) => assert_eq!(status.code(), Code::PermissionDenied),
        }
        assert!(begun.elapsed() < LONG);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_ne!(first.svid, second.svid);
    // One pod has one live key: the earlier enrollment is over.
    let svid = Svid::new(first.svid, &keys.key);
    let mut connection = Connection::open(control.listen, control.pin(), Some(&svid)).await.unwrap();
    let request = postern_config::wire::v1::RenewRequest { csr: Keys::new().csr, ttl_ms: 0 };
    assert_eq!(connection.client.renew(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_node_cannot_use_the_tokens_of_other_nodes_pods() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed("from_pod_address: true"));
    let at = |ip: &str, host: bool| {
        cluster.change(|knows| {
            let pod = knows.pods.get_mut("shop/web-1").unwrap();
            pod["status"]["podIPs"] = json!([{ "ip": ip }]);
            pod["spec"]["hostNetwork"] = json!(host);
        });
    };
    at("10.1.2.3", false);
    refused(&control, by(cluster.token(|_| {})), "other_address").await;
    at("127.0.0.1", true); // on the host's network, its own address does not count
    refused(&control, by(cluster.token(|_| {})), "other_address").await;
    at("127.0.0.1", false);
    enroll(&control, by(cluster.token(|_| {})), &Keys::new()).await.unwrap();
}

#[tokio::test]
async fn while_the_api_server_is_away_nobody_is_judged_and_everybody_may_come_back() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    cluster.site.set_down(true);
    let status = enroll(&control, by(cluster.token(|_| {})), &Keys::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("localhost"), "a caller learns nothing of our insides");
    cluster.site.set_down(false);
    // A token that the control plane itself may not use is the operator's to mend, and nobody's guilt.
    std::fs::write(cluster.reviewer.path(), "wrong").unwrap();
    let status = enroll(&control, by(cluster.token(|_| {})), &Keys::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    // It is read again for every question, since the kubelet replaces it.
    std::fs::write(cluster.reviewer.path(), "reviewers-own-token").unwrap();
    enroll(&control, by(cluster.token(|_| {})), &Keys::new()).await.unwrap();
    assert_eq!(control.refusals("enroll"), ["attestor_unavailable"; 2]);
}

#[tokio::test]
async fn a_captured_request_is_worth_nothing_and_asks_nobody() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let open = || Connection::open(control.listen, control.pin(), None);
    let captured = open().await.unwrap().attested(by(cluster.token(|_| {})), &Keys::new());
    let status = open().await.unwrap().client.enroll(captured).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // Another key in place of the one that signed.
    let mut connection = open().await.unwrap();
    let mut swapped = connection.attested(by(cluster.token(|_| {})), &Keys::new());
    swapped.csr = Keys::new().csr;
    assert!(connection.client.enroll(swapped).await.is_err());
    assert_eq!(control.refusals("enroll"), ["proof", "proof"]);
    assert_eq!(cluster.site.count(REVIEWS), 0);
}

#[tokio::test]
async fn a_request_supplies_a_key_and_no_name() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    let keys = Keys::asking(|params| {
        let uri = "spiffe://corp.example/ns/bank/sa/vault".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    });
    let status = enroll(&control, by(cluster.token(|_| {})), &keys).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(control.refusals("enroll"), ["csr_other_identity"]);
}

#[tokio::test]
async fn a_revoked_identity_is_not_attested_anew() {
    let cluster = Cluster::start().await;
    let control = Control::configured(&cluster.reviewed(""));
    control.json(&["revoke", "spiffe://corp.example/ns/shop/sa/web"]);
    let status = enroll(&control, by(cluster.token(|_| {})), &Keys::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(control.refusals("enroll"), ["revoked"]);
}

#[tokio::test]
async fn a_cluster_whose_api_server_is_out_of_reach_is_believed_by_its_keys() {
    let issuing = Issuing::start().await;
    let control = by_keys(&issuing);
    let signed = |change: &dyn Fn(&mut Value)| {
        let mut claims = pod_claims();
        change(&mut claims);
        by(issuing.signer.sign(&claims))
    };
    let answer = enroll(&control, signed(&|_| {}), &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/edge/node-1/till");
    // Nobody tells that a pod was deleted: what lives longer than ten minutes is not taken.
    refused(&control, signed(&|c| c["exp"] = json!(now() + 3600)), "token_life").await;
    refused(&control, signed(&|c| drop(c.as_object_mut().unwrap().remove("exp"))), "malformed").await;
    refused(&control, signed(&|c| drop(c.as_object_mut().unwrap().remove("iat"))), "token_claims").await;
    let ended = |c: &mut Value| (c["iat"], c["exp"]) = (json!(now() - 700), json!(now() - 100));
    refused(&control, signed(&ended), "credential_expired").await;
    refused(&control, signed(&|c| c["aud"] = json!(["vault"])), "wrong_audience").await;
    refused(&control, signed(&|c| drop(c.as_object_mut().unwrap().remove("aud"))), "wrong_audience").await;
    refused(&control, signed(&|c| c["iss"] = json!("https://other.example")), "unknown_issuer").await;
    // What was signed contradicts itself.
    refused(&control, signed(&|c| c["sub"] = json!("system:serviceaccount:shop:root")), "token_claims").await;
    refused(&control, signed(&|c| c["kubernetes.io"]["namespace"] = json!("bank")), "token_claims").await;
    refused(&control, signed(&|c| c["kubernetes.io"]["pod"] = Value::Null), "token_claims").await;
    // A value that would be more than one segment.
    let uid = |c: &mut Value| {
        c["kubernetes.io"]["pod"]["uid"] = json!("uid-3");
        c["kubernetes.io"]["node"]["name"] = json!("../../postern");
    };
    refused(&control, signed(&uid), "bad_identity").await;
    refused(&control, by(Signer::new("key-1").sign(&pod_claims())), "bad_signature").await;
    refused(&control, by(issuing.signer.confused(&pod_claims())), "bad_algorithm").await;
    assert_eq!(control.issued("enroll"), 1);
}

#[tokio::test]
async fn an_issuers_new_key_is_found_and_strangers_cannot_make_it_be_asked_often() {
    let issuing = Issuing::start().await;
    let control = by_keys(&issuing);
    for kid in ["a", "b", "c", "d"] {
        refused(&control, by(Signer::new(kid).sign(&pod_claims())), "unknown_key").await;
    }
    assert_eq!(issuing.site.count(KEYS), 1, "the keys were read a moment ago");

    // A rotation, seen by a control plane that has read its keys a while ago.
    let issuing = Issuing::start().await;
    let control = by_keys(&issuing);
    enroll(&control, by(issuing.signer.sign(&pod_claims())), &Keys::new()).await.unwrap();
    let next = Signer::new("key-2");
    issuing.keys.lock().unwrap().push(next.jwk());
    let mut claims = pod_claims();
    claims["kubernetes.io"]["pod"]["uid"] = json!("uid-2");
    let begun = std::time::Instant::now();
    while enroll(&control, by(next.sign(&claims)), &Keys::new()).await.is_err() {
        assert!(begun.elapsed() < LONG);
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
    assert_eq!(issuing.site.count(KEYS), 2);
}

#[tokio::test]
async fn nothing_is_fetched_from_where_a_token_says() {
    let (issuing, trap) = (Issuing::start().await, Issuing::start().await);
    let control = by_keys(&issuing);
    let mut claims = pod_claims();
    claims["iss"] = json!(trap.site.url);
    refused(&control, by(trap.signer.sign(&claims)), "unknown_issuer").await;
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("trap".into());
    header.jku = Some(format!("{}{KEYS}", trap.site.url));
    header.x5u = Some(trap.site.url.clone());
    header.jwk = serde_json::from_value(trap.signer.jwk()).ok();
    refused(&control, by(trap.signer.sign_with(&header, &pod_claims())), "unknown_key").await;
    assert_eq!(trap.site.all().len(), 0);
}

#[tokio::test]
async fn without_a_cluster_in_the_configuration_no_pod_enrolls() {
    let control = Control::start();
    refused(&control, by(Signer::new("k").sign(&pod_claims())), "attest_off").await;
}
