//! What each field of a source, an operation and a condition matches.

use super::{PARTNER, PAY, admits, from, source_admits};

#[test]
fn principals() {
    let good = [
        "corp.example/ns/shop/sa/pay",
        "corp.example/ns/shop/*",
        "corp.example/*",
        "*/ns/shop/sa/pay",
        "*/sa/pay",
        "*",
    ];
    for pattern in good {
        assert!(source_admits(&format!("{{ principals: [\"{pattern}\"] }}"), &from(PAY)), "{pattern}");
    }
    let bad = [
        "corp.example/ns/shop/sa/pa",
        "corp.example/ns/shop/sa/pay2",
        "corp.example/ns/shop/sa/PAY",
        "corp.example/ns/shop",
        "ns/shop/sa/pay",
        "*/sa/pa",
        // A star in the middle, or a second one, is a star.
        "corp.example/*/sa/pay",
        "*/shop/*",
    ];
    for pattern in bad {
        assert!(!source_admits(&format!("{{ principals: [\"{pattern}\"] }}"), &from(PAY)), "{pattern}");
    }
    assert!(source_admits("{ principals: [a, \"*\"] }", &from(PARTNER)));
}

#[test]
fn namespaces_compare_with_the_whole_segment() {
    for pattern in ["shop", "sh*", "*op", "s*p", "*", "*h*", "s*h*o*p", "**"] {
        assert!(source_admits(&format!("{{ namespaces: [\"{pattern}\"] }}"), &from(PAY)), "{pattern}");
    }
    for pattern in ["sho", "hop", "shop2", "s*x*p", "shop*shop", "*shopp", "Shop", "corp.example", "pay"] {
        assert!(!source_admits(&format!("{{ namespaces: [\"{pattern}\"] }}"), &from(PAY)), "{pattern}");
    }
    // A pattern's parts may not overlap in the text.
    assert!(!source_admits("{ namespaces: [\"sho*op\"] }", &from(PAY)));
    // Istio's unanchored expression would find the namespace anywhere in the path.
    for path in ["a/ns/shop/sa/pay", "ns/shop", "ns/shop/sa/pay/x", "sa/pay/ns/shop", "shop"] {
        let id = format!("spiffe://corp.example/{path}");
        assert!(!source_admits("{ namespaces: [\"shop\"] }", &from(&id)), "{path}");
        assert!(!source_admits("{ namespaces: [\"*\"] }", &from(&id)), "{path}");
    }
}

#[test]
fn service_accounts_default_to_the_policys_namespace() {
    assert!(source_admits("{ serviceAccounts: [pay] }", &from(PAY)));
    assert!(source_admits("{ serviceAccounts: [shop/pay] }", &from(PAY)));
    assert!(!source_admits("{ serviceAccounts: [web/pay] }", &from(PAY)));
    assert!(!source_admits("{ serviceAccounts: [pay] }", &from("spiffe://corp.example/ns/web/sa/pay")));
    assert!(source_admits("{ serviceAccounts: [web/pay] }", &from("spiffe://corp.example/ns/web/sa/pay")));
}

#[test]
fn negations_hold_where_no_value_matches() {
    let web = "spiffe://corp.example/ns/web/sa/front";
    for (source, pay, front) in [
        ("{ notPrincipals: [\"*/sa/pay\"] }", false, true),
        ("{ notPrincipals: [\"*\"] }", false, false),
        ("{ notNamespaces: [shop, other] }", false, true),
        ("{ notServiceAccounts: [pay] }", false, true),
        ("{ notIpBlocks: [10.0.0.0/8] }", false, false),
        ("{ notIpBlocks: [11.0.0.0/8] }", true, true),
        ("{ notRemoteIpBlocks: [10.0.0.1] }", false, false),
        ("{ namespaces: [shop, web], notPrincipals: [\"*/sa/pay\"] }", false, true),
    ] {
        assert_eq!(source_admits(source, &from(PAY)), pay, "{source}");
        assert_eq!(source_admits(source, &from(web)), front, "{source}");
    }
    // An identity without a namespace is in none of them.
    assert!(source_admits("{ notNamespaces: [\"*\"] }", &from("spiffe://corp.example/vm/7")));
}

