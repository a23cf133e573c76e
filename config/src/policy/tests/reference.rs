//! `decide` against a slow evaluation of the raw document, written from Istio's words and sharing nothing with the compiler.

use std::net::IpAddr;

use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::id::SpiffeId;
use crate::policy::{AuthorizationPolicy, Connection, Policy};

const OWN: &str = "corp.example";
const IDS: [&str; 5] = [
    "spiffe://corp.example/ns/shop/sa/pay",
    "spiffe://corp.example/ns/web/sa/pay",
    "spiffe://corp.example/ns/shop/sa/cart",
    "spiffe://partner.example/ns/shop/sa/pay",
    "spiffe://corp.example/vm/7",
];
const IPS: [&str; 4] = ["10.0.0.1", "10.1.0.1", "::ffff:10.0.0.1", "2001:db8::1"];
const PORTS: [u16; 2] = [80, 8080];

const PRINCIPALS: [&str; 6] =
    ["corp.example/ns/shop/sa/pay", "corp.example/*", "*/sa/pay", "*", "partner.example/ns/shop/*", "x*y"];
const NAMESPACES: [&str; 5] = ["shop", "w*b", "*", "*o*", "hop"];
const ACCOUNTS: [&str; 3] = ["pay", "web/pay", "shop/cart"];
const BLOCKS: [&str; 4] = ["10.0.0.0/16", "10.1.0.1", "2001:db8::/32", "0.0.0.0/0"];
const HTTP: [&str; 2] = ["a", "*"];
const PORT_TEXTS: [&str; 2] = ["80", "8080"];

fn strings<'a>(object: &'a Value, field: &str) -> Vec<&'a str> {
    object[field].as_array().map(|l| l.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn text(pattern: &str, value: &str) -> bool {
    if pattern == "*" {
        return !value.is_empty();
    }
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => value.ends_with(end),
        (None, Some(start)) => value.starts_with(start),
        (None, None) => value == pattern,
    }
}

fn glob(pattern: &[u8], value: &[u8]) -> bool {
    match (pattern.first(), value.first()) {
        (None, None) => true,
        (Some(b'*'), _) => glob(&pattern[1..], value) || (!value.is_empty() && glob(pattern, &value[1..])),
        (Some(p), Some(v)) => p == v && glob(&pattern[1..], &value[1..]),
        _ => false,
    }
}

fn bits(ip: IpAddr) -> (u128, u32) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    }
}

fn block(cidr: &str, ip: IpAddr) -> bool {
    let (net, length) = cidr.split_once('/').unwrap_or((cidr, ""));
    let (net, width) = bits(net.parse().unwrap());
    let (ip, ip_width) = bits(ip);
    let length: u32 = length.parse().unwrap_or(width);
    let tail = width - length;
    width == ip_width && (net >> tail) == (ip >> tail)
}

/// (namespace, account) of `/ns/x/sa/y`.
fn kubernetes(id: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = id.split('/').collect();
    match parts[3..] {
        ["ns", namespace, "sa", account] => Some((namespace.to_owned(), account.to_owned())),
        _ => None,
    }
}

fn account(value: &str, id: &str) -> bool {
    let (namespace, account) = value.split_once('/').unwrap_or(("shop", value));
    kubernetes(id).is_some_and(|(n, a)| n == namespace && a == account)
}

fn value_matches(field: &str, value: &str, c: &Case) -> bool {
    let id = IDS[c.id];
    let ip: IpAddr = IPS[c.ip].parse().unwrap();
    match field {
        "principals" | "source.principal" => text(value, id.strip_prefix("spiffe://").unwrap()),
        "namespaces" | "source.namespace" => {
            kubernetes(id).is_some_and(|(n, _)| glob(value.as_bytes(), n.as_bytes()))
        }
        "serviceAccounts" | "source.serviceAccount" => account(value, id),
        "ipBlocks" | "remoteIpBlocks" | "source.ip" | "remote.ip" => block(value, ip),
        "ports" | "destination.port" => value == PORTS[c.port].to_string(),
        "source.trustDomain" => text(value, id.split('/').nth(2).unwrap()),
        "connection.sni" => c.sni.is_some_and(|sni| text(value, sni)),
        other => panic!("{other} is not evaluated without HTTP"),
    }
}

