//! `postern policy`: both kinds of documents, what they would decide, and what is probably not meant.

use crate::harness::{Control, failed};

#[test]
fn policies_of_both_kinds_are_applied_listed_and_deleted() {
    let control = Control::start();
    let document = |kind: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{ name: p, namespace: shop }}\nspec: {spec}\n"
        )
    };
    let (policy, peer) =
        (document("AuthorizationPolicy", "{}"), document("PeerAuthentication", "{ mtls: { mode: STRICT } }"));
    let file = control.data().join("p.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, format!("{policy}---\n{peer}")).unwrap();
    assert_eq!(
        control.json(&["policy", "apply", "-f", path])["applied"],
        serde_json::json!(["shop/p", "shop/p"])
    );
    let listed = String::from_utf8(control.cli(&["policy", "list"]).stdout).unwrap();
    assert!(listed.contains("AuthorizationPolicy  shop/p  ALLOW   0"), "{listed}");
    assert!(listed.contains("PeerAuthentication   shop/p  STRICT  -"), "{listed}");
    let shown = control.json(&["policy", "show", "shop/p"]);
    assert_eq!(shown.as_array().unwrap().len(), 2);
    failed(&control.cli(&["policy", "show", "shop/q"]), 1, "there is no policy shop/q");

    // A name that two kinds share must be told apart; nothing is removed by a guess.
    failed(&control.cli(&["policy", "delete", "shop/p"]), 1, "say which: --kind");
    failed(&control.cli(&["policy", "delete", "shop/p", "--kind", "Pod"]), 2, "\"Pod\" is no kind");
    control.json(&["policy", "delete", "shop/p", "--kind", "PeerAuthentication"]);
    assert_eq!(control.json(&["policy", "list"])[0]["kind"], "AuthorizationPolicy");
    control.json(&["policy", "delete", "shop/p"]);
    assert_eq!(control.json(&["policy", "list"]), serde_json::json!([]));

    // What Istio silently ignores is refused with the reason.
    let void = "{ selector: { matchLabels: { app: a } }, mtls: { mode: STRICT } }";
    std::fs::write(&file, document("PeerAuthentication", void).replace("shop", "istio-system")).unwrap();
    failed(&control.cli(&["policy", "apply", "-f", path]), 1, "stands in the root namespace");
    assert_eq!(control.json(&["policy", "list"]), serde_json::json!([]));
}