#[test]
fn address_blocks() {
    let at = |ip: &'static str, block: &str| {
        let mut caller = from(PAY);
        caller.ip = ip;
        source_admits(&format!("{{ ipBlocks: [\"{block}\"] }}"), &caller)
    };
    assert!(at("10.1.2.3", "10.0.0.0/8"));
    assert!(at("10.1.2.3", "10.1.2.3"));
    assert!(at("10.1.2.3", "10.1.2.99/24"), "host bits are cut off");
    assert!(!at("11.1.2.3", "10.0.0.0/8"));
    assert!(!at("10.1.2.4", "10.1.2.3"));
    assert!(at("2001:db8::1", "2001:db8::/32"));
    assert!(!at("2001:db9::1", "2001:db8::/32"));
    // An IPv4 peer of a dual-stack listener, and a block that is written that way.
    assert!(at("::ffff:10.1.2.3", "10.0.0.0/8"));
    assert!(at("10.1.2.3", "::ffff:10.0.0.0/104"));
    assert!(at("::ffff:10.1.2.3", "::ffff:10.1.2.3"));
    assert!(!at("11.1.2.3", "::ffff:10.0.0.0/104"));
    // The two families are apart.
    assert!(!at("10.1.2.3", "::/0"));
    assert!(!at("2001:db8::1", "0.0.0.0/0"));
}

#[test]
fn ports() {
    let port =
        |operation: &str| admits(&format!("\n  rules:\n  - to:\n    - operation: {operation}"), &from(PAY));
    assert!(port("{ ports: [\"8080\"] }"));
    assert!(port("{ ports: [80, 8080] }"));
    assert!(!port("{ ports: [\"80\"] }"));
    assert!(port("{ notPorts: [\"80\"] }"));
    assert!(!port("{ notPorts: [\"8080\"] }"));
    assert!(!port("{ ports: [\"8080\"], notPorts: [\"8080\"] }"));
}

#[test]
fn conditions() {
    let mut caller = from(PAY);
    caller.sni = Some("pay.example");
    for (key, value, matches) in [
        ("source.ip", "10.0.0.0/24", true),
        ("source.ip", "10.0.1.0/24", false),
        ("remote.ip", "10.0.0.1", true),
        ("source.namespace", "sh*p", true),
        ("source.namespace", "web", false),
        ("source.principal", "corp.example/ns/shop/sa/pay", true),
        ("source.principal", "*/sa/cart", false),
        ("source.trustDomain", "corp.example", true),
        ("source.trustDomain", "corp", false),
        ("source.serviceAccount", "pay", true),
        ("source.serviceAccount", "web/pay", false),
        ("destination.ip", "10.0.0.2", true),
        ("destination.ip", "10.0.0.1", false),
        ("destination.port", "8080", true),
        ("destination.port", "80", false),
        ("connection.sni", "*.example", true),
        ("connection.sni", "other.example", false),
    ] {
        let rule =
            |field: &str| format!("\n  rules:\n  - when:\n    - {{ key: {key}, {field}: [\"{value}\"] }}");
        assert_eq!(admits(&rule("values"), &caller), matches, "{key} {value}");
        assert_eq!(admits(&rule("notValues"), &caller), !matches, "{key} not {value}");
    }
    let both = "\n  rules:\n  - when:\n    - { key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1] }";
    assert!(!admits(both, &caller));
    // Without a server name no value matches, and so none is matched by `notValues`.
    caller.sni = None;
    assert!(!admits("\n  rules:\n  - when:\n    - { key: connection.sni, values: [\"*\"] }", &caller));
    assert!(admits("\n  rules:\n  - when:\n    - { key: connection.sni, notValues: [\"*\"] }", &caller));
}
