//! A gateway's configuration: what is refused, and in which words.

use crate::file;
use crate::file::proxy::ProxyConfig;

use super::{HostName, Network};

const GOOD: &str = "mode: gateway
gateway:
  listeners:
    - { listen: '127.0.0.1:8443', protocol: https }
    - { listen: '127.0.0.1:8080', protocol: http }
  hosts:
    - names: [shop.example.com]
      certificate: { chain: c.pem, key: k.pem }
      routes: [{ service: shop }]
";

fn verdict(yaml: &str) -> Result<(), String> {
    let config: ProxyConfig = file::parse(yaml).map_err(|e| e.to_string())?;
    config.check().map_err(|e| e.to_string())
}

#[test]
fn a_small_gateway_is_good() {
    verdict(GOOD).unwrap();
}

#[test]
fn each_mistake_is_named_with_its_place() {
    let host = |lines: &str| {
        GOOD.replace("      routes: [{ service: shop }]\n", "")
            + "      "
            + &lines.replace('\n', "\n      ")
            + "\n"
    };
    let routes = "routes: [{ service: shop }]";
    let ordered = |name: &str, challenge: &str| {
        let issuer = "directory: 'https://a.test/d', terms_of_service_agreed: true, storage: /s";
        GOOD.replace("chain: c.pem, key: k.pem", "acme: le")
            .replace("shop.example.com", &format!("'{name}'"))
            .replace(
                "gateway:\n",
                &format!("gateway:\n  acme: [{{ name: le, challenge: {challenge}, {issuer} }}]\n"),
            )
    };
    let cases = [
        (GOOD.replace("mode: gateway\n", ""), "`gateway` is given, but `mode` is not `gateway`"),
        ("mode: gateway\n".to_owned(), "`mode: gateway` needs a `gateway` section"),
        (
            GOOD.replace("8080", "8443"),
            "gateway.listeners[1]: 127.0.0.1:8443 is taken by gateway.listeners[0]",
        ),
        (GOOD.replace(", key: k.pem", ""), "gateway.hosts[0]: `certificate.chain` needs `certificate.key`"),
        (
            GOOD.replace("key: k.pem", "key: k.pem, identity: true"),
            "`chain` and `key`, `acme`, or `identity: true`",
        ),
        (GOOD.replace("key: k.pem", "key: k.pem, acme: le"), "`certificate.acme` stands alone"),
        (GOOD.replace("chain: c.pem, key: k.pem", "acme: le"), "no issuer is called \"le\""),
        (ordered("*.example.com", "tls-alpn-01"), "*.example.com cannot be proven by `le`"),
        (
            ordered("shop.example.com", "tls-alpn-01").replace("agreed: true", "agreed: false"),
            "gateway.acme[0]",
        ),
        (
            ordered("shop.example.com", "http-01").replace("protocol: http }", "protocol: tls }"),
            "it needs a listener of protocol `http`",
        ),
        (
            host(&format!("jwt: {{ providers: [a] }}\n{routes}")),
            "gateway.hosts[0].jwt: no provider is called",
        ),
        (GOOD.replace("[shop.example.com]", "[a.b, A.B]"), "a.b is taken by gateway.hosts[0]"),
        (GOOD.replace("shop.example.com", "'*.com'"), "a wildcard for a top-level domain"),
        (GOOD.replace("shop.example.com", "'a.*.com'"), "a star may only stand for the whole first label"),
        (GOOD.replace("shop.example.com", "10.0.0.1"), "an IP address names no host"),
        (GOOD.replace("shop.example.com", "'a.b:443'"), "without a port"),
        (host("routes: []"), "`routes` is empty"),
        (
            host(&format!("client_certificate: {{ mode: required }}\n{routes}")),
            "`client_certificate` needs `ca`",
        ),
        (host(&format!("client_certificate: {{ ca: [x.pem] }}\n{routes}")), "has files and no `mode`"),
        (
            host(&format!("client_certificate: {{ mode: optional, ca: [x.pem] }}\nplain: serve\n{routes}")),
            "`plain: serve` would lead around `client_certificate`",
        ),
        (host(&format!("passthrough: {{ address: 'a:1' }}\n{routes}")), "is not decrypted"),
        (host(&format!("redirect: {{ code: 302 }}\n{routes}")), "`code` 301 or 308"),
        (host(&format!("hsts: {{ max_age: 1d, preload: true }}\n{routes}")), "at least 365d"),
        (host("routes: [{ service: shop, path: { prefix: api } }]"), "begins with `/`"),
        (host("routes: [{ service: shop, path: { prefix: /a/../b } }]"), "no `//`, `.` or `..`"),
        (host("routes: [{ service: shop, path: { exact: /a, prefix: /b } }]"), "either `exact` or `prefix`"),
        (host("routes: [{ service: shop, path: { exact: '/a?b' } }]"), "without query"),
        (host("routes: [{ service: shop, method: get }]"), "write it in capitals"),
        (host("routes: [{ service: shop, headers: { X-A: b } }]"), "write names in lower case"),
        (host("routes: [{ service: shop, headers: { host: b } }]"), "use `names`"),
        (host("routes: [{ service: shop, timeout: 0s }]"), "gateway.hosts[0].routes[0]: `timeout` 0s"),
        (host("routes: [{ service: 'a b' }]"), "service name"),
        (
            GOOD.replace("protocol: https }", "protocol: https, default_host: other.example.com }"),
            "not among the hosts",
        ),
        (GOOD.replace("protocol: https }", "protocol: tls }"), "is reached nowhere"),
        (
            GOOD.replace(
                "protocol: https }",
                "protocol: https, proxy_protocol: { trusted: [10.0.0.0/33] } }",
            ),
            "is not a network",
        ),
        (
            GOOD.replace("protocol: https }", "protocol: https, proxy_protocol: { trusted: [] } }"),
            "`proxy_protocol.trusted` is empty",
        ),
        (GOOD.replace("trusted_hops", "x").replace("names:", "name:"), "did you mean `names`?"),
        (host(&format!("min_tls: 1.1\n{routes}")), "1.1"),
    ];
    for (yaml, words) in cases {
        let error = verdict(&yaml).expect_err(&yaml);
        assert!(error.contains(words), "{error}\n  does not say: {words}\n{yaml}");
    }
}

