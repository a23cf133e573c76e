//! OIDC tokens of a CI system, with the claims of GitHub Actions.

use postern_config::wire::v1::enroll_request::Credential;
use serde_json::{Value, json};

use super::{enroll, identity, refused};
use crate::harness::{Connection, Control, Keys, failed};
use crate::platform::{Issuing, KEYS, now};

const ISSUER: &str = "https://token.actions.githubusercontent.com";

fn configured(issuing: &Issuing) -> Control {
    Control::configured(&format!(
        r#"
attest:
  oidc:
    - issuer: {ISSUER}
      audience: https://postern.corp.example
      jwks: {}
      rules:
        - match: {{ oidc.repository: corp/shop, oidc.ref: [refs/heads/main, refs/heads/next] }}
          id: spiffe://corp.example/ci/shop
        - match: {{ oidc.repository: corp/shop, oidc.ref: refs/heads/main, oidc.environment: production }}
          id: spiffe://corp.example/ci/shop-deploy
          max_ttl: 5m
        - match: {{ oidc.repository_owner: corp, oidc.repository: "*" }}
          id: spiffe://corp.example/ci/any/{{oidc.repository}}
"#,
        issuing.key_set()
    ))
}

/// A job's token, with changes.
fn token(issuing: &Issuing, jti: &str, change: impl FnOnce(&mut Value)) -> Credential {
    let mut claims = json!({
        "iss": ISSUER,
        "aud": "https://postern.corp.example",
        "sub": "repo:corp/shop:ref:refs/heads/main",
        "repository": "corp/shop",
        "repository_owner": "corp-other",
        "ref": "refs/heads/main",
        "actor": "mallory-marker",
        "iat": now(),
        "exp": now() + 300,
        "jti": jti,
    });
    change(&mut claims);
    Credential::OidcToken(issuing.signer.sign(&claims))
}

#[tokio::test]
async fn a_job_gets_the_identity_that_the_closest_rule_gives() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    let answer = enroll(&control, token(&issuing, "1", |_| {}), &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/ci/shop");
    let deploy = |c: &mut Value| c["environment"] = json!("production");
    let answer = enroll(&control, token(&issuing, "2", deploy), &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/ci/shop-deploy");
    assert_eq!(issuing.site.count(KEYS), 1);
}

#[tokio::test]
async fn whoever_else_has_a_token_of_this_issuer_gets_nothing() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    let fork = |c: &mut Value| c["repository"] = json!("mallory/shop");
    refused(&control, token(&issuing, "1", fork), "no_rule").await;
    let branch = |c: &mut Value| c["ref"] = json!("refs/heads/mainx");
    refused(&control, token(&issuing, "2", branch), "no_rule").await;
    let listed = |c: &mut Value| c["repository"] = json!(["corp/shop"]);
    refused(&control, token(&issuing, "3", listed), "no_rule").await;
    // A claim with a slash is more than one segment, and becomes none.
    let owner = |c: &mut Value| (c["repository_owner"], c["ref"]) = (json!("corp"), json!("x"));
    refused(&control, token(&issuing, "4", owner), "bad_identity").await;
    let other = |c: &mut Value| c["aud"] = json!("https://vault.corp.example");
    refused(&control, token(&issuing, "5", other), "wrong_audience").await;
    let none = |c: &mut Value| drop(c.as_object_mut().unwrap().remove("aud"));
    refused(&control, token(&issuing, "6", none), "wrong_audience").await;
    let forever = |c: &mut Value| drop(c.as_object_mut().unwrap().remove("exp"));
    refused(&control, token(&issuing, "7", forever), "malformed").await;
    let long = |c: &mut Value| c["exp"] = json!(now() + 7200);
    refused(&control, token(&issuing, "8", long), "token_life").await;
    let later = |c: &mut Value| c["nbf"] = json!(now() + 200);
    refused(&control, token(&issuing, "9", later), "not_yet_valid").await;
    assert_eq!(control.issued("enroll"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_uses_of_one_token_exactly_one_wins() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    // With a name and without one: then what was signed is the name.
    for change in [(|_| {}) as fn(&mut Value), |c| drop(c.as_object_mut().unwrap().remove("jti"))] {
        let token = token(&issuing, "once", change);
        let (issued, refusals) = (control.issued("enroll"), control.refusals("enroll").len());
        let mut attempts = tokio::task::JoinSet::new();
        let gate = std::sync::Arc::new(tokio::sync::Barrier::new(64));
        for _ in 0..64 {
            let (token, listen, pin, gate) = (token.clone(), control.listen, control.pin(), gate.clone());
            attempts.spawn(async move {
                let mut connection = Connection::open(listen, pin, None).await.unwrap();
                let keys = Keys::new();
                let request = connection.attested(token, &keys);
                gate.wait().await;
                connection.client.enroll(request).await
            });
        }
        let results = attempts.join_all().await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert_eq!(control.issued("enroll"), issued + 1);
        assert_eq!(control.refusals("enroll")[refusals..], vec!["bound_to_another_key"; 63]);
    }
}

#[tokio::test]
async fn a_token_is_good_for_one_key_however_it_is_written() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    let keys = Keys::new();
    let spent = token(&issuing, "1", |_| {});
    let first = enroll(&control, spent.clone(), &keys).await.unwrap();
    let again = enroll(&control, spent.clone(), &keys).await.unwrap();
    assert_eq!(first.svid.unwrap().chain, again.svid.unwrap().chain, "a lost answer");
    refused(&control, spent, "bound_to_another_key").await;
    // The same job, signed once more by the issuer.
    refused(&control, token(&issuing, "1", |c| c["iat"] = json!(now() - 1)), "bound_to_another_key").await;
}

#[tokio::test]
async fn neither_tokens_nor_refused_claims_stand_in_any_record() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    let fork = token(&issuing, "1", |c| c["repository"] = json!("mallory/shop"));
    refused(&control, fork.clone(), "no_rule").await;
    let good = token(&issuing, "2", |_| {});
    enroll(&control, good.clone(), &Keys::new()).await.unwrap();
    let said = format!("{}{}", control.json(&["audit", "--last", "1000"]), control.log());
    assert!(said.contains("no_rule"));
    for secret in [fork, good] {
        let Credential::OidcToken(token) = secret else { unreachable!() };
        assert!(!said.contains(token.rsplit('.').next().unwrap()), "a token's signature");
        assert!(!said.contains(token.split('.').nth(1).unwrap()), "a token's claims");
    }
    assert!(!said.contains("mallory"), "selectors of somebody who was refused");
}

