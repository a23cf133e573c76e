//! What each HTTP field matches, and what a caller must not get by writing the same thing in another way.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use super::{PARTNER, PAY, compiled, from};
use crate::id::SpiffeId;
use crate::policy::{Because, Connection, Policy, Request, Token, Verdict};

/// `GET shop.example/` from [`PAY`], unless a test says otherwise.
struct Ask {
    id: Option<SpiffeId>,
    admits_anonymous: bool,
    remote: &'static str,
    method: &'static str,
    host: String,
    path: String,
    headers: HeaderMap,
    token: Option<Token>,
}

fn ask() -> Ask {
    Ask {
        id: Some(PAY.parse().unwrap()),
        admits_anonymous: false,
        remote: "10.0.0.1",
        method: "GET",
        host: "shop.example".to_owned(),
        path: "/".to_owned(),
        headers: HeaderMap::new(),
        token: None,
    }
}

impl Ask {
    fn path(path: &str) -> Self {
        Self { path: path.to_owned(), ..ask() }
    }

    fn host(host: &str) -> Self {
        Self { host: host.to_owned(), ..ask() }
    }

    fn method(method: &'static str) -> Self {
        Self { method, ..ask() }
    }

    fn lines(name: &str, lines: &[&[u8]]) -> Self {
        let mut asked = ask();
        for line in lines {
            let name: HeaderName = name.parse().unwrap();
            asked.headers.append(name, HeaderValue::from_bytes(line).unwrap());
        }
        asked
    }

    fn token(issuer: &str, subject: &str, claims: serde_json::Value) -> Self {
        let token = Token {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            audiences: vec!["shop".to_owned(), "web".to_owned()],
            presenter: Some("front".to_owned()),
            claims: claims.as_object().unwrap().clone(),
        };
        Self { token: Some(token), ..ask() }
    }

    fn verdict(&self, policy: &Policy) -> Verdict {
        policy.decide_request(&Request {
            connection: Connection {
                peer: self.id.as_ref(),
                admits_anonymous: self.admits_anonymous,
                source_ip: "10.0.0.1".parse().unwrap(),
                remote_ip: self.remote.parse().unwrap(),
                destination_ip: "10.0.0.2".parse().unwrap(),
                destination_port: 8080,
                sni: None,
            },
            method: self.method,
            host: &self.host,
            path: &self.path,
            headers: &self.headers,
            token: self.token.as_ref(),
        })
    }

    /// Whether a rule of this action and these words matches.
    fn hits(&self, action: &str, rule: &str) -> bool {
        let verdict = self.verdict(&compiled(&[&format!("\n  action: {action}\n  rules:\n  - {rule}")]));
        verdict.because.rule().is_some()
    }

    fn operation(&self, operation: &str) -> bool {
        let rule = format!("to:\n    - operation: {operation}");
        let hits = self.hits("ALLOW", &rule);
        assert_eq!(hits, self.hits("DENY", &rule), "{operation}");
        hits
    }

    fn source(&self, source: &str) -> bool {
        self.hits("ALLOW", &format!("from:\n    - source: {source}"))
    }
}

#[test]
fn methods_are_compared_as_they_are() {
    let hits = |method, pattern: &str| Ask::method(method).operation(&format!("{{ methods: [{pattern}] }}"));
    assert!(hits("POST", "GET, POST"));
    assert!(!hits("POST", "GET"));
    assert!(!hits("post", "POST"));
    assert!(hits("PROPFIND", "\"PROP*\""));
    assert!(hits("CONNECT", "\"*\""));
    assert!(Ask::method("POST").operation("{ notMethods: [GET] }"));
    assert!(!Ask::method("GET").operation("{ notMethods: [GET] }"));
}