fn is_http(field: &str) -> bool {
    field.to_lowercase().contains("request")
        || ["methods", "paths", "hosts"].iter().any(|h| field.to_lowercase().ends_with(h))
}

/// A source or an operation: every field that counts must hold.
fn object_matches(object: &Value, c: &Case) -> bool {
    object.as_object().unwrap().keys().filter(|f| !is_http(f)).all(|field| {
        let values = strings(object, field);
        match field.strip_prefix("not") {
            Some(rest) => {
                let positive = rest[..1].to_lowercase() + &rest[1..];
                !values.iter().any(|v| value_matches(&positive, v, c))
            }
            None => values.iter().any(|v| value_matches(field, v, c)),
        }
    })
}

fn rule_matches(rule: &Value, allow: bool, c: &Case) -> bool {
    let list = |name: &str| rule[name].as_array().cloned().unwrap_or_default();
    let sources: Vec<Value> = list("from").iter().map(|f| f["source"].clone()).collect();
    let operations: Vec<Value> = list("to").iter().map(|t| t["operation"].clone()).collect();
    let conditions = list("when");
    let key = |condition: &Value| condition["key"].as_str().unwrap().to_owned();
    let http = sources.iter().chain(&operations).any(|o| o.as_object().unwrap().keys().any(|f| is_http(f)))
        || conditions.iter().any(|w| is_http(&key(w)));
    if allow && http {
        return false;
    }
    let any = |objects: &[Value]| objects.is_empty() || objects.iter().any(|o| object_matches(o, c));
    let condition = |w: &Value| {
        let (key, values, not) = (key(w), strings(w, "values"), strings(w, "notValues"));
        is_http(&key)
            || ((values.is_empty() || values.iter().any(|v| value_matches(&key, v, c)))
                && !not.iter().any(|v| value_matches(&key, v, c)))
    };
    any(&sources) && any(&operations) && conditions.iter().all(condition)
}

fn reference(policies: &[Value], c: &Case) -> bool {
    let of = |action: &str| -> Vec<&Value> {
        let live = |p: &&Value| p["metadata"]["annotations"]["istio.io/dry-run"] != "true";
        policies
            .iter()
            .filter(live)
            .filter(|p| p["spec"]["action"].as_str().unwrap_or("ALLOW") == action)
            .collect()
    };
    let hit = |policies: &[&Value], allow: bool| {
        policies.iter().any(|p| {
            p["spec"]["rules"].as_array().is_some_and(|rules| rules.iter().any(|r| rule_matches(r, allow, c)))
        })
    };
    if hit(&of("DENY"), false) {
        return false;
    }
    match of("ALLOW").as_slice() {
        [] => IDS[c.id].starts_with(&format!("spiffe://{OWN}/")),
        allow => hit(allow, true),
    }
}

#[derive(Debug, Clone)]
struct Case {
    id: usize,
    ip: usize,
    port: usize,
    sni: Option<&'static str>,
}

fn case() -> impl Strategy<Value = Case> {
    let sni = prop_oneof![Just(None), Just(Some("a")), Just(Some("b.example"))];
    (0..IDS.len(), 0..IPS.len(), 0..PORTS.len(), sni).prop_map(|(id, ip, port, sni)| Case {
        id,
        ip,
        port,
        sni,
    })
}

fn object(fields: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = Value> {
    subsequence(fields, 1..=fields.len().min(3)).prop_flat_map(|chosen| {
        let lists: Vec<_> = chosen
            .into_iter()
            .map(|(name, values)| {
                (any::<bool>(), subsequence(values, 1..=2)).prop_map(move |(not, values)| {
                    let name = if not {
                        format!("not{}{}", name[..1].to_uppercase(), &name[1..])
                    } else {
                        name.to_owned()
                    };
                    (name, json!(values))
                })
            })
            .collect();
        lists.prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>()))
    })
}

