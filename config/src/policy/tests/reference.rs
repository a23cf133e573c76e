//! Decisions against a slow evaluation of the raw documents, one rule after the other, written from Istio's words and
//! sharing nothing with the compiler and its index.

use std::net::IpAddr;

use ::http::{HeaderMap, HeaderValue};
use proptest::collection::vec as list;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::id::SpiffeId;
use crate::policy::lint::{Placed, Setting, lint};
use crate::policy::{AuthorizationPolicy, Connection, Policy, Request, RuleRef, Token, Verdict};

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
    ["corp.example/ns/shop/sa/pay", "corp.example/*", "*/sa/pay", "*", "cluster.local/ns/web/sa/pay", "x*y"];
const NAMESPACES: [&str; 5] = ["shop", "w*b", "*", "*o*", "hop"];
const ACCOUNTS: [&str; 3] = ["pay", "web/pay", "shop/cart"];
const BLOCKS: [&str; 4] = ["10.0.0.0/16", "10.1.0.1", "2001:db8::/32", "0.0.0.0/0"];
const METHODS: [&str; 4] = ["GET", "POST", "P*", "*"];
const PATHS: [&str; 9] = ["/", "/a", "/a*", "/a/b*", "*/b", "/a/{*}", "/a/{**}", "/{*}/b/{**}", "/{**}/c"];
const HOSTS: [&str; 5] = ["a.example", "*.example", "A.*", "b.example:*", "*"];
const SUBJECTS: [&str; 6] = ["iss/a/sub", "iss/a/*", "*/sub", "iss*", "*b", "*"];
const CLAIM: [&str; 3] = ["dev", "o*", "*"];
const ROLES: [&str; 4] = ["ok", "te*", "*am", "*"];

const ASKED_METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const ASKED_PATHS: [&str; 9] = ["", "/", "/a", "/a/b", "/a/b/c", "/x/b/c", "/ab", "/a/", "*"];
const ASKED_HOSTS: [&str; 5] = ["a.example", "A.Example:443", "b.example.", "x.a.example", "other"];
const ASKED_ROLES: [&[&str]; 8] =
    [&[], &["ok"], &["ok", "no"], &["ok,no"], &["team"], &["team-a, x"], &["te,team"], &["ok", "team"]];
const TOKENS: [Option<(&str, &str)>; 4] =
    [None, Some(("iss/a", "sub")), Some(("iss", "a/sub")), Some(("iss", ""))];
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

/// `{*}` is one segment, `{**}` is whatever remains.
fn template(pattern: &str, path: &str) -> bool {
    let cuts = |limit: usize| (0..=path.len().min(limit)).filter(|at| path.is_char_boundary(*at));
    if let Some(rest) = pattern.strip_prefix("{**}") {
        return cuts(usize::MAX).any(|at| template(rest, &path[at..]));
    }
    if let Some(rest) = pattern.strip_prefix("{*}") {
        let segment = path.find('/').unwrap_or(path.len());
        return segment > 0 && template(rest, &path[segment..]);
    }
    match (pattern.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(p), Some(c)) if p == c => template(&pattern[p.len_utf8()..], &path[c.len_utf8()..]),
        _ => false,
    }
}

fn host(text: &str) -> String {
    let name = text.split(':').next().unwrap();
    name.strip_suffix('.').unwrap_or(name).to_lowercase()
}

fn request_principal(pattern: &str, issuer: &str, subject: &str) -> bool {
    match pattern.rsplit_once('/') {
        Some((i, s)) => text(i, issuer) && text(s, subject),
        None if pattern == "*" => !issuer.is_empty() && !subject.is_empty(),
        None if pattern.starts_with('*') => !issuer.is_empty() && text(pattern, subject),
        None => text(pattern, issuer) && !subject.is_empty(),
    }
}