#[test]
fn paths_and_their_templates() {
    let hits =
        |path: &str, pattern: &str| Ask::path(path).operation(&format!("{{ paths: [\"{pattern}\"] }}"));
    for (pattern, good, bad) in [
        ("/admin", vec!["/admin"], vec!["/Admin", "/admin/", "/admin;x=1", "/a"]),
        ("/admin*", vec!["/admin", "/admin/x", "/administrator"], vec!["/ADMIN", "/x/admin"]),
        ("*.html", vec!["/a.html", "/.html"], vec!["/a.htm"]),
        ("*", vec!["/", "/a", "*"], vec![""]),
        ("/a/*/b", vec!["/a/*/b"], vec!["/a/x/b"]),
        ("/shop.Orders/Place", vec!["/shop.Orders/Place"], vec!["/shop.Orders/place"]),
        ("/foo/{*}", vec!["/foo/bar"], vec!["/foo/bar/baz", "/foo/", "/foo", "/foo/bar/", "foo/bar"]),
        ("/foo/{**}", vec!["/foo/", "/foo/bar", "/foo/bar/baz.txt"], vec!["/foo", "/fo/x"]),
        ("/foo/{**}/", vec!["/foo/bar/", "/foo/bar/baz/", "/foo//"], vec!["/foo/bar", "/foo/"]),
        (
            "/foo/{*}/bar/{**}",
            vec!["/foo/buzz/bar/", "/foo/buzz/bar/baz"],
            vec!["/foo/bar", "/foo/x/y/bar/z"],
        ),
        ("/{*}/bar", vec!["/x/bar"], vec!["//bar", "/bar", "/x/bar/", "/x/bars"]),
        ("/{**}", vec!["/", "/a/b"], vec![""]),
        ("/v1/{**}/log", vec!["/v1/a/log", "/v1/a/b/log"], vec!["/v1/log", "/v1/a/logs", "/v1/alog"]),
    ] {
        for path in good {
            assert!(hits(path, pattern), "{pattern} {path}");
            assert!(
                !Ask::path(path).operation(&format!("{{ notPaths: [\"{pattern}\"] }}")),
                "{pattern} {path}"
            );
        }
        for path in bad {
            assert!(!hits(path, pattern), "{pattern} {path}");
        }
    }
}

#[test]
fn a_host_is_the_same_in_every_spelling() {
    let hits =
        |host: &str, pattern: &str| Ask::host(host).operation(&format!("{{ hosts: [\"{pattern}\"] }}"));
    let spellings =
        ["secret.com", "SeCrEt.com", "secret.com:443", "secret.com.", "secret.com.:443", "SECRET.COM:"];
    for host in spellings {
        let patterns =
            ["secret.com", "Secret.COM", "secret.com.", "secret.com:8443", "secret.com:*", "secret.*"];
        for pattern in patterns.into_iter().chain(["*.com", "*"]) {
            assert!(hits(host, pattern), "{pattern} {host}");
            assert!(
                !Ask::host(host).operation(&format!("{{ notHosts: [\"{pattern}\"] }}")),
                "{pattern} {host}"
            );
        }
    }
    for host in ["secret.com.evil", "xsecret.com", "secret.co", ""] {
        assert!(!hits(host, "secret.com"), "{host}");
    }
    assert!(!hits("evilsecret.com", "*.secret.com"));
    assert!(!hits("secret.com", "*.secret.com"));
    assert!(hits("[2001:DB8::1]:443", "[2001:db8::1]"));
    assert!(hits("[2001:db8:0::1]", "[2001:DB8::0:1]:*"));
    // What is no host (the data plane answers 400) does not slip past a rule either.
    assert!(hits("Secret.com:x", "secret.com"));
    assert!(!hits("[2001:db8::1]", "[2001:db8:"));
}

const HEADER: &str = "{ key: \"request.headers[X-Role]\", values: [ok, good] }";
const NOT_HEADER: &str = "{ key: \"request.headers[x-role]\", notValues: [ok, good] }";

#[test]
fn a_second_header_line_hides_nothing() {
    for (lines, allow, deny) in [
        (&[][..], false, false),
        (&["ok"][..], true, true),
        (&["banned"][..], false, false),
        (&["OK"][..], false, false),
        (&["ok", "good"][..], true, true),
        // Which of the two an app believes is unknown: enough to refuse, not enough to admit.
        (&["ok", "banned"][..], false, true),
        (&["banned", "ok"][..], false, true),
        (&["ok,banned"][..], false, true),
        (&["banned , ok"][..], false, true),
        (&["ok", ""][..], false, true),
    ] {
        let lines: Vec<&[u8]> = lines.iter().map(|l| l.as_bytes()).collect();
        let asked = Ask::lines("X-ROLE", &lines);
        let rule = |condition: &str| format!("when:\n    - {condition}");
        assert_eq!(asked.hits("ALLOW", &rule(HEADER)), allow, "ALLOW {lines:?}");
        assert_eq!(asked.hits("DENY", &rule(HEADER)), deny, "DENY {lines:?}");
        // `not` turns it round: admitted is who shows nothing of it, refused is who shows anything else.
        assert_eq!(asked.hits("ALLOW", &rule(NOT_HEADER)), !deny, "ALLOW not {lines:?}");
        assert_eq!(asked.hits("DENY", &rule(NOT_HEADER)), !allow, "DENY not {lines:?}");
    }
}

