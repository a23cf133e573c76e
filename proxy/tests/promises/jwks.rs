//! An issuer's keys are fetched over TLS, kept while a fetch fails, replaced when they change, and from nowhere else.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use postern_config::file::jwt::{JwtProvider, JwtRule};
use postern_proxy::jwt::metrics::JwtMetrics;
use postern_proxy::jwt::refresh::{self, Pace};
use postern_proxy::jwt::{Jwt, Reason, Rule};
use postern_proxy::snapshot::Snapshots;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;
use crate::support::issuer::{self, AUDIENCE, ISSUER, Key, claims, token};
use crate::support::web::{Web, answer};

/// Keys being refreshed on a thread of their own, as in the proxy.
struct Scene {
    jwt: Arc<Jwt>,
    rule: Rule,
    registry: Registry,
    snapshots: Arc<Snapshots>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Scene {
    fn start(jwks: &str) -> Self {
        let yaml = format!("name: one\nissuer: {ISSUER}\naudiences: [{AUDIENCE}]\njwks: {jwks}");
        let config: Vec<JwtProvider> = vec![postern_config::file::parse(&yaml).unwrap()];
        postern_config::file::jwt::check("jwt.providers", &config).unwrap();
        let mut registry = Registry::default();
        let jwt = Arc::new(Jwt::new(&config, &JwtMetrics::register(&mut registry)));
        let rule = jwt.rule(&JwtRule { providers: vec!["one".to_owned()], required: false });
        let (snapshots, stop) = (Arc::new(Snapshots::default()), CancellationToken::new());
        let thread = std::thread::spawn({
            let (jwt, snapshots, stop) = (Arc::clone(&jwt), Arc::clone(&snapshots), stop.clone());
            let pace = Pace { unknown_key: Duration::from_millis(1), first_retry: Duration::from_millis(1) };
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(refresh::run(&jwt, &config, pace, &snapshots, stop));
            }
        });
        Self { jwt, rule, registry, snapshots, stop, thread: Some(thread) }
    }

    fn from(web: &Web) -> Self {
        Self::start(&jwks(web, "localhost", "allow_loopback: true"))
    }

    fn bearer(&self, token: &str) -> Result<String, Reason> {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
        let admitted = self.rule.admit(&headers, None, self.snapshots.clock.now_ms());
        admitted.map(|a| a.unwrap().token.subject).map_err(|refusal| refusal.reason)
    }