/// Whether a header's lines match: all of them, or any of what they hold.
fn role(values: &[&str], lines: &[&str], every: bool) -> bool {
    let some = |part: &str| values.iter().any(|v| text(v, part));
    if every {
        let whole = |line: &&str| {
            values.iter().any(|v| {
                let reaches = v.contains('*') && *v != "*";
                text(v, line) && (!reaches || line.split(',').all(|e| some(e.trim())))
            })
        };
        !lines.is_empty() && lines.iter().all(whole)
    } else {
        lines.iter().any(|line| some(line) || line.split(',').any(|e| some(e.trim())))
    }
}

fn value_matches(field: &str, value: &str, c: &Case) -> bool {
    let ip: IpAddr = IPS[c.ip].parse().unwrap();
    let remote: IpAddr = IPS[c.remote].parse().unwrap();
    let peer = |test: &dyn Fn(&str) -> bool| c.id.is_some_and(|id| test(IDS[id]));
    let http = c.http.as_ref();
    let token = http.and_then(|h| TOKENS[h.token]);
    match field {
        "principals" | "source.principal" => peer(&|id| {
            let own = value.replacen("cluster.local/", &format!("{OWN}/"), 1);
            let id = id.strip_prefix("spiffe://").unwrap();
            text(value, id) || (value.split('/').count() == 5 && text(&own, id))
        }),
        "namespaces" | "source.namespace" => {
            peer(&|id| kubernetes(id).is_some_and(|(n, _)| glob(value.as_bytes(), n.as_bytes())))
        }
        "serviceAccounts" | "source.serviceAccount" => peer(&|id| account(value, id)),
        "ipBlocks" | "source.ip" => block(value, ip),
        "remoteIpBlocks" | "remote.ip" => block(value, remote),
        "ports" | "destination.port" => value == PORTS[c.port].to_string(),
        "source.trustDomain" => peer(&|id| text(value, id.split('/').nth(2).unwrap())),
        "connection.sni" => c.sni.is_some_and(|sni| text(value, sni)),
        "methods" => http.is_some_and(|h| text(value, ASKED_METHODS[h.method])),
        "paths" => http.is_some_and(|h| {
            let path = ASKED_PATHS[h.path];
            if value.contains('{') { template(value, path) } else { text(value, path) }
        }),
        "hosts" => {
            let pattern = value.strip_suffix(":*").unwrap_or(value).to_lowercase();
            http.is_some_and(|h| text(&pattern, &host(ASKED_HOSTS[h.host])))
        }
        "requestPrincipals" | "request.auth.principal" => {
            token.is_some_and(|(issuer, subject)| request_principal(value, issuer, subject))
        }
        "request.auth.claims[group]" => token.is_some() && ["dev", "ops"].iter().any(|g| text(value, g)),
        other => panic!("{other} is not known"),
    }
}

fn is_http(field: &str) -> bool {
    field.to_lowercase().contains("request")
        || ["methods", "paths", "hosts"].iter().any(|h| field.to_lowercase().ends_with(h))
}