#[test]
fn a_star_does_not_reach_over_the_comma_of_a_list() {
    let rule = |name: &str, value: &str| {
        format!("when:\n    - {{ key: \"request.headers[{name}]\", values: [\"{value}\"] }}")
    };
    let asked = Ask::lines("x-role", &[b"team-a,root"]);
    assert!(!asked.hits("ALLOW", &rule("x-role", "team-*")));
    assert!(!asked.hits("ALLOW", &rule("x-role", "*root")));
    assert!(asked.hits("DENY", &rule("x-role", "roo*")));
    assert!(asked.hits("ALLOW", &rule("x-role", "*")), "presence");
    assert!(asked.hits("ALLOW", &rule("x-role", "team-a,root")));
    assert!(Ask::lines("x-role", &[b"team-a, team-b"]).hits("ALLOW", &rule("x-role", "team-*")));
    // A user agent is no list (an example of Istio's documentation).
    let browser = Ask::lines("user-agent", &[b"Mozilla/5.0 (X11) AppleWebKit/537.36 (KHTML, like Gecko)"]);
    assert!(browser.hits("ALLOW", &rule("User-Agent", "Mozilla/*")));
    assert!(!browser.hits("DENY", &rule("User-Agent", "like*")));
    // Bytes that are no text are bytes.
    assert!(Ask::lines("x-role", &[b"team-\xff"]).hits("DENY", &rule("x-role", "team-*")));
}

#[test]
fn request_principals_are_divided_at_the_last_slash() {
    let asked = Ask::token("https://issuer.example/realm", "alice", json!({}));
    for good in [
        "https://issuer.example/realm/alice",
        "https://issuer.example/realm/*",
        "*/alice",
        "*",
        "*ice",
        "https*",
    ] {
        assert!(asked.source(&format!("{{ requestPrincipals: [\"{good}\"] }}")), "{good}");
        assert!(!asked.source(&format!("{{ notRequestPrincipals: [\"{good}\"] }}")), "{good}");
        let when = format!("when:\n    - {{ key: request.auth.principal, values: [\"{good}\"] }}");
        assert!(asked.hits("DENY", &when), "{good}");
    }
    for bad in [
        "https://issuer.example/alice",
        "https://issuer.example/realm/bob",
        "https://issuer.example/*",
        "*/bob",
    ] {
        assert!(!asked.source(&format!("{{ requestPrincipals: [\"{bad}\"] }}")), "{bad}");
    }
    // The slash of a subject does not move into the issuer.
    let smuggled = Ask::token("https://issuer.example", "realm/alice", json!({}));
    assert!(!smuggled.source("{ requestPrincipals: [\"https://issuer.example/realm/alice\"] }"));
    // Without a token, or without a subject, nobody is presented.
    assert!(!ask().source("{ requestPrincipals: [\"*\"] }"));
    assert!(ask().source("{ notRequestPrincipals: [\"*\"] }"));
    assert!(!Ask::token("i", "", json!({})).source("{ requestPrincipals: [\"*\"] }"));
}

#[test]
fn claims_are_texts_or_lists_of_texts() {
    let claims = json!({
        "group": ["dev", "ops"], "tier": "gold", "scope": "read write", "n": 7, "ok": true,
        "realm": { "roles": ["admin"], "name": "main", "scope": "a b" }, "a.b": "dotted", "https://x/y": "url",
    });
    let asked = Ask::token("i", "s", claims);
    for (key, value, expected) in [
        ("claims[group]", "dev", true),
        ("claims[group]", "op*", true),
        ("claims[group]", "de", false),
        ("claims[tier]", "gold", true),
        ("claims[scope]", "write", true),
        ("claims[scope]", "read write", true),
        ("claims[realm][roles]", "admin", true),
        ("claims[realm][name]", "*", true),
        ("claims[realm][scope]", "a", false),
        ("claims[realm]", "*", false),
        ("claims[realm][none]", "*", false),
        ("claims[group][dev]", "*", false),
        ("claims[a.b]", "dotted", true),
        ("claims[https://x/y]", "url", true),
        ("claims[n]", "7", false),
        ("claims[ok]", "true", false),
        ("audiences", "web", true),
        ("audiences", "other", false),
        ("presenter", "front", true),
        ("presenter", "*x", false),
    ] {
        let rule =
            |field: &str| format!("when:\n    - {{ key: \"request.auth.{key}\", {field}: [\"{value}\"] }}");
        assert_eq!(asked.hits("ALLOW", &rule("values")), expected, "{key} {value}");
        assert_eq!(asked.hits("DENY", &rule("notValues")), !expected, "{key} not {value}");
        assert!(!ask().hits("ALLOW", &rule("values")), "no token: {key} {value}");
    }
}