fn source() -> impl Strategy<Value = Value> {
    const PLAIN: &[(&str, &[&str])] = &[
        ("principals", &PRINCIPALS),
        ("namespaces", &NAMESPACES),
        ("serviceAccounts", &ACCOUNTS),
        ("ipBlocks", &BLOCKS),
        ("remoteIpBlocks", &BLOCKS),
    ];
    const WITH_HTTP: &[(&str, &[&str])] =
        &[("principals", &PRINCIPALS), ("requestPrincipals", &["a/b", "*"])];
    prop_oneof![9 => object(PLAIN), 1 => object(WITH_HTTP)].prop_map(|s| json!({ "source": s }))
}

fn operation() -> impl Strategy<Value = Value> {
    const PLAIN: &[(&str, &[&str])] = &[("ports", &PORT_TEXTS)];
    const WITH_HTTP: &[(&str, &[&str])] =
        &[("ports", &PORT_TEXTS), ("methods", &HTTP), ("paths", &HTTP), ("hosts", &HTTP)];
    prop_oneof![4 => object(PLAIN), 1 => object(WITH_HTTP)].prop_map(|o| json!({ "operation": o }))
}

fn condition() -> impl Strategy<Value = Value> {
    const KEYS: &[(&str, &[&str])] = &[
        ("source.ip", &BLOCKS),
        ("remote.ip", &BLOCKS),
        ("source.principal", &PRINCIPALS),
        ("source.namespace", &NAMESPACES),
        ("source.serviceAccount", &ACCOUNTS),
        ("source.trustDomain", &["corp.example", "*example"]),
        ("destination.port", &PORT_TEXTS),
        ("connection.sni", &["a", "*.example"]),
        ("request.headers[x]", &HTTP),
    ];
    select(KEYS).prop_flat_map(|(key, values)| {
        let some = move || subsequence(values, 0..=1);
        (some(), some()).prop_filter_map("one of both", move |(values, not)| {
            let given = !values.is_empty() || !not.is_empty();
            given.then(|| json!({ "key": key, "values": values, "notValues": not }))
        })
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let rule = (list(source(), 0..3), list(operation(), 0..2), list(condition(), 0..2))
        .prop_map(|(from, to, when)| json!({ "from": from, "to": to, "when": when }));
    let action = prop_oneof![3 => Just("ALLOW"), 2 => Just("DENY"), 1 => Just("AUDIT")];
    (action, list(rule, 0..3), 0..8u8).prop_map(|(action, rules, dry)| {
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "shop",
                "annotations": { "istio.io/dry-run": if dry == 0 { "true" } else { "false" } } },
            "spec": { "action": action, "rules": rules },
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn decide_is_what_the_documents_say(
        documents in list(policy(), 0..4),
        case in case(),
    ) {
        let policies: Vec<AuthorizationPolicy> =
            documents.iter().map(|d| AuthorizationPolicy::from_json(&d.to_string()).unwrap()).collect();
        let compiled = Policy::compile(&policies, OWN.parse().unwrap());
        let id: SpiffeId = IDS[case.id].parse().unwrap();
        let verdict = compiled.decide(&Connection {
            peer: Some(&id),
            admits_anonymous: false,
            source_ip: IPS[case.ip].parse().unwrap(),
            remote_ip: IPS[case.ip].parse().unwrap(),
            destination_ip: "192.0.2.1".parse().unwrap(),
            destination_port: PORTS[case.port],
            sni: case.sni,
        });
        prop_assert_eq!(verdict.allow, reference(&documents, &case), "{}", compiled.explain(&verdict));
        // What was read is what is written: the same answer after a round trip.
        let again: Vec<_> =
            policies.iter().map(|p| AuthorizationPolicy::from_json(&p.to_json()).unwrap()).collect();
        prop_assert_eq!(again, policies);
    }
}