#[test]
fn a_configuration_that_would_admit_everybody_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("control.yaml");
    for (rule, why) in [
        ("match: { oidc.iss: x }\n          id: spiffe://corp.example/a", "exact value of a claim"),
        (
            "match: { oidc.repository: \"*\" }\n          id: spiffe://corp.example/a",
            "exact value of a claim",
        ),
        ("match: { k8s.namespace: x }\n          id: spiffe://corp.example/a", "no claim"),
        ("match: { oidc.sub: x }\n          id: spiffe://other.example/a", "outside of corp.example"),
        (
            "match: { oidc.sub: x }\n          id: spiffe://corp.example/postern/control",
            "the control plane's own",
        ),
        ("match: { oidc.sub: x }\n          id: spiffe://corp.example/{oidc.a}{oidc.b}", "at most one"),
    ] {
        let yaml = format!(
            "trust_domain: corp.example\nattest:\n  oidc:\n    - issuer: x\n      audience: y\n      jwks: {{ file: keys.json }}\n      rules:\n        - {rule}\n"
        );
        std::fs::write(&file, yaml).unwrap();
        let output =
            crate::harness::serve(dir.path(), &["--config", file.to_str().unwrap()]).output().unwrap();
        failed(&output, output.status.code().unwrap(), why);
        assert_ne!(output.status.code(), Some(0));
    }
}

#[tokio::test]
async fn after_a_restore_a_token_from_before_it_is_refused_and_a_newer_one_is_taken() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    let file = control.dir().path().join("oidc.backup");
    let path = file.to_str().unwrap();
    control.json(&["backup", path, "--with-keys"]);
    // Spent after the backup: the restored store knows nothing of it.
    let issued = now();
    enroll(&control, token(&issuing, "1", |_| {}), &Keys::new()).await.unwrap();

    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let restored = crate::harness::command(dir.path()).args(["restore", path]).output().unwrap();
    let said = String::from_utf8(restored.stdout).unwrap();
    assert!(
        restored.status.success() && said.contains("REVOKED") && said.contains("postern revoke"),
        "{said}"
    );
    let config = control.dir().path().join("control.yaml");
    let before = control;
    let control = Control::start_in(dir, &["--config", config.to_str().unwrap()]);
    let old = |c: &mut Value| (c["iat"], c["exp"]) = (json!(issued), json!(issued + 300));
    refused(&control, token(&issuing, "1", old), "before_restore").await;
    // Tokens have whole seconds: the next one begins after the restore for sure.
    let restored = now();
    while now() == restored {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    enroll(&control, token(&issuing, "2", |_| {}), &Keys::new()).await.unwrap();
    drop(before);
}