    /// Fetches that ended so.
    fn fetches(&self, result: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let series = format!("jwks_fetches_total{{provider=\"one\",result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }

    #[track_caller]
    fn never_gets_keys(&self, good: &str) {
        eventually("three failures", || (self.fetches("failed") >= 3).then_some(()));
        assert_eq!(self.fetches("ok"), 0);
        assert_eq!(self.bearer(good), Err(Reason::KeysUnavailable));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
        assert_eq!(self.jwt.providers()[0].name(), "one");
    }
}

fn jwks(web: &Web, host: &str, more: &str) -> String {
    let (port, ca) = (web.address().port(), web.ca());
    format!("{{ url: \"https://{host}:{port}/keys?v=1\", ca: {}, {more} }}", ca.display())
}

fn keys(keys: &[(&Key, &str)]) -> Vec<u8> {
    let keys: Vec<_> = keys.iter().map(|(key, kid)| key.jwk(kid)).collect();
    answer("200 OK", "Content-Type: application/jwk-set+json\r\n", issuer::set(&keys).as_bytes())
}

#[test]
fn keys_are_fetched_and_a_token_by_a_new_key_has_them_fetched_again() {
    let (old, new) = (Key::p256(), Key::ed25519());
    let (first, second) = (keys(&[(&old, "old")]), keys(&[(&new, "new")]));
    let web = Web::start(move |_| first.clone());
    let scene = Scene::from(&web);
    let (by_old, by_new) = (token(&old, "old", &claims()), token(&new, "new", &claims()));
    eventually("the first keys", || scene.bearer(&by_old).ok());
    assert_eq!(scene.bearer(&by_new), Err(Reason::UnknownKey), "refused at once");
    let head = web.requests()[0].clone();
    assert!(head.starts_with("GET /keys?v=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: localhost:{}\r\n", web.address().port())), "{head}");
    assert!(head.contains("\r\naccept-encoding: identity\r\n"), "{head}");

    web.answer(move |_| second.clone());
    eventually("the new key", || scene.bearer(&by_new).ok());
    assert_eq!(scene.bearer(&by_old), Err(Reason::UnknownKey), "a key that is taken back is not believed");
}

#[test]
fn a_rotated_key_without_an_id_is_found_too() {
    let (old, new) = (Key::p256(), Key::p256());
    let (first, second) = (keys(&[(&old, "")]), keys(&[(&new, "")]));
    let web = Web::start(move |_| first.clone());
    let scene = Scene::from(&web);
    eventually("the first keys", || scene.bearer(&token(&old, "", &claims())).ok());
    web.answer(move |_| second.clone());
    eventually("the new key", || scene.bearer(&token(&new, "", &claims())).ok());
}

#[test]
fn good_tokens_and_forged_ones_cause_no_fetch() {
    let key = Key::p256();
    let set = keys(&[(&key, "k")]);
    let web = Web::start(move |_| set.clone());
    let scene = Scene::from(&web);
    let (good, forged) = (token(&key, "k", &claims()), token(&Key::p256(), "k", &claims()));
    eventually("the keys", || scene.bearer(&good).ok());
    for _ in 0..50 {
        assert_eq!(scene.bearer(&good), Ok("alice".to_owned()));
        assert_eq!(scene.bearer(&forged), Err(Reason::BadSignature));
    }
    // The next fetch shows that none was under way: an unknown key asks for it.
    assert_eq!(scene.fetches("ok"), 1);
    assert_eq!(scene.bearer(&token(&key, "other", &claims())), Err(Reason::UnknownKey));
    eventually("the fetch", || (scene.fetches("ok") == 2).then_some(()));
    assert_eq!(web.requests().len(), 2);
}

#[test]
fn an_issuer_that_is_down_at_start_is_nobodys_issuer_until_it_answers() {
    let key = Key::p256();
    let web = Web::start(|_| answer("503 Service Unavailable", "", b"{}"));
    let scene = Scene::from(&web);
    let good = token(&key, "k", &claims());
    scene.never_gets_keys(&good);
    let set = keys(&[(&key, "k")]);
    web.answer(move |_| set.clone());
    eventually("the keys", || scene.bearer(&good).ok());
}

#[test]
fn the_last_good_keys_are_kept_while_a_fetch_fails() {
    let key = Key::p256();
    let set = keys(&[(&key, "k")]);
    let again = set.clone();
    let web = Web::start(move |_| set.clone());
    let scene = Scene::from(&web);
    let good = token(&key, "k", &claims());
    eventually("the keys", || scene.bearer(&good).ok());
    let broken: Vec<Vec<u8>> = vec![
        answer("500 Internal Server Error", "", &again),
        answer("200 OK", "", b"<html>login</html>"),
        answer("200 OK", "", b"{\"keys\":7}"),
        b"nonsense\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"keys\":[]}".to_vec(),
    ];
    for broken in broken {
        let before = scene.fetches("failed");
        let said = String::from_utf8_lossy(&broken[..20.min(broken.len())]).into_owned();
        web.answer(move |_| broken.clone());
        eventually("a failure", || {
            assert_eq!(scene.bearer(&good), Ok("alice".to_owned()), "{said}");
            let _ = scene.bearer(&token(&key, "unknown", &claims()));
            (scene.fetches("failed") > before).then_some(())
        });
    }
}

#[test]
fn a_redirect_is_followed_nowhere() {
    let key = Key::p256();
    let set = keys(&[(&key, "k")]);
    let elsewhere = Web::start(move |_| set.clone());
    let port = elsewhere.address().port();
    for to in
        ["http://169.254.169.254/latest/meta-data/", "/keys2", &format!("https://localhost:{port}/keys")]
    {
        let location = format!("Location: {to}\r\n");
        for status in
            ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
        {
            let (status, location) = (status.to_owned(), location.clone());
            let web = Web::start(move |_| answer(&status, &location, b"{\"keys\":[]}"));
            Scene::from(&web).never_gets_keys(&token(&key, "k", &claims()));
            let asked = web.requests();
            assert!(
                !asked.is_empty() && asked.iter().all(|head| head.starts_with("GET /keys?v=1 ")),
                "{asked:?}"
            );
        }
    }
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn an_answer_without_end_or_compressed_is_not_taken() {
    let key = Key::p256();
    let padded = |padding: usize| {
        let set = json!({ "keys": [key.jwk("k")], "padding": "p".repeat(padding) }).to_string();
        answer("200 OK", "", set.as_bytes())
    };
    let good = token(&key, "k", &claims());
    let fits = padded(900_000);
    let web = Web::start(move |_| fits.clone());
    let scene = Scene::from(&web);
    eventually("the keys", || scene.bearer(&good).ok());

    let too_large = padded(1024 * 1024);
    let chunked = [
        &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        &format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(20).into_bytes(),
    ]
    .concat();
    let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000)).into_bytes();
    let gzip = answer("200 OK", "Content-Encoding: gzip\r\n", issuer::set(&[key.jwk("k")]).as_bytes());
    for bad in [too_large, chunked, head, gzip] {
        let web = Web::start(move |_| bad.clone());
        Scene::from(&web).never_gets_keys(&good);
    }
}

