//! Which policy wins: DENY, then ALLOW, then the default; what counts as a policy at all.

use std::collections::BTreeMap;

use super::{PARTNER, PAY, Policy, admits, compiled, document, from, read};
use crate::policy::{Because, RuleRef};

const DENY_ALL: &str = " {}";
const ALLOW_ALL: &str = "\n  rules:\n  - {}";

#[test]
fn no_policy_admits_the_own_trust_domain_alone() {
    let none = compiled(&[]);
    let own = from(PAY).verdict(&none);
    assert!(own.allow);
    assert_eq!(own.because, Because::NoPolicy);
    let foreign = from(PARTNER).verdict(&none);
    assert!(!foreign.allow);
    assert_eq!(foreign.because, Because::ForeignTrustDomain);
    // A trust domain that only begins like ours is another one.
    assert!(!from("spiffe://corp.example.evil/ns/shop/sa/pay").verdict(&none).allow);
}

#[test]
fn an_empty_spec_denies_and_an_empty_rule_admits() {
    assert!(!admits(DENY_ALL, &from(PAY)));
    assert!(!admits("\n  action: ALLOW", &from(PAY)));
    assert!(!admits("\n  rules: []", &from(PAY)));
    assert!(admits(ALLOW_ALL, &from(PAY)));
    // Everybody is everybody with a proven identity.
    assert!(admits(ALLOW_ALL, &from(PARTNER)));
}

#[test]
fn deny_without_rules_denies_nobody_and_with_an_empty_one_everybody() {
    assert!(admits("\n  action: DENY", &from(PAY)));
    assert!(!admits("\n  action: DENY\n  rules:\n  - {}", &from(PAY)));
    // A DENY policy does not open the door for foreign identities either.
    assert!(!admits("\n  action: DENY", &from(PARTNER)));
}

#[test]
fn deny_beats_allow_and_any_allow_suffices() {
    let deny_port = "\n  action: DENY\n  rules:\n  - to:\n    - operation: { ports: [\"9000\"] }";
    let allow_shop = "\n  rules:\n  - from:\n    - source: { namespaces: [shop] }";
    let allow_web = "\n  rules:\n  - from:\n    - source: { namespaces: [web] }";
    let policy = compiled(&[allow_shop, deny_port, allow_web]);
    let mut caller = from(PAY);
    assert_eq!(caller.verdict(&policy).because, Because::AllowedBy(RuleRef { policy: 0, rule: 0 }));
    caller.port = 9000;
    assert_eq!(caller.verdict(&policy).because, Because::DeniedBy(RuleRef { policy: 1, rule: 0 }));
    assert!(from("spiffe://corp.example/ns/web/sa/front").verdict(&policy).allow);
    assert!(!from("spiffe://corp.example/ns/other/sa/x").verdict(&policy).allow);
}

#[test]
fn audit_marks_and_decides_nothing() {
    let policy = compiled(&["\n  action: AUDIT\n  rules:\n  - {}"]);
    let verdict = from(PAY).verdict(&policy);
    assert!(verdict.allow, "an AUDIT policy does not restrict");
    assert_eq!(verdict.audit, Some(RuleRef { policy: 0, rule: 0 }));
    assert!(!from(PARTNER).verdict(&policy).allow);
    let both = compiled(&["\n  action: AUDIT\n  rules:\n  - {}", DENY_ALL]);
    let verdict = from(PAY).verdict(&both);
    assert!(!verdict.allow);
    assert!(verdict.audit.is_some());
}

#[test]
fn a_dry_run_counts_as_absent() {
    let with = |value: &str| {
        let text = document("trial", DENY_ALL).replace(
            "  namespace",
            &format!("  annotations:\n    istio.io/dry-run: \"{value}\"\n  namespace"),
        );
        let policy = Policy::compile(&read(&[text]), "corp.example".parse().unwrap());
        from(PAY).verdict(&policy)
    };
    let trial = with("true");
    assert_eq!((trial.allow, trial.because), (true, Because::NoPolicy));
    // But it is told what it would have done.
    let trial = trial.dry_run.unwrap();
    assert_eq!((trial.allow, trial.because), (false, Because::NoRuleAllows { nearest: None }));
    let enforced = with("false");
    assert_eq!((enforced.allow, enforced.dry_run), (false, None));
}

