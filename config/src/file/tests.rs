//! Mistakes in files: where, what, and what to write instead.

mod http;

use super::control::ControlConfig;
use super::proxy::ProxyConfig;
use super::{FileError, MAX_FILE, Span, load, parse, parse_stream, suggest};

fn mistake(text: &str) -> String {
    parse::<ProxyConfig>(text).expect_err(text).to_string()
}

fn check(text: &str) -> String {
    parse::<ProxyConfig>(text).unwrap().check().expect_err(text).to_string()
}

#[test]
fn a_mistake_has_its_line_and_column_and_a_cure() {
    for (text, expected) in [
        (
            "inbound:\n  - listen: 0.0.0.0:1\n    app: a:1\n    protocl: tcp\n",
            "4:5  error: unknown field `protocl`; did you mean `protocol`?",
        ),
        (
            "inbound: [{ listen: \"0.0.0.0:1\", app: \"a:1\", protocol: tpc }]\n",
            "1:56  error: unknown value `tpc`; did you mean `tcp`?",
        ),
        (
            "certificates: {}\n",
            "1:1  error: unknown field `certificates`; known here: `mode`, `control`, `identity`, `inbound`, `outbound`, `gateway`, `limits`, `metrics`, `admin`, `handover`, `log`, `otlp`, `drain`, `http`, `workers`",
        ),
        (
            "inbound:\n  - listen: 0.0.0.0:99999\n    app: a:1\n",
            "2:13  error: not an address; write `ip:port`, such as 127.0.0.1:8080",
        ),
        ("inbound:\n  - app: a:1\n", "2:5  error: missing field `listen`"),
        (
            "limits:\n  idle_timeout: 5 minutes\n",
            "2:17  error: \"5 minutes\" is not a length of time; write a number and a unit, such as 500ms, 10s, 5m, 1h or 7d",
        ),
        ("inbound: [\n", "1:10  error: unclosed bracket '['"),
        ("limits:\n  connections: -1\n", "2:16  error: invalid u64"),
        (
            "limits:\n  connections: 1\n  connections: 2\n",
            "3:3  error: duplicate mapping key `connections` is not allowed here",
        ),
        ("workers: 1\n---\nworkers: 2\n", "3:1  error: a second document begins here; this file holds one"),
        (
            "outbound:\n  - listen: 127.0.0.1:1\n    connect: a:1\n    identity: spiffe://corp.example/ns/shop/\n",
            "4:15  error: \"spiffe://corp.example/ns/shop/\" is not a SPIFFE ID: the path ends in `/`  (SPIFFE-ID §2.2)",
        ),
    ] {
        assert_eq!(mistake(text), expected, "{text}");
    }
}

