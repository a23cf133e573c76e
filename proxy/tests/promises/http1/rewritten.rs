//! What is carried on has one spelling, which policy and app both get, and nothing in it that was meant for this hop or that
//! only a proxy may say.

use crate::support::eventually;
use crate::support::http::{HttpScene, end_of};

/// With a rule about paths, every path is spelled strictly.
const DENY: &str = r#"{"action":"DENY","rules":[
    {"to":[{"operation":{"paths":["/forbidden"]}}]},
    {"to":[{"operation":{"hosts":["secret.example"]}}]},
    {"when":[{"key":"request.headers[x-role]","values":["banned"]}]}]}"#;

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n")
}

/// The status of a GET whose path or whose host is the thing.
fn status(scene: &HttpScene, head: &str) -> u16 {
    scene.exchange(format!("{head}Connection: close\r\n\r\n").as_bytes()).status()
}

/// authorization.md §5 under a rule about paths; the word `forbidden` in the place of `admin` must be denied where the app
/// would get the denied path.
#[test]
fn policy_and_app_see_the_same_path() {
    let scene = HttpScene::new("", &[DENY]);
    for (sent, got) in [
        ("/admin", "/admin"),
        ("//admin", "/admin"),
        ("///admin", "/admin"),
        ("/a//b", "/a/b"),
        ("/./admin", "/admin"),
        ("/a/../admin", "/admin"),
        ("/a/%2e%2e/admin", "/admin"),
        ("/a/.%2E/admin", "/admin"),
        ("/../../admin", "/admin"),
        ("/a/b/../../..//admin", "/admin"),
        ("/admin?x", "/admin?x"),
        ("/a/../admin?x=/../y", "/admin?x=/../y"),
        ("/admin;x=1", "/admin;x=1"),
        ("/admin/;/x", "/admin/;/x"),
        ("/%252e%252e/admin", "/%252e%252e/admin"),
        ("/admin%23frag", "/admin%23frag"),
        ("/admin%3Fx", "/admin%3Fx"),
        ("/%c0%ae%c0%ae/admin", "/%c0%ae%c0%ae/admin"),
        ("/ADMIN", "/ADMIN"),
        ("/admin/", "/admin/"),
        ("/admin%0d%0aX:1", "/admin%0d%0aX:1"),
        ("http://a/x/../admin", "/admin"),
        ("http://a", "/"),
        ("http://a?q", "/?q"),
    ] {
        assert_eq!(scene.carries_head(&get(sent)).target(), got, "{sent}");
        let denied = got.split('?').next() == Some("/admin");
        let expected = if denied { 403 } else { 200 };
        let forbidden = sent.replace("admin", "forbidden");
        assert_eq!(status(&scene, &get(&forbidden)), expected, "{forbidden}");
    }
    assert_eq!(scene.carries_head(&get("/%61dmin")).target(), "/admin");
    assert_eq!(status(&scene, &get("/%66orbidden")), 403);
    for sent in [
        "/a%2fb",
        "/a%5Cb",
        "/a%2F..%2Fadmin",
        "/a%5c..%5cadmin",
        "/a\\..\\admin",
        "/a/..;/admin",
        "/admin%00",
        "/admin%",
        "/admin%zz",
        "/admin#frag",
        "/a b",
        "/a\tb",
        "/\u{e4}",
        "*",
        "admin",
        "?x",
    ] {
        scene.refuses(400, format!("{}\r\n", get(sent)).as_bytes());
    }
    scene.nothing_is_left();
}

