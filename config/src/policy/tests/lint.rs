//! What is probably not meant is said, with its line; what is meant is left alone.

use super::document;
use crate::policy::lint::{Placed, Setting, Warning, lint};

fn found(texts: &[&str]) -> Vec<Warning> {
    let documents: Vec<Placed> =
        texts.iter().enumerate().flat_map(|(file, text)| Placed::read(text, file).unwrap()).collect();
    lint(&documents, &Setting { root_namespace: "istio-system", tcp_ports: &[9999] })
}

/// `kind: message` of every warning about a policy with this action and these rules.
fn words(action: &str, rules: &str) -> Vec<String> {
    let text = document("p", &format!("\n  action: {action}\n  rules:\n{rules}"));
    found(&[&text]).into_iter().map(|w| format!("{}: {}", w.kind, w.message)).collect()
}

#[test]
fn http_fields_on_ports_without_http() {
    let rule = |ports: &str| format!("  - to:\n    - operation: {{ methods: [GET], paths: [/a]{ports} }}");
    assert_eq!(
        words("ALLOW", &rule(", ports: [\"5432\"]")),
        [
            "http_on_tcp: port 5432 speaks no HTTP: there this ALLOW rule never matches, because it asks for methods, paths"
        ]
    );
    assert_eq!(
        words("DENY", &rule(", ports: [9999, 8080]")),
        [
            "http_on_tcp: port 9999 speaks no HTTP: there this DENY rule is read without methods, paths, and denies every connection that its other fields fit"
        ]
    );
    assert_eq!(
        words("DENY", &rule("")),
        [
            "widened_on_tcp: on ports that speak no HTTP this DENY rule is read without methods, paths, and denies every connection; `ports` confines it"
        ]
    );
    assert_eq!(
        words(
            "DENY",
            "  - when:\n    - { key: \"request.headers[x]\", values: [a] }\n    from:\n    - source: { namespaces: [web] }"
        ),
        [
            "widened_on_tcp: on ports that speak no HTTP this DENY rule is read without request.headers[x], and denies every connection that its other fields fit; `ports` confines it"
        ]
    );
    for quiet in [rule(""), rule(", ports: [\"8080\"]")] {
        assert_eq!(words("ALLOW", &quiet), Vec::<String>::new());
    }
    assert_eq!(words("DENY", &rule(", ports: [\"8080\"]")), Vec::<String>::new());
    assert_eq!(words("DENY", "  - from:\n    - source: { namespaces: [web] }"), Vec::<String>::new());
}

#[test]
fn prefixes_without_a_boundary() {
    let source = |field: &str| format!("  - from:\n    - source: {{ {field} }}");
    let operation = |field: &str| format!("  - to:\n    - operation: {{ {field} }}");
    for rules in [
        source("principals: [\"corp.example/ns/prod*\"]"),
        source("notPrincipals: [\"*pay\"]"),
        operation("paths: [\"/admin*\"]"),
        operation("hosts: [\"*corp.example\"]"),
    ] {
        let words = words("ALLOW", &rules);
        assert!(words.len() == 1 && words[0].starts_with("no_boundary: "), "{rules}: {words:?}");
    }
    for rules in [
        source("principals: [\"corp.example/ns/prod/*\", \"*/sa/pay\", \"*\", a]"),
        operation("paths: [\"/admin/*\", \"/*\", \"*.html\", \"/a/{*}\"]"),
        operation("hosts: [\"*.corp.example\", corp.example]"),
    ] {
        assert_eq!(words("ALLOW", &rules), Vec::<String>::new(), "{rules}");
    }
}

#[test]
fn patterns_that_nothing_fits() {
    let operation = |field: &str| words("ALLOW", &format!("  - to:\n    - operation: {{ {field} }}"));
    for path in ["admin", "/a?x=1", "/a//b", "/a/../b", "/%61", "/a//*", "x*"] {
        let words = operation(&format!("paths: [\"{path}\"]"));
        assert!(words.len() == 1 && words[0].starts_with("never_matches: "), "{path}: {words:?}");
    }
    assert_eq!(
        operation("methods: [get]"),
        ["never_matches: method `get` never matches: methods are in capitals"]
    );
    assert!(operation("hosts: [\"a.example:8080\"]")[0].starts_with("port_in_host: "));
    let issuer = words("ALLOW", "  - from:\n    - source: { requestPrincipals: [\"https://issuer*\"] }");
    assert!(issuer[0].starts_with("never_matches: "), "{issuer:?}");
    assert_eq!(
        operation("paths: [/a, \"/%2f\", \"*\"], hosts: [\"a.example:*\"]").len(),
        1,
        "an escaped slash is refused"
    );
}