#[test]
fn tls_versions_are_read_with_and_without_quotes() {
    for written in ["min_tls: \"1.2\"", "min_tls: 1.2"] {
        let yaml = GOOD.replace("      routes", &format!("      {written}\n      routes"));
        verdict(&yaml).unwrap_or_else(|e| panic!("{written}: {e}"));
    }
}

#[test]
fn names_are_lower_case_and_know_their_wildcard() {
    let name: HostName = "Shop.Example.COM".parse().unwrap();
    assert_eq!((name.as_str(), name.wildcard()), ("shop.example.com", None));
    let star: HostName = "*.Example.com".parse().unwrap();
    assert_eq!(star.wildcard(), Some("example.com"));
    for bad in
        ["", "*", "*.", "a..b", ".a.b", "a.b.", "-a.b", "a-.b", "a b", "a/b", "*a.b.c", "ä.example.com"]
    {
        bad.parse::<HostName>().expect_err(bad);
    }
}

#[test]
fn networks_hold_their_addresses_and_nothing_else() {
    let ten: Network = "10.0.0.0/8".parse().unwrap();
    assert!(ten.contains("10.255.0.1".parse().unwrap()));
    assert!(ten.contains("::ffff:10.0.0.1".parse().unwrap()));
    assert!(!ten.contains("11.0.0.1".parse().unwrap()));
    let one: Network = "192.0.2.7".parse().unwrap();
    assert!(one.contains("192.0.2.7".parse().unwrap()) && !one.contains("192.0.2.8".parse().unwrap()));
    for bad in ["10.1.2.3/8", "10.0.0.0/33", "", "any", "10.0.0.0/-1"] {
        bad.parse::<Network>().expect_err(bad);
    }
}