/// authorization.md §5: without one, Istio's default.
#[test]
fn without_a_rule_about_paths_slashes_stay() {
    let scene = HttpScene::new("", &[]);
    for (sent, got) in [
        ("//admin", "//admin"),
        ("/a//b", "/a//b"),
        ("/a/%2e%2e/admin", "/admin"),
        ("/a%2fb", "/a%2fb"),
        ("/a%5Cb", "/a%5Cb"),
        ("/a%2F..%2Fadmin", "/a%2F..%2Fadmin"),
        ("/%61dmin", "/admin"),
        ("/a/b/../../..//admin", "//admin"),
        ("/admin;x=1", "/admin;x=1"),
    ] {
        assert_eq!(scene.carries_head(&get(sent)).target(), got, "{sent}");
    }
    for sent in ["/admin%00", "/a\\b", "*", "/admin#f"] {
        scene.refuses(400, format!("{}\r\n", get(sent)).as_bytes());
    }
}

/// Rows 40, and 5, 6 and 30 of the hostile inputs.
#[test]
fn one_host_is_judged_and_carried() {
    let scene = HttpScene::new("", &[DENY]);
    for host in
        ["secret.example", "SeCrEt.eXample", "secret.example:443", "secret.example.", "Secret.example.:80"]
    {
        assert_eq!(status(&scene, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n")), 403, "{host}");
        assert_eq!(status(&scene, &format!("GET http://{host}/ HTTP/1.1\r\nHost: a\r\n")), 403, "{host}");
        let heard = scene.carries_head(&format!("GET http://a:81/x HTTP/1.1\r\nHost: {host}\r\n"));
        assert_eq!((heard.target(), heard.values("host")), ("/x", vec!["a:81"]));
    }
    let heard = scene.carries_head("GET http://a/ HTTP/1.1\r\n");
    assert_eq!(heard.values("host"), ["a"], "an absolute target says it all");
    let heard = scene.carries_head("GET / HTTP/1.1\r\nhOsT: Shop.Example:8080\r\n");
    assert_eq!(heard.values("host"), ["Shop.Example:8080"]);
    let heard = scene.carries_head("OPTIONS * HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(heard.lines[0], "OPTIONS * HTTP/1.1");
}

/// Row 8 of the hostile inputs: a value is denied wherever it stands among several.
#[test]
fn a_denied_header_is_found_among_others() {
    let scene = HttpScene::new("", &[DENY]);
    for (roles, expected) in [
        ("x-role: ok\r\n", 200),
        ("x-role: banned\r\n", 403),
        ("x-role: ok\r\nx-role: banned\r\n", 403),
        ("X-Role: banned\r\nx-role: ok\r\n", 403),
        ("x-role: ok,banned\r\n", 403),
    ] {
        assert_eq!(status(&scene, &format!("GET / HTTP/1.1\r\nHost: a\r\n{roles}")), expected, "{roles}");
    }
    // One name that Connection removes is not there for the app, and is none for policy either.
    let heard = scene.carries_head("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-role\r\nx-role: banned\r\n");
    assert!(heard.values("x-role").is_empty());
}

/// Rows 39 and 44, and 11, 14, 15 of the hostile inputs.
#[test]
fn what_ends_at_this_hop_and_what_only_a_proxy_may_say_is_gone() {
    let scene = HttpScene::new("", &[]);
    let heard = scene.carries(
        b"GET /x HTTP/1.1\r\nHost: a\r\n\
        Connection: keep-alive, close, X-Own, traceparent\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nProxy-Authenticate: Basic\r\n\
        TE: trailers, deflate;q=0.5\r\nUpgrade: websocket\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\
        X-Postern-Peer: me\r\nx_postern_peer: me\r\nx-Postern_denial: me\r\nx-kept: 1\r\nX_Kept: 2\r\n\r\n",
    );
    for name in [
        "connection",
        "x-own",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "upgrade",
        "http2-settings",
        "transfer-encoding",
        "x-postern-peer",
        "x_postern_peer",
        "x-postern_denial",
    ] {
        assert!(heard.values(name).is_empty(), "{name}: {heard:?}");
    }
    for (name, value) in [("te", "trailers"), ("x-kept", "1"), ("x_kept", "2"), ("host", "a")] {
        assert_eq!(heard.values(name), [value]);
    }
    // Our own are there, whatever Connection names.
    assert_eq!((heard.values("traceparent").len(), heard.values("x-request-id").len()), (1, 1));

    let heard =
        scene.carries_head("GET /x HTTP/1.1\r\nHost: a\r\nTE: gzip\r\nX-Envoy-Original-Path: /EVILMARK\r\n");
    assert!(heard.values("te").is_empty());
    assert!(!scene.proxy.log().concat().contains("EVILMARK"), "a path that the client claims is none");
}

/// Row 44: no way leads from a judged request to requests that nobody judges.
#[test]
fn an_offer_of_http2_is_not_passed_on() {
    let scene = HttpScene::new("", &[]);
    for offer in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: upgrade\r\nUpgrade: H2C\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: upgrade\r\nUpgrade: websocket ,\th2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n",
    ] {
        let heard = scene.carries_head(&format!("GET /x HTTP/1.1\r\nHost: a\r\n{offer}"));
        let passed = heard.values("upgrade").join(",").to_ascii_lowercase();
        assert!(!passed.contains("h2c") && !passed.contains("http"), "{offer:?}: {heard:?}");
        assert!(heard.values("http2-settings").is_empty(), "{offer:?}: {heard:?}");
    }
}

/// Row 44, and 28 of the hostile inputs: until the app agrees, what follows is the next request or nothing.
#[test]
fn what_is_sent_behind_an_offer_to_switch_is_no_tunnel_before_the_app_agrees() {
    let scene = HttpScene::new("", &[]);
    let offer = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let before = scene.heard().len();
    let answer = scene.exchange(format!("{offer}EVILMARK early data\r\n\r\n").as_bytes());
    assert_eq!((answer.status(), answer.count()), (200, 2), "{answer:?}");
    assert!(answer.text.contains("HTTP/1.1 400 "), "{answer:?}");
    let heard = scene.heard().split_off(before);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(
        (heard[0].values("upgrade"), heard[0].values("connection")),
        (vec!["websocket"], vec!["upgrade"])
    );
    scene.works();
    scene.nothing_is_left();
}

#[test]
fn what_is_sent_behind_an_offer_goes_to_policy_as_a_request_of_its_own() {
    let scene = HttpScene::new("", &[DENY]);
    let answer = scene.exchange(
        b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\
        GET /forbidden HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(answer.count(), 2, "{answer:?}");
    assert!(answer.text.contains("HTTP/1.1 403 "), "{answer:?}");
    assert!(!scene.heard().iter().any(|h| h.target() == "/forbidden"));
}

/// Row 33: a body is one also where nobody expects it.
#[test]
fn a_body_stays_a_body_whatever_the_method() {
    let scene = HttpScene::new("", &[]);
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    for method in ["GET", "OPTIONS", "DELETE"] {
        let plain = format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        );
        assert_eq!(scene.carries(plain.as_bytes()).body, hidden.as_bytes(), "{method}");
        let chunked = format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n{:x};e=\"1\"\r\n{hidden}\r\n0\r\n\r\n",
            hidden.len()
        );
        assert_eq!(scene.carries(chunked.as_bytes()).body, hidden.as_bytes(), "{method}, in chunks");
    }
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let scene = HttpScene::new("", &[DENY]);
    let mut client = scene.connect();
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n").unwrap();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(client.receive(interim.len()), interim);
    client.send(b"hello").unwrap();
    assert_eq!(end_of(client).status(), 200);
    let heard = eventually("the request", || scene.heard().pop().filter(|h| h.target() == "/x"));
    assert_eq!((heard.body.as_slice(), heard.complete), (&b"hello"[..], true));

    // Who is denied is not asked for more.
    let mut client = scene.connect();
    client
        .send(b"POST /forbidden HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    let answer = end_of(client);
    assert_eq!((answer.status(), answer.count()), (403, 1), "{answer:?}");
}
