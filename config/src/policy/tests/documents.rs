//! Reading documents: Istio's load unmodified, and a mistake refuses all of them with its place.

use super::{AuthorizationPolicy, document, policies, read};
use crate::policy::PolicyError;

fn mistake(text: &str) -> String {
    policies(text).expect_err(text).to_string()
}

#[test]
fn a_mistake_is_named_with_its_place() {
    let rule = |rule: &str| document("p", &format!("\n  rules:\n  - {rule}"));
    for (text, expected) in [
        (
            rule("from:\n    - source:\n        ipBlocks: [\"10.0.0.0/8\", \"10.0.0.0/33\"]"),
            "10:34  error: \"10.0.0.0/33\" is not a CIDR block (prefix length goes to 32)",
        ),
        (
            rule("from:\n    - source:\n        ipBlocks: [\"::/129\"]"),
            "10:20  error: \"::/129\" is not a CIDR block (prefix length goes to 128)",
        ),
        (rule("from:\n    - source: { ipBlocks: [x] }"), "9:28  error: \"x\" is not a CIDR block"),
        (
            rule("to:\n    - operation:\n        ports: [\"0\"]"),
            "10:17  error: \"0\" is not a port (1 to 65535)",
        ),
        (
            rule("to:\n    - operation:\n        ports: [70000]"),
            "10:17  error: \"70000\" is not a port (1 to 65535)",
        ),
        (
            rule("to:\n    - operation:\n        ports: [\"+80\"]"),
            "10:17  error: \"+80\" is not a port (1 to 65535)",
        ),
        (
            rule("from:\n    - source:\n        principals: [\"spiffe://corp.example/a\"]"),
            "10:22  error: principal \"spiffe://corp.example/a\" must be written without `spiffe://`",
        ),
        (
            rule("from:\n    - source:\n        principals: [\"\"]"),
            "10:22  error: an empty pattern matches nothing; leave the field out to match everything",
        ),
        (
            rule("from:\n    - source:\n        namespaces: [a/b]"),
            "10:22  error: namespace \"a/b\" must not hold a `/`",
        ),
        (
            rule("from:\n    - source:\n        serviceAccounts: [\"*/pay\"]"),
            "10:27  error: \"*/pay\" is not a service account; write `account` or `namespace/account`",
        ),
        (
            rule("from:\n    - source:\n        principal: [a]"),
            "10:9  error: unknown field `principal`; did you mean `principals`?",
        ),
        (rule("from:\n    - source: {}"), "9:15  error: it is empty; leave it out to match everything"),
        (rule("to:\n    - operation: {}"), "9:18  error: it is empty; leave it out to match everything"),
        (
            rule("when:\n    - key: source.ipp\n      values: [a]"),
            "9:12  error: unknown condition key \"source.ipp\"",
        ),
        (
            rule("when:\n    - key: source.ip\n      values: [10.0.0.1, nowhere]"),
            "9:7  error: \"nowhere\" is not a CIDR block",
        ),
        (rule("when:\n    - key: source.ip"), "9:7  error: a `when` entry needs `values` or `notValues`"),
        (document("p", "\n  action: ALOW"), "7:11  error: unknown action \"ALOW\"; use ALLOW, DENY or AUDIT"),
        (
            document("p", "\n  action: CUSTOM"),
            "7:11  error: action CUSTOM is not supported: there is no provider to delegate to",
        ),
        (document("p", "\n  rule: []"), "7:3  error: unknown field `rule`; did you mean `rules`?"),
        (
            document("p", "\n  targetRefs: []"),
            "7:3  error: unknown field `targetRefs`; known here: `selector`, `action`, `rules`",
        ),
        (
            rule("to:\n    - operation:\n        paths: [\"/a/{**}/{*}\"]"),
            "10:17  error: path template \"/a/{**}/{*}\": `{**}` must be the last operator",
        ),
        (
            rule("to:\n    - operation:\n        paths: [\"/a/{*}.txt\"]"),
            "10:17  error: path template \"/a/{*}.txt\": a segment is `{*}`, `{**}` or plain text without `*`, `{` and `}`",
        ),
        (
            rule("to:\n    - operation:\n        paths: [\"/a/{id}\"]"),
            "10:17  error: path \"/a/{id}\": braces stand only in the templates {*} and {**}",
        ),
        (
            rule("from:\n    - source:\n        requestPrincipals: [someone]"),
            "10:29  error: \"someone\" is not a request principal; write `<issuer>/<subject>`, divided at the last `/`",
        ),
        (
            rule("when:\n    - key: request.headers[:path]\n      values: [a]"),
            "9:12  error: \"request.headers[:path]\" is no header; use `hosts`, `methods` or `paths` of an operation",
        ),
        (
            document("p", "\n  action: DENY\n  action: ALLOW"),
            "8:3  error: duplicate mapping key `action` is not allowed here",
        ),
        (
            document("p", " {}").replace("AuthorizationPolicy", "RequestAuthentication"),
            "2:7  error: unknown value `RequestAuthentication`; known here: `AuthorizationPolicy`, `PeerAuthentication`",
        ),
        (document("p", " {}").replace("  name: p\n", ""), "4:3  error: missing field `name`"),
    ] {
        assert_eq!(mistake(&text), expected, "{text}");
    }
}