fn declare(control: &Control, documents: &[(&str, &str, &str)]) {
    let document = |(name, id, more): &(&str, &str, &str)| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: {{ name: {name} }}\nspec:\n  \
             spiffeId: spiffe://corp.example/{id}\n  owner: ci\n  {more}\n"
        )
    };
    let text: Vec<String> = documents.iter().map(document).collect();
    let file = control.data().join("identities.yaml");
    std::fs::write(&file, text.join("---\n")).unwrap();
    control.json(&["apply", "-f", file.to_str().unwrap()]);
}

#[tokio::test]
async fn a_declared_identity_says_by_itself_who_gets_it() {
    let issuing = Issuing::start().await;
    let control = configured(&issuing);
    let selectors =
        |more: &str| format!("selectors: {{ oidc.iss: \"{ISSUER}\", oidc.ref: refs/heads/x, {more} }}");
    let (job, actors) = (selectors("oidc.actor: ann"), selectors("oidc.event: push"));
    let (one, other) =
        (selectors("oidc.event: pull, oidc.run: r1"), selectors("oidc.event: pull, oidc.job: j1"));
    declare(
        &control,
        &[
            ("ann", "ci/ann", &job),
            ("actors", "ci/by/{oidc.actor}", &actors),
            ("one", "ci/one", &one),
            ("other", "ci/other", &other),
        ],
    );
    let with = |jti: &str, claims: Value| {
        token(&issuing, jti, |c| {
            c["ref"] = json!("refs/heads/x");
            claims.as_object().unwrap().iter().for_each(|(k, v)| c[k] = v.clone());
        })
    };
    let answer = enroll(&control, with("1", json!({ "actor": "ann" })), &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/ci/ann");
    let pushed = with("2", json!({ "actor": "bob", "event": "push" }));
    let answer = enroll(&control, pushed, &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/ci/by/bob");
    assert_eq!(control.json(&["identities"])[1]["owner"], "ci", "a template's document is its identities'");
    refused(&control, with("3", json!({ "actor": "../ann", "event": "push" })), "bad_identity").await;
    refused(&control, with("4", json!({ "actor": "bob", "event": "other" })), "no_rule").await;
    let both = json!({ "actor": "bob", "event": "pull", "run": "r1", "job": "j1" });
    refused(&control, with("5", both), "ambiguous").await;
}

#[tokio::test]
async fn an_attestor_of_staging_yields_nothing_of_prod() {
    let issuing = Issuing::start().await;
    let control = Control::configured(&format!(
        r#"
attest:
  oidc:
    - issuer: {ISSUER}
      audience: https://postern.corp.example
      environment: staging
      jwks: {}
      rules:
        - match: {{ oidc.repository: corp/shop }}
          id: spiffe://corp.example/by-rule
"#,
        issuing.key_set()
    ));
    let selectors = format!(
        "selectors: {{ oidc.iss: \"{ISSUER}\", oidc.repository: corp/shop, oidc.ref: refs/heads/main }}"
    );
    let (prod, staging) =
        (format!("{selectors}\n  environment: prod"), format!("{selectors}\n  environment: staging"));
    // A document of prod, whose selectors fit better than anything else here, is not even looked at.
    declare(&control, &[("pay", "pay", &prod), ("rule", "by-rule", "environment: prod")]);
    let status = enroll(&control, token(&issuing, "1", |_| {}), &Keys::new()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert_eq!(control.refusals("enroll"), ["environment"]);
    declare(&control, &[("rule", "by-rule", "environment: staging")]);
    let answer = enroll(&control, token(&issuing, "2", |_| {}), &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/by-rule");
    declare(&control, &[("pay", "pay", &staging)]);
    let answer = enroll(&control, token(&issuing, "3", |_| {}), &Keys::new()).await.unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/pay");
}