/// ALLOW rules with HTTP fields vanish without HTTP; DENY rules lose those fields and so deny more.
#[test]
fn http_fields_narrow_allow_and_widen_deny() {
    let fields = [
        "to:\n    - operation: { methods: [GET] }",
        "to:\n    - operation: { notMethods: [GET] }",
        "to:\n    - operation: { paths: [\"/a*\"] }",
        "to:\n    - operation: { notPaths: [/a] }",
        "to:\n    - operation: { hosts: [a.example] }",
        "to:\n    - operation: { notHosts: [a.example] }",
        "from:\n    - source: { requestPrincipals: [\"*\"] }",
        "from:\n    - source: { notRequestPrincipals: [\"*\"] }",
        "when:\n    - { key: \"request.headers[x]\", values: [a] }",
        "when:\n    - { key: \"request.auth.claims[a][b]\", notValues: [a] }",
        "when:\n    - { key: request.auth.principal, values: [a/b] }",
        // The port fits, and stands beside an HTTP field.
        "to:\n    - operation: { methods: [GET], ports: [\"8080\"] }",
        // One of two alternatives is enough to spoil the rule.
        "to:\n    - operation: { ports: [\"8080\"] }\n    - operation: { methods: [GET] }",
    ];
    for field in fields {
        let rule = format!("\n  rules:\n  - {field}");
        assert!(!admits(&rule, &from(PAY)), "ALLOW {field}");
        assert!(!admits(&format!("\n  action: DENY{rule}"), &from(PAY)), "DENY {field}");
    }
    // What is left of the DENY rule still counts.
    let other_port =
        "\n  action: DENY\n  rules:\n  - to:\n    - operation: { methods: [GET], ports: [\"9\"] }";
    assert!(admits(other_port, &from(PAY)));
    // Another ALLOW rule of the same policy stays.
    let second = "\n  rules:\n  - to:\n    - operation: { methods: [GET] }\n  - from:\n    - source: { namespaces: [shop] }";
    assert!(admits(second, &from(PAY)));
}

#[test]
fn a_rule_is_all_of_from_to_and_when() {
    let rule = "\n  rules:\n  - from:\n    - source: { namespaces: [web] }\n    - source: { principals: [\"*/sa/pay\"] }\n    to:\n    - operation: { ports: [\"8080\"] }\n    - operation: { ports: [\"8081\"] }\n    when:\n    - { key: source.ip, values: [10.0.0.0/24] }\n    - { key: connection.sni, values: [pay.example] }";
    let mut caller = from(PAY);
    caller.sni = Some("pay.example");
    assert!(admits(rule, &caller));
    caller.port = 8081;
    assert!(admits(rule, &caller));
    caller.port = 8082;
    assert!(!admits(rule, &caller));
    caller.port = 8080;
    caller.ip = "10.0.1.1";
    assert!(!admits(rule, &caller));
    caller.ip = "10.0.0.9";
    caller.sni = None;
    assert!(!admits(rule, &caller));
}

#[test]
fn scope_is_namespace_root_namespace_and_labels() {
    let applies = |namespace: &str, selector: &str, workload: &str, labels: &[(&str, &str)]| {
        let text = document("p", &format!("\n  action: ALLOW{selector}"))
            .replace("namespace: shop", &format!("namespace: {namespace}"));
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        read(&[text])[0].applies_to(&workload.parse().unwrap(), &labels, "istio-system")
    };
    let app = "\n  selector:\n    matchLabels: { app: pay, tier: back }";
    assert!(applies("shop", "", PAY, &[]));
    assert!(!applies("web", "", PAY, &[]));
    assert!(applies("istio-system", "", PAY, &[]));
    assert!(applies("istio-system", "", "spiffe://corp.example/vm/7", &[]));
    assert!(!applies("shop", "", "spiffe://corp.example/shop/pay", &[]), "no /ns/ segment, no namespace");
    assert!(applies("shop", app, PAY, &[("app", "pay"), ("tier", "back"), ("x", "y")]));
    assert!(!applies("shop", app, PAY, &[("app", "pay")]));
    assert!(!applies("shop", app, PAY, &[("app", "pay"), ("tier", "front")]));
    assert!(!applies("istio-system", app, PAY, &[]));
    assert!(applies("shop", "\n  selector: {}", PAY, &[]));
}