#[test]
fn policies_without_rules_and_selectors_in_the_root_namespace() {
    let kinds = |text: &str| found(&[text]).into_iter().map(|w| (w.kind, w.line)).collect::<Vec<_>>();
    assert_eq!(kinds(&document("p", " {}")), [("denies_all", 2)]);
    assert_eq!(kinds(&document("p", "\n  action: DENY")), [("denies_nothing", 2)]);
    let selector = "\n  selector: { matchLabels: { app: a } }\n  rules:\n  - {}";
    assert_eq!(kinds(&document("p", selector)), []);
    assert_eq!(kinds(&document("p", selector).replace("shop", "istio-system")), [("root_selector", 2)]);
    let peer = |name: &str, spec: &str| {
        format!(
            "---\nkind: PeerAuthentication\napiVersion: security.istio.io/v1\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"
        )
    };
    let (strict, open) =
        (peer("a", "{ mtls: { mode: STRICT } }"), peer("b", "{ mtls: { mode: PERMISSIVE } }"));
    assert_eq!(kinds(&format!("{strict}{open}")), [("conflict", 7)]);
    let void = peer("a", "{ selector: { matchLabels: { a: b } } }").replace("shop", "istio-system");
    assert_eq!(kinds(&void), [("root_selector", 2)]);
}

#[test]
fn rules_that_nothing_reaches_are_named_with_both_lines() {
    let wide = document(
        "wide",
        "\n  rules:\n  - from:\n    - source: { namespaces: [\"*\"] }\n  - from:\n    - source: { namespaces: [shop] }\n    to:\n    - operation: { methods: [GET] }",
    );
    let warnings = found(&[&wide]);
    assert_eq!(warnings.len(), 1);
    assert_eq!((warnings[0].line, warnings[0].kind), (10, "unreachable"));
    assert_eq!(
        warnings[0].message,
        "rule 1 of shop/wide is never reached: rule 0 of shop/wide (ALLOW, line 8) matches wherever it does"
    );
    // A DENY rule goes before every ALLOW rule, wherever it stands; a policy of another file counts.
    let deny = document(
        "deny",
        "\n  action: DENY\n  rules:\n  - from:\n    - source: { notIpBlocks: [10.0.0.0/8] }",
    );
    let allow = document(
        "allow",
        "\n  rules:\n  - from:\n    - source: { notIpBlocks: [10.0.0.0/8, 11.0.0.0/8], principals: [\"*\"] }",
    );
    let warnings = found(&[&allow, &deny]);
    assert_eq!((warnings.len(), warnings[0].file, warnings[0].line), (1, 0, 8));
    // Another namespace is another workload; a narrower selector is reached by a wider policy alone.
    assert_eq!(found(&[&allow, &deny.replace("shop", "web")]), []);
    assert_eq!(found(&[&allow, &deny.replace("spec:", "spec:\n  selector: { matchLabels: { a: b } }")]), []);
    assert_eq!(found(&[&allow, &deny.replace("shop", "istio-system")]).len(), 1);
    // Without HTTP the first rule vanishes and the second stands by itself.
    let stays = "  - to:\n    - operation: { ports: [\"80\"] }\n    - operation: { methods: [GET] }\n  - to:\n    - operation: { ports: [\"80\"] }";
    assert_eq!(words("ALLOW", stays), Vec::<String>::new());
}

#[test]
fn so_many_rules_are_not_compared_and_that_is_said() {
    let rules = "  - {}\n".repeat(2001);
    let words = words("ALLOW", &rules);
    assert!(words.len() == 1 && words[0].starts_with("too_many_rules: 2001 rules"), "{words:?}");
}