#[test]
fn only_a_server_that_the_given_ca_vouches_for_under_its_name_is_asked() {
    let key = Key::p256();
    let good = token(&key, "k", &claims());
    let set = keys(&[(&key, "k")]);
    let (web, other) = (Web::start(move |_| set.clone()), Web::start(|_| Vec::new()));
    let port = web.address().port();
    let other_ca = format!(
        "{{ url: \"https://localhost:{port}/\", ca: {}, allow_loopback: true }}",
        other.ca().display()
    );
    let other_name = jwks(&web, "127.0.0.2", "allow_loopback: true");
    let host_store = format!("{{ url: \"https://localhost:{port}/\", allow_loopback: true }}");
    let no_ca = format!("{{ url: \"https://localhost:{port}/\", ca: /nowhere.pem, allow_loopback: true }}");
    for jwks in [other_ca, other_name, host_store, no_ca] {
        Scene::start(&jwks).never_gets_keys(&good);
    }
    assert!(web.requests().is_empty());
}

#[test]
fn loopback_is_refused_unless_it_is_allowed() {
    let key = Key::p256();
    let set = keys(&[(&key, "k")]);
    let web = Web::start(move |_| set.clone());
    for host in ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]"] {
        Scene::start(&jwks(&web, host, "")).never_gets_keys(&token(&key, "k", &claims()));
    }
    assert!(web.requests().is_empty());
    let scene = Scene::start(&jwks(&web, "127.0.0.1", "allow_loopback: true"));
    eventually("the keys", || scene.bearer(&token(&key, "k", &claims())).ok());
}

#[test]
fn keys_can_come_from_a_file_that_is_read_again() {
    let (old, new) = (Key::p256(), Key::p256());
    let dir = crate::support::mesh::Directory::new();
    let set = |key: &Key, kid: &str| issuer::set(&[key.jwk(kid)]);
    let path = dir.write("keys.json", &set(&old, "old"));
    let scene = Scene::start(&format!("{{ file: {} }}", path.display()));
    eventually("the first keys", || scene.bearer(&token(&old, "old", &claims())).ok());
    dir.write("keys.json", &set(&new, "new"));
    eventually("the new key", || scene.bearer(&token(&new, "new", &claims())).ok());
}