#[test]
fn a_file_is_named_in_its_mistakes() {
    let folder = std::env::temp_dir().join(format!("postern-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("proxy.yaml");
    let name = path.display();

    std::fs::write(&path, "workers: 2\ninbund: []\n").unwrap();
    let error = load::<ProxyConfig>(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{name}:2:1  error: unknown field `inbund`; did you mean `inbound`?")
    );

    std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
    let error = load::<ProxyConfig>(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("{name}: larger than 8 MiB"));

    std::fs::write(&path, [b'#', 0xff, b'\n']).unwrap();
    assert!(matches!(load::<ProxyConfig>(&path), Err(FileError::Io { .. })), "not UTF-8");

    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(load::<ProxyConfig>(&path), Err(FileError::Io { .. })), "not there");
}

#[test]
fn a_file_of_exactly_the_limit_is_read() {
    let path = std::env::temp_dir().join(format!("postern-config-limit-{}", std::process::id()));
    let mut text = String::from("workers: 3\n");
    text.extend(std::iter::repeat_n("#\n", (MAX_FILE as usize - text.len()) / 2));
    text.push_str(&"#".repeat(MAX_FILE as usize - text.len()));
    std::fs::write(&path, &text).unwrap();
    let config: Result<ProxyConfig, _> = load(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(config.unwrap().workers, 3);
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..10 {
        let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
        bomb += &format!("a{i}: &a{i} [{aliases}]\n");
    }
    let error = parse::<serde_json::Value>(&bomb).unwrap_err();
    assert!(error.message().starts_with("YAML document too large or too complex"), "{error}");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse::<serde_json::Value>(&deep).is_err());
}

#[test]
fn what_a_file_says_cannot_reach_the_terminal() {
    let error = mistake("\"\\e[31m\\a\": 1\n");
    assert!(!error.contains(['\u{1b}', '\u{7}']), "{error:?}");
    assert!(error.contains("\\u{1b}[31m"), "{error}");
}

#[test]
fn every_document_of_a_stream_is_read() {
    let read = parse_stream::<ProxyConfig>("workers: 1\n---\n# nothing\n---\nworkers: 2\n").unwrap();
    assert_eq!(read.iter().map(|c| c.workers).collect::<Vec<_>>(), [1, 2]);
    let error = parse_stream::<ProxyConfig>("workers: 1\n---\nworkerz: 2\n").unwrap_err();
    assert_eq!(error.to_string(), "3:1  error: unknown field `workerz`; did you mean `workers`?");
    assert_eq!(error.place(), Some((3, 1)));
}

#[test]
fn only_a_slip_of_the_fingers_is_a_suggestion() {
    let known = ["listen", "app", "protocol", "announce"];
    for (written, near) in [
        ("lisen", "listen"),
        ("Listen", "listen"),
        ("ap", "app"),
        ("protokoll", "protocol"),
        ("anounce", "announce"),
    ] {
        let expected = format!("unknown field `{written}`; did you mean `{near}`?");
        assert_eq!(suggest::unknown("field", written, &known), expected);
    }
    for far in ["x", "address", "tls", ""] {
        let expected = format!("unknown field `{far}`; known here: `listen`, `app`, `protocol`, `announce`");
        assert_eq!(suggest::unknown("field", far, &known), expected);
    }
}

#[test]
fn spans_read_and_print() {
    for (text, ms, printed) in [
        ("0d", 0, "0s"),
        ("1ms", 1, "1ms"),
        ("1000ms", 1000, "1s"),
        ("90s", 90_000, "90s"),
        ("120m", 7_200_000, "2h"),
        ("48h", 172_800_000, "2d"),
        ("7d", 604_800_000, "7d"),
    ] {
        let span: Span = text.parse().unwrap();
        assert_eq!(span, Span::from_millis(ms), "{text}");
        assert_eq!(span.to_string(), printed, "{text}");
        assert_eq!(printed.parse::<Span>().unwrap(), span, "{text}");
    }
    for bad in [
        "",
        "s",
        "10",
        "1.5h",
        "-1s",
        " 1s",
        "1 s",
        "1S",
        "1w",
        "1h30m",
        "99999999999999999999s",
        "18446744073709551615d",
    ] {
        assert!(bad.parse::<Span>().is_err(), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn every_span_reads_back(ms in 0..u64::MAX) {
        let span = Span::from_millis(ms);
        proptest::prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
    }
}

#[test]
fn a_proxy_file_that_makes_no_sense_says_why() {
    let inbound = "inbound: [{ listen: \"10.0.0.1:1\", app: \"a:1\" }]\n";
    for (text, expected) in [
        (String::new(), "config: nothing to do: give at least one `inbound` or `outbound` listener"),
        (format!("{inbound}control: {{ address: nowhere }}"), "control.address: write it as `host:port`"),
        (inbound.replace("a:1", "a"), "inbound[0]: `app` is not `host:port`"),
        (inbound.replace("a:1", "a:0"), "inbound[0]: `app` is not `host:port`"),
        (
            inbound.replace(" }]", ", announce: { service: \"a b\" } }]"),
            "inbound[0]: service name \"a b\": use letters, digits, `.`, `-` and `_`, at most 253 bytes",
        ),
        (
            inbound.replace(" }]", ", announce: { service: a, address: b } }]"),
            "inbound[0]: `announce.address` is not `host:port`",
        ),
        (
            inbound.replace("10.0.0.1", "[::]").replace(" }]", ", announce: { service: a } }]"),
            "inbound[0]: listens on every address: say in `announce.address` which one peers reach",
        ),
        (
            format!("{inbound}outbound: [{{ listen: \"10.0.0.1:1\", service: a }}]"),
            "outbound[0]: 10.0.0.1:1 is taken by inbound[0]",
        ),
        (inbound.replace("10.0.0.1:1", "0.0.0.0:15020"), "inbound[0]: 0.0.0.0:15020 is taken by metrics"),
        (
            format!("{inbound}identity: {{ ttl: 0s }}"),
            "identity.ttl: a certificate that lives for 0s serves nobody",
        ),
        (
            format!("{inbound}limits: {{ handshakes_in_progress: 0 }}"),
            "limits.connections, handshakes_in_progress, handshakes_per_source: 0 would admit nobody",
        ),
        (
            format!("{inbound}limits: {{ handshakes_in_progress: 10, handshakes_per_source: 11 }}"),
            "limits.handshakes_per_source: is greater than handshakes_in_progress",
        ),
        (
            format!("{inbound}limits: {{ handshake_timeout: 11s }}"),
            "limits.handshake_timeout: must lie between 1ms and 10s",
        ),
        (
            format!("{inbound}limits: {{ handshake_timeout: 0s }}"),
            "limits.handshake_timeout: must lie between 1ms and 10s",
        ),
        (
            format!("{inbound}limits: {{ idle_timeout: 0s }}"),
            "limits.connect_timeout, idle_timeout: 0s would end every connection at once",
        ),
    ] {
        assert_eq!(check(&text), expected, "{text}");
    }
    for (fields, expected) in [
        ("connect: \"a:1\"", "outbound[0]: `connect` needs `identity`: who must answer there?"),
        ("connect: a, identity: \"spiffe://a/b\"", "outbound[0]: `connect` is not `host:port`"),
        ("identity: \"spiffe://a/b\"", "outbound[0]: give either `service`, or `connect` with `identity`"),
        ("service: a, connect: \"a:1\"", "outbound[0]: give either `service`, or `connect` with `identity`"),
        (
            "service: \"\"",
            "outbound[0]: service name \"\": use letters, digits, `.`, `-` and `_`, at most 253 bytes",
        ),
    ] {
        assert_eq!(check(&format!("outbound: [{{ listen: \"127.0.0.1:1\", {fields} }}]")), expected);
    }
    let free = "inbound: [{ listen: \"127.0.0.1:0\", app: \"a:1\" }]\noutbound: [{ listen: \"127.0.0.1:0\", service: a }]";
    assert_eq!(parse::<ProxyConfig>(free).unwrap().check(), Ok(()), "port 0 is a free one each time");
}

#[test]
fn a_control_file_that_makes_no_sense_says_why() {
    let check =
        |text: &str| parse::<ControlConfig>(text).unwrap().check().map_err(|e| e.message().to_owned());
    assert_eq!(check("{}"), Ok(()));
    for (text, part) in [
        ("advertise: nowhere", "advertise: \"nowhere\" is not `host:port`"),
        ("svid: { ttl: 2h, max_ttl: 1h }", "svid: min_ttl"),
        ("svid: { min_ttl: 0s }", "svid: min_ttl"),
        ("svid: { max_ttl: 24h }\nca: { issuing_ttl: 47h }", "svid.max_ttl (1d) is more than half"),
        ("ca: { root_ttl: 6d }", "ca.issuing_ttl is longer than ca.root_ttl"),
    ] {
        let error = check(text).expect_err(text);
        assert!(error.starts_with(part), "{text}: {error}");
    }
}

#[test]
fn host_and_port() {
    for good in ["a:1", "pay.shop.svc:65535", "10.0.0.1:80", "[::1]:443", "a_b-c:1"] {
        assert!(crate::service::is_host_port(good), "{good}");
    }
    for bad in [
        "", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "::1:443", "[::1]", "[::1:443", "[a]:1", "a b:1",
        "u@a:1", "a:1:2", "é:1",
    ] {
        assert!(!crate::service::is_host_port(bad), "{bad}");
    }
}