#[test]
fn http_fields_are_judged_together_with_the_others() {
    let rule = "\n  rules:\n  - from:\n    - source: { principals: [\"*/sa/pay\"], remoteIpBlocks: [192.0.2.0/24] }\n    to:\n    - operation: { methods: [POST], paths: [/charge], ports: [\"8080\"] }\n    - operation: { methods: [GET] }";
    let policy = compiled(&[rule]);
    let remote = |asked: Ask| Ask { remote: "192.0.2.9", ..asked };
    assert!(remote(Ask { method: "POST", ..Ask::path("/charge") }).verdict(&policy).allow);
    assert!(remote(Ask::path("/charge")).verdict(&policy).allow);
    assert!(!remote(Ask { method: "POST", ..Ask::path("/refund") }).verdict(&policy).allow);
    assert!(!Ask::path("/charge").verdict(&policy).allow, "the source is not the remote end");
    assert_eq!(
        policy.explain(&remote(Ask { method: "PUT", ..Ask::path("/charge") }).verdict(&policy)),
        "no ALLOW rule matches. Nearest: shop/p0 rule 0 wants method POST"
    );
    assert!(policy.has_paths());
    assert!(!compiled(&["\n  rules:\n  - to:\n    - operation: { methods: [GET] }"]).has_paths());
    // The connection by itself is not admitted: the rule would have to say nothing about HTTP.
    assert!(!from(PAY).verdict(&policy).allow);
}

#[test]
fn a_peer_without_an_identity_is_nobody() {
    let anonymous = |admits_anonymous| Ask { id: None, admits_anonymous, ..ask() };
    for source in ["{ principals: [\"*\"] }", "{ namespaces: [\"*\"] }", "{ serviceAccounts: [pay] }"] {
        assert!(!anonymous(true).source(source), "{source}");
        let not = source.replace("{ ", "{ not").replacen("notp", "notP", 1).replacen("notn", "notN", 1);
        assert!(anonymous(true).source(&not.replacen("nots", "notS", 1)), "{source}");
    }
    for key in ["principal", "namespace", "trustDomain"] {
        let rule = format!("when:\n    - {{ key: source.{key}, values: [\"*\"] }}");
        assert!(!anonymous(true).hits("ALLOW", &rule), "{key}");
    }
    let none = compiled(&[]);
    let open = anonymous(true).verdict(&none);
    assert_eq!((open.allow, open.because), (true, Because::AnonymousAdmitted));
    let strict = anonymous(false).verdict(&none);
    assert_eq!((strict.allow, strict.because), (false, Because::Anonymous));
    // The permission is for peers without an identity alone.
    let foreign = Ask { id: Some(PARTNER.parse().unwrap()), ..anonymous(true) };
    assert!(!foreign.verdict(&none).allow);
    // An ALLOW policy decides by itself.
    assert!(!anonymous(true).verdict(&compiled(&[" {}"])).allow);
    assert!(
        anonymous(true).verdict(&compiled(&["\n  rules:\n  - to:\n    - operation: { paths: [/] }"])).allow
    );
}

#[test]
fn cluster_local_is_the_own_trust_domain() {
    assert!(ask().source("{ principals: [cluster.local/ns/shop/sa/pay] }"));
    assert!(
        ask().hits("DENY", "when:\n    - { key: source.principal, values: [cluster.local/ns/shop/sa/pay] }")
    );
    assert!(!ask().source("{ principals: [other.local/ns/shop/sa/pay] }"));
    let partner = Ask { id: Some(PARTNER.parse().unwrap()), ..ask() };
    assert!(!partner.source("{ principals: [cluster.local/ns/shop/sa/pay] }"));
}

#[test]
fn a_dry_run_is_decided_for_requests_too() {
    let trial =
        super::document("trial", "\n  action: DENY\n  rules:\n  - to:\n    - operation: { paths: [/admin] }")
            .replace("  namespace", "  annotations:\n    istio.io/dry-run: \"true\"\n  namespace");
    let policy = Policy::compile(&super::read(&[trial]), "corp.example".parse().unwrap());
    let verdict = Ask::path("/admin").verdict(&policy);
    assert!(verdict.allow);
    let trial = verdict.dry_run.unwrap();
    assert!(!trial.allow);
    assert_eq!(policy.explain_because(&trial.because), "denied by shop/trial rule 0");
    assert!(Ask::path("/").verdict(&policy).dry_run.unwrap().allow);
    assert!(!policy.has_paths(), "a policy that only tries itself out changes nothing for the traffic");
}
