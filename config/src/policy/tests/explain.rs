//! The sentence that stands in the log and that `postern why` shows.

use super::{PARTNER, PAY, compiled, from};

fn explained(specs: &[&str], id: &str) -> String {
    let policy = compiled(specs);
    policy.explain(&from(id).verdict(&policy))
}

#[test]
fn every_verdict_names_what_it_rests_on() {
    assert_eq!(explained(&[], PAY), "no policy applies; any identity of the own trust domain may connect");
    assert_eq!(explained(&[], PARTNER), "the peer is of another trust domain and no policy names it");
    assert_eq!(explained(&["\n  rules:\n  - {}"], PAY), "allowed by shop/p0 rule 0");
    assert_eq!(explained(&["\n  action: DENY\n  rules:\n  - {}"], PAY), "denied by shop/p0 rule 0");
    assert_eq!(explained(&[" {}"], PAY), "no ALLOW rule matches");
}

#[test]
fn the_nearest_rule_is_the_one_with_the_fewest_unmet_fields() {
    let far = "\n  rules:\n  - from:\n    - source: { namespaces: [web], ipBlocks: [192.0.2.0/24] }";
    let near = "\n  rules:\n  - to:\n    - operation: { ports: [\"1\"] }\n    from:\n    - source: { namespaces: [web] }\n  - from:\n    - source: { principals: [corp.example/ns/shop/sa/checkout] }\n    to:\n    - operation: { ports: [\"8080\"] }";
    assert_eq!(
        explained(&[far, near], PAY),
        "no ALLOW rule matches. Nearest: shop/p1 rule 1 wants principal corp.example/ns/shop/sa/checkout"
    );
    // Of a rule's alternatives, the closest counts; of equals, the first.
    let alternatives = "\n  rules:\n  - from:\n    - source: { namespaces: [web], serviceAccounts: [x] }\n    - source: { notNamespaces: [shop] }";
    assert_eq!(
        explained(&[alternatives], PAY),
        "no ALLOW rule matches. Nearest: shop/p0 rule 0 wants not namespace shop"
    );
}

#[test]
fn every_kind_of_field_says_what_it_wants() {
    for (rule, wants) in [
        ("from:\n    - source: { principals: [a, b, c, d] }", "principal a or b or c, …"),
        ("from:\n    - source: { serviceAccounts: [x] }", "service account shop/x"),
        ("from:\n    - source: { ipBlocks: [192.0.2.7] }", "source address 192.0.2.7/32"),
        ("from:\n    - source: { notRemoteIpBlocks: [10.0.0.0/8] }", "not remote address 10.0.0.0/8"),
        ("to:\n    - operation: { ports: [\"80\", \"81\"] }", "port 80 or 81"),
        ("when:\n    - { key: source.trustDomain, values: [\"*.other\"] }", "source.trustDomain *.other"),
        ("when:\n    - { key: destination.port, notValues: [\"8080\"] }", "not destination.port 8080"),
        ("when:\n    - { key: connection.sni, values: [\"a*\"] }", "connection.sni a*"),
    ] {
        let sentence = explained(&[&format!("\n  rules:\n  - {rule}")], PAY);
        assert_eq!(sentence, format!("no ALLOW rule matches. Nearest: shop/p0 rule 0 wants {wants}"));
    }
}