/// Conditions that could never be evaluated must not load: a DENY rule would silently miss them.
#[test]
fn malformed_http_keys_are_unknown_keys() {
    for key in [
        "request.headers[]",
        "request.headers[x",
        "request.headers",
        "request.auth.claim[a]",
        "request.auth.x",
    ] {
        let text = document("p", &format!("\n  rules:\n  - when:\n    - {{ key: \"{key}\", values: [a] }}"));
        assert!(mistake(&text).ends_with(&format!("unknown condition key {key:?}")), "{key}");
    }
}

#[test]
fn the_first_mistake_refuses_every_document_and_counts_lines_over_all_of_them() {
    let good = document("good", " {}");
    let bad = document("bad", "\n  action: NO");
    assert_eq!(
        mistake(&format!("{good}---\n{bad}")),
        "14:11  error: unknown action \"NO\"; use ALLOW, DENY or AUDIT"
    );
    let twice = policies(&format!("{good}---\n{good}")).unwrap_err();
    assert!(matches!(twice, PolicyError::Twice("AuthorizationPolicy", name) if name == "shop/good"));
    let elsewhere = good.replace("namespace: shop", "namespace: web");
    assert_eq!(policies(&format!("{good}---\n{elsewhere}")).unwrap().len(), 2);
    assert!(policies("").unwrap().is_empty());
}

#[test]
fn what_an_api_server_adds_is_read_and_dropped() {
    let text = document("p", " {}").replace(
        "metadata:\n",
        "metadata:\n  uid: 1-2\n  generation: 3\n  resourceVersion: \"7\"\n  creationTimestamp: \"2026-01-01T00:00:00Z\"\n  managedFields: [{ manager: kubectl }]\n  labels: { a: b }\n",
    ) + "status:\n  conditions: []\n";
    let json = read(&[text])[0].to_json();
    for dropped in ["uid", "generation", "resourceVersion", "creationTimestamp", "managedFields", "status"] {
        assert!(!json.contains(dropped), "{dropped} in {json}");
    }
    assert!(json.contains(r#""labels":{"a":"b"}"#));
}

#[test]
fn json_reads_back_what_it_wrote() {
    let spec = "\n  selector:\n    matchLabels: { app: pay }\n  action: DENY\n  rules:\n  - from:\n    - source: { principals: [\"a*\", \"*b\", \"*\", c], notNamespaces: [\"x*y\"], serviceAccounts: [s, n/s], ipBlocks: [10.0.0.1, \"::ffff:10.0.0.0/104\"] }\n    to:\n    - operation: { ports: [80], paths: [\"/a/{*}\"] }\n    when:\n    - { key: \"request.headers[x]\", values: [\"1\"], notValues: [\"2\"] }\n  - {}";
    let policy = read(&[document("p", spec)]).remove(0);
    let again = AuthorizationPolicy::from_json(&policy.to_json()).unwrap();
    assert_eq!(again, policy);
    assert_eq!(again.to_json(), policy.to_json());
    assert!(AuthorizationPolicy::from_json(&policy.to_json().replace("\"rules\"", "\"rulez\"")).is_err());
    assert!(AuthorizationPolicy::from_json(&policy.to_json().replace("10.0.0.1/32", "10.0.0.1/99")).is_err());
}