/// A source or an operation: every field that counts must hold.
fn object_matches(object: &Value, c: &Case) -> bool {
    object.as_object().unwrap().keys().filter(|f| c.http.is_some() || !is_http(f)).all(|field| {
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
    if allow && http && c.http.is_none() {
        return false;
    }
    let any = |objects: &[Value]| objects.is_empty() || objects.iter().any(|o| object_matches(o, c));
    let condition = |w: &Value| {
        let (key, values, not) = (key(w), strings(w, "values"), strings(w, "notValues"));
        if is_http(&key) && c.http.is_none() {
            return true;
        }
        if key == "request.headers[x-role]" {
            let lines = ASKED_ROLES[c.http.as_ref().unwrap().role];
            return (values.is_empty() || role(&values, lines, allow))
                && (not.is_empty() || !role(&not, lines, !allow));
        }
        (values.is_empty() || values.iter().any(|v| value_matches(&key, v, c)))
            && !not.iter().any(|v| value_matches(&key, v, c))
    };
    any(&sources) && any(&operations) && conditions.iter().all(condition)
}

/// Whether it may proceed, and the rule that says so.
fn reference(policies: &[Value], c: &Case, dry_run: bool) -> (bool, Option<RuleRef>) {
    let is_live = |p: &Value| dry_run || p["metadata"]["annotations"]["istio.io/dry-run"] != "true";
    let of =
        |p: &Value, action: &str| is_live(p) && p["spec"]["action"].as_str().unwrap_or("ALLOW") == action;
    let hit = |action: &str| {
        policies.iter().enumerate().filter(|(_, p)| of(p, action)).find_map(|(policy, p)| {
            let rule =
                p["spec"]["rules"].as_array()?.iter().position(|r| rule_matches(r, action == "ALLOW", c))?;
            Some(RuleRef { policy, rule })
        })
    };
    if let Some(rule) = hit("DENY") {
        return (false, Some(rule));
    }
    if policies.iter().any(|p| of(p, "ALLOW")) {
        let rule = hit("ALLOW");
        return (rule.is_some(), rule);
    }
    (c.id.map_or(c.admits_anonymous, |id| IDS[id].starts_with(&format!("spiffe://{OWN}/"))), None)
}

#[derive(Debug, Clone)]
struct Case {
    id: Option<usize>,
    admits_anonymous: bool,
    ip: usize,
    remote: usize,
    port: usize,
    sni: Option<&'static str>,
    http: Option<Http>,
}

#[derive(Debug, Clone)]
struct Http {
    method: usize,
    path: usize,
    host: usize,
    role: usize,
    token: usize,
}

impl Case {
    fn verdict(&self, policy: &Policy) -> Verdict {
        let id: Option<SpiffeId> = self.id.map(|id| IDS[id].parse().unwrap());
        let connection = Connection {
            peer: id.as_ref(),
            admits_anonymous: self.admits_anonymous,
            source_ip: IPS[self.ip].parse().unwrap(),
            remote_ip: IPS[self.remote].parse().unwrap(),
            destination_ip: "192.0.2.1".parse().unwrap(),
            destination_port: PORTS[self.port],
            sni: self.sni,
        };
        let Some(http) = &self.http else { return policy.decide(&connection) };
        let mut headers = HeaderMap::new();
        for line in ASKED_ROLES[http.role] {
            headers.append("x-role", HeaderValue::from_static(line));
        }
        let token = TOKENS[http.token].map(|(issuer, subject)| Token {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            claims: json!({ "group": ["dev", "ops"] }).as_object().unwrap().clone(),
            ..Token::default()
        });
        policy.decide_request(&Request {
            connection,
            method: ASKED_METHODS[http.method],
            host: ASKED_HOSTS[http.host],
            path: ASKED_PATHS[http.path],
            headers: &headers,
            token: token.as_ref(),
        })
    }
}

fn case() -> impl Strategy<Value = Case> {
    let sni = prop_oneof![Just(None), Just(Some("a")), Just(Some("b.example"))];
    let http = (
        0..ASKED_METHODS.len(),
        0..ASKED_PATHS.len(),
        0..ASKED_HOSTS.len(),
        0..ASKED_ROLES.len(),
        0..TOKENS.len(),
    )
        .prop_map(|(method, path, host, role, token)| Http { method, path, host, role, token });
    let id = proptest::option::weighted(0.9, 0..IDS.len());
    (
        id,
        any::<bool>(),
        0..IPS.len(),
        0..IPS.len(),
        0..PORTS.len(),
        sni,
        proptest::option::weighted(0.7, http),
    )
        .prop_map(|(id, admits_anonymous, ip, remote, port, sni, http)| Case {
            id,
            admits_anonymous,
            ip,
            remote,
            port,
            sni,
            http,
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
    const WITH_HTTP: &[(&str, &[&str])] = &[("principals", &PRINCIPALS), ("requestPrincipals", &SUBJECTS)];
    prop_oneof![5 => object(PLAIN), 1 => object(WITH_HTTP)].prop_map(|s| json!({ "source": s }))
}

fn operation() -> impl Strategy<Value = Value> {
    const PLAIN: &[(&str, &[&str])] = &[("ports", &PORT_TEXTS)];
    const WITH_HTTP: &[(&str, &[&str])] =
        &[("ports", &PORT_TEXTS), ("methods", &METHODS), ("paths", &PATHS), ("hosts", &HOSTS)];
    prop_oneof![1 => object(PLAIN), 3 => object(WITH_HTTP)].prop_map(|o| json!({ "operation": o }))
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
        ("request.headers[x-role]", &ROLES),
        ("request.headers[x-role]", &ROLES),
        ("request.auth.claims[group]", &CLAIM),
        ("request.auth.principal", &SUBJECTS),
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
    // Few rules are scanned, many are filed, and drawers of many are divided again.
    policy_of(prop_oneof![24 => list(rule(), 0..3), 6 => list(rule(), 9..20), 1 => list(rule(), 60..120)])
}

fn rule() -> impl Strategy<Value = Value> {
    (list(source(), 0..3), list(operation(), 0..3), list(condition(), 0..2))
        .prop_map(|(from, to, when)| json!({ "from": from, "to": to, "when": when }))
}

fn policy_of(rules: impl Strategy<Value = Vec<Value>>) -> impl Strategy<Value = Value> {
    let action = prop_oneof![3 => Just("ALLOW"), 2 => Just("DENY"), 1 => Just("AUDIT")];
    (action, rules, 0..8u8).prop_map(|(action, rules, dry)| {
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
        let verdict = case.verdict(&compiled);
        let (allow, rule) = reference(&documents, &case, false);
        prop_assert_eq!(verdict.allow, allow, "{}", compiled.explain(&verdict));
        prop_assert_eq!(verdict.because.rule(), rule);
        if let Some(trial) = verdict.dry_run {
            let (allow, rule) = reference(&documents, &case, true);
            prop_assert_eq!((trial.allow, trial.because.rule()), (allow, rule));
        }
        // What was read is what is written: the same answer after a round trip.
        let again: Vec<_> =
            policies.iter().map(|p| AuthorizationPolicy::from_json(&p.to_json()).unwrap()).collect();
        prop_assert_eq!(again, policies);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// A rule that is called unreachable can be replaced by one that never matches, and nobody is judged otherwise.
    #[test]
    fn unreachable_rules_decide_nothing(
        mut documents in list(policy_of(list(rule(), 0..4)), 1..4),
        cases in list(case(), 8),
    ) {
        for (index, document) in documents.iter_mut().enumerate() {
            document["metadata"]["name"] = json!(format!("p{index}"));
        }
        // JSON is YAML.
        let text = documents.iter().map(|d| format!("---\n{d}\n")).collect::<String>();
        let setting = Setting { root_namespace: "root", tcp_ports: &[] };
        let warnings = lint(&Placed::read(&text, 0).unwrap(), &setting);
        let compile = |documents: &[Value]| {
            let read = |d: &Value| AuthorizationPolicy::from_json(&d.to_string()).unwrap();
            Policy::compile(&documents.iter().map(read).collect::<Vec<_>>(), OWN.parse().unwrap())
        };
        for warning in warnings.iter().filter(|w| w.kind == "unreachable") {
            let words: Vec<&str> = warning.message.split([' ', '/']).collect();
            let (rule, policy): (usize, usize) = (words[1].parse().unwrap(), words[4][1..].parse().unwrap());
            let mut without = documents.clone();
            without[policy]["spec"]["rules"][rule] = json!({ "to": [{ "operation": { "ports": ["1"] } }] });
            let (with, without) = (compile(&documents), compile(&without));
            for case in &cases {
                prop_assert_eq!(case.verdict(&with).allow, case.verdict(&without).allow, "{}", warning.message);
            }
        }
    }
}