/// Checks from [`check`]: nobody has to be reached for these.
const CALLERS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: callers, namespace: shop }
spec:
  selector: { matchLabels: { app: pay } }
  rules:
  - from: [ { source: { principals: [corp.example/ns/shop/sa/web] } } ]
    to: [ { operation: { methods: [POST], paths: [/charge], hosts: [pay.shop] } } ]
  - from: [ { source: { requestPrincipals: [\"https://issuer/alice\"] } } ]
    when: [ { key: \"request.auth.claims[group]\", values: [ops] }, { key: \"request.headers[x-team]\", values: [a] } ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: trial, namespace: shop, annotations: { istio.io/dry-run: \"true\" } }
spec:
  action: DENY
  rules: [ { to: [ { operation: { methods: [POST] } } ] } ]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: open, namespace: web }
spec: { mtls: { mode: PERMISSIVE } }
";

#[test]
fn a_request_is_decided_on_without_a_control_plane() {
    let control = Control::start();
    let file = control.data().join("p.yaml");
    let claims = control.data().join("claims.json");
    std::fs::write(&file, CALLERS).unwrap();
    std::fs::write(&claims, r#"{ "iss": "https://issuer", "sub": "alice", "aud": "x", "group": ["ops"] }"#)
        .unwrap();
    let (web, pay) = ("spiffe://corp.example/ns/shop/sa/web", "spiffe://corp.example/ns/shop/sa/pay");
    let check = |more: &[&str]| {
        let files = ["policy", "check", "-f", file.to_str().unwrap(), "--output", "json"];
        let output = control.cli(&[&files[..], more].concat());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(i32::from(answer["verdict"] == "deny")), "{answer}");
        answer
    };
    let from_web = ["--from", web, "--to", pay, "--label", "app=pay", "--host", "Pay.shop:80"];

    let allowed = check(&[&from_web[..], &["--request", "POST //x/../charge?now"]].concat());
    assert_eq!(allowed["verdict"], "allow");
    assert_eq!(allowed["because"], "allowed by shop/callers rule 0");
    assert_eq!((&allowed["policy"], &allowed["rule"]), (&"shop/callers".into(), &0.into()));
    assert_eq!((&allowed["path"], &allowed["host"]), (&"/charge".into(), &"pay.shop".into()));
    assert_eq!(allowed["dry_run"], "deny: denied by shop/trial rule 0");
    assert_eq!(allowed["mtls"], "STRICT");

    let denied = check(&[&from_web[..], &["--request", "GET /charge"]].concat());
    assert_eq!(denied["because"], "no ALLOW rule matches. Nearest: shop/callers rule 0 wants method POST");
    let twisted = check(&[&from_web[..], &["--request", "POST /x%2f..%2fcharge"]].concat());
    assert!(twisted["because"].as_str().unwrap().starts_with("the proxy answers 400: "), "{twisted}");

    let token = ["--to", pay, "--from", web, "--label", "app=pay", "--request", "GET /", "--jwt-claims"];
    let token = [&token[..], &[claims.to_str().unwrap()]].concat();
    assert_eq!(check(&[&token[..], &["--header", "x-team: a"]].concat())["rule"], 1);
    assert_eq!(
        check(&[&token[..], &["--header", "x-team:a", "--header", "x-team:b"]].concat())["verdict"],
        "deny"
    );

    // Without the label no policy applies, and the own trust domain is admitted.
    assert_eq!(check(&["--from", web, "--to", pay])["verdict"], "allow");
    // Nobody comes in without an identity, but where a port is permissive.
    let anonymous = check(&["--to", pay]);
    assert_eq!(anonymous["because"], "port 0 takes mutual TLS alone, and the caller proves no identity");
    let open = check(&["--to", "spiffe://corp.example/ns/web/sa/front"]);
    assert_eq!((&open["verdict"], &open["mtls"]), (&"allow".into(), &"PERMISSIVE".into()));
    assert_eq!(check(&["--to", pay, "--optional-client-certificate"])["verdict"], "allow");

    failed(&control.cli(&["policy", "check", "-f", file.to_str().unwrap(), "--from", web]), 2, "--to");
    failed(&control.cli(&["policy", "check", "-f", file.to_str().unwrap(), "--to", "x"]), 2, "spiffe://");
}

#[test]
fn what_is_probably_not_meant_is_said_with_its_line() {
    let control = Control::start();
    let file = control.data().join("p.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, CALLERS.replace("[/charge]", "[\"/charge*\"]")).unwrap();
    let warning =
        "p.yaml:7  warning: path `/charge*` fits /charge-other too; write `/charge` and `/charge/*`";
    let lint = control.cli(&["policy", "lint", "-f", path]);
    assert_eq!(lint.status.code(), Some(1));
    assert!(String::from_utf8(lint.stdout).unwrap().contains(warning));
    // It stops nobody.
    let apply = control.cli(&["policy", "apply", "-f", path]);
    assert_eq!(apply.status.code(), Some(0));
    assert!(String::from_utf8(apply.stderr).unwrap().contains(warning));
    let json = control.cli(&["policy", "lint", "-f", path, "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&found[0]["kind"], &found[0]["line"]), (&"no_boundary".into(), &7.into()));

    std::fs::write(&file, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: p }\nspec: { rules: [{}] }\n").unwrap();
    assert_eq!(control.cli(&["policy", "lint", "-f", path]).status.code(), Some(0));
}
