//! `x-forwarded-client-cert`: the app learns from this proxy who called, and from nobody else unless it is configured so.

use aws_lc_rs::digest::{SHA256, digest};

use crate::support::http::{Answer, HttpScene};
use crate::support::mesh::{PEER, PROXY};

const NAME: &str = "x-forwarded-client-cert";
/// Two that a client may claim to have come through.
const ONE: &str = "By=spiffe://a.example/one;URI=spiffe://a.example/two";
const TWO: &str = "By=spiffe://b.example/one;URI=spiffe://b.example/two";
/// Plain text needs a policy that names nobody.
const EVERYBODY: &str = r#"{"rules":[{}]}"#;

/// The honest peer's own element (authorization.md §2).
fn own(scene: &HttpScene) -> String {
    let hash = digest(&SHA256, &scene.honest.chain[0]);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("By={PROXY};Hash={hash};Subject=\"\";URI={PEER}")
}

/// Every spelling of the header that a CGI-like app could take for it.
fn spellings(header: &str) -> bool {
    header.to_ascii_lowercase().replace('_', "-") == NAME
}

/// What the app gets under any spelling, trailers included.
fn told(scene: &HttpScene, answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status(), 200, "{answer:?}");
    let heard = scene.heard().pop().unwrap();
    let lines = heard.lines[1..].iter().chain(&heard.trailers).filter_map(|line| line.split_once(": "));
    lines.filter(|(name, _)| spellings(name)).map(|(_, value)| value.to_owned()).collect()
}

fn request(headers: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

/// Row 39, 8 and 15 of the hostile inputs, and authorization.md §7.
#[test]
fn whatever_a_client_claims_the_app_is_told_once_who_it_is() {
    let scene = HttpScene::new("", &[]);
    let own = own(&scene);
    for claim in [
        "",
        "x-forwarded-client-cert: {}\r\n",
        "X-Forwarded-Client-Cert: {}\r\n",
        "X-FORWARDED-CLIENT-CERT:{}\r\n",
        "x_forwarded_client_cert: {}\r\n",
        "X-Forwarded_Client-Cert: {}\r\n",
        "x_Forwarded-client_CERT: {}\r\n",
        "x-forwarded-client-cert: {}\r\nX-Forwarded-Client-Cert: {}\r\nx_forwarded_client_cert: {}\r\n",
        "Connection: x-forwarded-client-cert\r\nx-forwarded-client-cert: {}\r\n",
        "Connection: X_Forwarded_Client_Cert\r\nx_forwarded_client_cert: {}\r\n",
        "Connection: x-forwarded-client-cert\r\n",
    ] {
        let claim = claim.replace("{}", ONE);
        assert_eq!(told(&scene, &scene.exchange(&request(&claim))), [own.as_str()], "{claim}");
    }
    let in_trailers = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\n\
        Trailer: x-forwarded-client-cert, x_forwarded_client_cert, x-postern-peer, x-sum\r\n\
        Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\
        x-forwarded-client-cert: {ONE}\r\nx_forwarded_client_cert: {ONE}\r\nx-postern-peer: me\r\nx-sum: 1\r\n\r\n"
    );
    assert_eq!(told(&scene, &scene.exchange(in_trailers.as_bytes())), [own]);
    let heard = scene.heard().pop().unwrap();
    assert_eq!((heard.body.as_slice(), heard.trailers), (&b"hi"[..], vec!["x-sum: 1".to_owned()]));
    scene.nothing_is_left();
}

/// The table of authorization.md §2; what comes under another spelling is gone in every mode.
#[test]
fn the_five_modes_tell_what_they_promise() {
    for mode in ["sanitize", "forward_only", "append_forward", "sanitize_set", "always_forward_only"] {
        let scene = HttpScene::new(&format!("http: {{ xfcc: {{ mode: {mode} }} }}"), &[EVERYBODY]);
        let own = own(&scene);
        let one = format!("{NAME}: {ONE}\r\nx_forwarded_client_cert: {TWO}\r\n");
        let two = format!("{NAME}: {ONE}\r\nX-Forwarded-Client-Cert: {TWO}\r\n");
        let joined = format!("{ONE},{TWO}");
        // Over mTLS: with one, with two, with none; in plain text: with one, with none.
        let expected: [Option<String>; 5] = match mode {
            "sanitize" => [const { None }; 5],
            "forward_only" => [Some(ONE.to_owned()), Some(joined), None, None, None],
            "append_forward" => {
                [Some(format!("{ONE},{own}")), Some(format!("{joined},{own}")), Some(own), None, None]
            }
            "sanitize_set" => [Some(own.clone()), Some(own.clone()), Some(own), None, None],
            _ => [Some(ONE.to_owned()), Some(joined), None, Some(ONE.to_owned()), None],
        };
        let got = [
            told(&scene, &scene.exchange(&request(&one))),
            told(&scene, &scene.exchange(&request(&two))),
            told(&scene, &scene.exchange(&request(""))),
            told(&scene, &scene.exchange_plain(&request(&one))),
            told(&scene, &scene.exchange_plain(&request(""))),
        ];
        assert_eq!(got, expected.map(|value| value.into_iter().collect::<Vec<_>>()), "{mode}");
    }
}
