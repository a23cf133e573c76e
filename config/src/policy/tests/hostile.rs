//! What others got wrong (spec: hostile-inputs §1), from the bytes of a request to the verdict.

use ::http::{HeaderMap, HeaderValue};

use super::{PAY, admits, compiled, document, from, source_admits};
use crate::http::authority::Authority;
use crate::http::path::{self, Rules};
use crate::policy::{Connection, Document, PeerAuthentication, Policy, PolicyError, Request, read_stream};

/// What a request gets, its target read as the data plane reads it.
fn status(policy: &Policy, host: &str, target: &str, roles: &[&'static str]) -> u16 {
    let rules = if policy.has_paths() { Rules::Strict } else { Rules::Basic };
    let raw = target.split_once('?').map_or(target, |(path, _)| path);
    let (Ok(path), Ok(authority)) = (path::normalise(raw, rules), Authority::parse(host)) else { return 400 };
    let mut headers = HeaderMap::new();
    for role in roles {
        headers.append("x-role", HeaderValue::from_static(role));
    }
    let (peer, ip) = (PAY.parse().unwrap(), [10, 0, 0, 1].into());
    let verdict = policy.decide_request(&Request {
        connection: Connection {
            peer: Some(&peer),
            admits_anonymous: false,
            source_ip: ip,
            remote_ip: ip,
            destination_ip: ip,
            destination_port: 8080,
            sni: None,
        },
        method: "GET",
        host: &authority.host,
        path: &path,
        headers: &headers,
        token: None,
    });
    if verdict.allow { 200 } else { 403 }
}

/// Rows 1, 2, 4 and 27: a path is one path however it is written.
#[test]
fn no_spelling_of_a_denied_path_gets_through() {
    let policy = compiled(&[
        "\n  action: DENY\n  rules:\n  - to:\n    - operation: { paths: [/admin, \"/admin/*\"] }",
    ]);
    for target in [
        "/admin",
        "//admin",
        "///admin",
        "/admin?x",
        "/admin?x=/../..",
        "/a/../admin",
        "/a/%2e%2e/admin",
        "/a/.%2E/admin",
        "/./admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/admin/x",
        "/admin//",
        "/a/b/../../..//admin",
    ] {
        assert_eq!(status(&policy, "shop.example", target, &[]), 403, "{target}");
    }
    for target in [
        "/x%2f..%2fadmin",
        "/x%5C..%5cadmin",
        "/a%2fadmin",
        "/x\\..\\admin",
        "/admin%00",
        "/admin#x",
        "/a/..;/admin",
    ] {
        assert_eq!(status(&policy, "shop.example", target, &[]), 400, "{target}");
    }
    // Other paths are other paths.
    for target in ["/", "/administrator", "/ADMIN", "/%252e%252e/admin"] {
        assert_eq!(status(&policy, "shop.example", target, &[]), 200, "{target}");
    }
}

/// Rows 5 and 6.
#[test]
fn no_spelling_of_a_denied_host_gets_through() {
    let policy = compiled(&["\n  action: DENY\n  rules:\n  - to:\n    - operation: { hosts: [secret.com] }"]);
    for host in ["secret.com", "SeCrEt.com", "secret.com:443", "secret.com.", "SECRET.COM.:8443"] {
        assert_eq!(status(&policy, host, "/", &[]), 403, "{host}");
    }
    for host in ["secret.com..", "user@secret.com", "secret.com:443:443", " secret.com", "secret%2ecom"] {
        assert_eq!(status(&policy, host, "/", &[]), 400, "{host}");
    }
    assert_eq!(status(&policy, "notsecret.com", "/", &[]), 200);
}

/// Row 8: Envoy lets `ok,banned` through.
#[test]
fn a_banned_value_does_not_hide_behind_a_good_one() {
    let rule = "when:\n    - { key: \"request.headers[x-role]\", values: [banned] }";
    let policy = compiled(&[&format!("\n  action: DENY\n  rules:\n  - {rule}")]);
    for roles in
        [&["ok", "banned"][..], &["banned", "ok"], &["ok,banned"], &["banned, ok"], &["ok", "x, banned ,y"]]
    {
        assert_eq!(status(&policy, "shop.example", "/", roles), 403, "{roles:?}");
    }
    assert_eq!(status(&policy, "shop.example", "/", &["ok"]), 200);
    let allow = compiled(&[&format!("\n  rules:\n  - {}", rule.replace("banned", "ok"))]);
    for roles in [&["ok", "banned"][..], &["ok,banned"], &["banned"], &[]] {
        assert_eq!(status(&allow, "shop.example", "/", roles), 403, "{roles:?}");
    }
    assert_eq!(status(&allow, "shop.example", "/", &["ok"]), 200);
}

/// Row 19: a suffix in a DENY rule, on a connection without HTTP.
#[test]
fn a_suffix_denies_without_http() {
    let deny = "\n  action: DENY\n  rules:\n  - from:\n    - source: { principals: [\"*/ns/shop/sa/pay\"] }";
    assert!(!admits(deny, &from(PAY)));
    assert!(admits(deny, &from("spiffe://corp.example/ns/shop/sa/pay2")));
}

/// Row 20: a namespace ends where its segment does.
#[test]
fn a_namespace_is_a_whole_segment() {
    let evil = from("spiffe://corp.example/ns/prod-evil/sa/a");
    assert!(!source_admits("{ namespaces: [prod] }", &evil));
    assert!(!source_admits("{ principals: [\"corp.example/ns/prod/*\"] }", &evil));
}

/// Rows 49 and 61: what is too long or too deep is an error, and nothing overflows.
#[test]
fn depth_and_length_have_bounds() {
    let deep = 100_000;
    let json = |inner: &str| {
        format!(
            r#"{{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{{"name":"p"}},"spec":{inner}}}"#
        )
    };
    for (open, close) in [("[", "]"), (r#"{"rules":[{"from":["#, "]}]}"), (r#"{"a":"#, "}")] {
        let nested = format!("{}{}", open.repeat(deep), close.repeat(deep));
        for text in [
            nested.clone(),
            json(&nested),
            json("{}").replace("\"spec\":{}", &format!("\"status\":{nested}")),
        ] {
            assert!(matches!(Document::from_json(&text), Err(PolicyError::Json(_))));
            assert!(PeerAuthentication::from_json(&text).is_err());
            assert!(read_stream(&text).is_err());
        }
    }
    let block = format!("{}x", (0..deep).map(|_| "- ").collect::<String>());
    assert!(read_stream(&format!("kind: AuthorizationPolicy\nspec:\n  {block}\n")).is_err());

    let long = |n: usize| {
        document("p", &format!("\n  rules:\n  - to:\n    - operation: {{ paths: [\"/{}\"] }}", "a".repeat(n)))
    };
    assert!(read_stream(&long(1023)).is_ok());
    assert!(read_stream(&long(1024)).unwrap_err().to_string().contains("too long (at most 1024)"));
    for (text, name) in [
        (document(&"a".repeat(254), " {}"), "long"),
        (document("\"a/b\"", " {}"), "slash"),
        (document("\"\"", " {}"), "empty"),
    ] {
        let error = read_stream(&text).expect_err(name).to_string();
        assert!(error.starts_with("4:9  error: a name has 1 to 253 letters"), "{error}");
    }
    let key = format!(
        "\n  rules:\n  - when:\n    - {{ key: \"request.headers[{}]\", values: [a] }}",
        "a".repeat(1024)
    );
    assert!(read_stream(&document("p", &key)).is_err());
}
