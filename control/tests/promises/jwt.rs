//! JWT-SVIDs: for whom they are signed, what they say, and how their keys come and go.

use std::os::unix::fs::PermissionsExt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::jwt_svid::{JwtSvid, JwtSvidError, validate};
use postern_config::wire::v1;
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Connection, Control, LONG, Svid, TD, enrolled, failed, serve};
use crate::watching::Watch;

pub(crate) async fn fetch(
    connection: &mut Connection,
    audiences: &[&str],
    ttl_ms: u64,
) -> Result<v1::FetchJwtSvidResponse, tonic::Status> {
    let audiences = audiences.iter().map(ToString::to_string).collect();
    let request = v1::FetchJwtSvidRequest { audiences, ttl_ms };
    connection.client.fetch_jwt_svid(request).await.map(tonic::Response::into_inner)
}

/// A workload's connection, and the bundle that it was pushed.
pub(crate) async fn workload(control: &Control, path: &str) -> (Connection, TrustBundle) {
    let (join, svid) = enrolled(control, path, &[]).await;
    let mut watch = Watch::open(control, &join, &svid).await.unwrap();
    let bundle = pushed(&watch.next().await.unwrap());
    (Connection::to(control, &join, Some(&svid)).await, bundle)
}

fn pushed(message: &v1::WatchResponse) -> TrustBundle {
    let set = BundleSet::try_from(message.bundles.as_ref().expect("bundles")).unwrap();
    TrustBundle::clone(set.of(TD).unwrap())
}

pub(crate) fn judge(token: &str, audience: &str, bundle: &TrustBundle) -> Result<JwtSvid, JwtSvidError> {
    let bundles: BundleSet = [bundle.clone()].into_iter().collect();
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    validate(token, audience, &bundles, now(), algorithms)
}

pub(crate) fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

fn part(token: &str, at: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_workload_gets_tokens_for_itself_alone() {
    let control = Control::start();
    let (mut web, bundle) = workload(&control, "/ns/shop/sa/web").await;
    let answer = fetch(&mut web, &["https://api.example", "", "https://api.example"], 0).await.unwrap();
    assert_eq!(bundle.jwt_keys().len(), 1);
    let kid = bundle.jwt_keys()[0].kid();
    // J-2, J-4, J-13, J-14: no other member in the header, integers, neither `iss` nor `jti` unless configured.
    assert_eq!(part(&answer.token, 0), json!({ "alg": "ES256", "kid": kid, "typ": "JWT" }));
    let claims = part(&answer.token, 1);
    let names: Vec<&String> = claims.as_object().unwrap().keys().collect();
    assert_eq!(names, ["aud", "exp", "iat", "sub"]);
    assert_eq!(
        claims["aud"],
        json!(["https://api.example"]),
        "said twice, and empty ones, count once and not at all"
    );
    let (issued, ends) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
    assert_eq!(ends - issued, 300);
    assert_eq!(answer.expires_at_ms, ends * 1000);
    let svid = judge(&answer.token, "https://api.example", &bundle).unwrap();
    assert_eq!(svid.id.as_str(), format!("spiffe://{TD}/ns/shop/sa/web"));
    assert_eq!(judge(&answer.token, "https://other.example", &bundle), Err(JwtSvidError::Audience));

    // A wish for a lifetime is bounded on both sides.
    for (wish, lives) in [(1_000, 1), (60_000, 60), (1, 1), (u64::MAX, 3600)] {
        let claims = part(&fetch(&mut web, &["a"], wish).await.unwrap().token, 1);
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), lives, "{wish}");
    }
    // J-7, W-11: for nobody there is no token.
    let long = "a".repeat(513);
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for audiences in [&[][..], &[""], &[&long], &["a\n"], &many] {
        let refused = fetch(&mut web, audiences, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audiences:?}: {refused}");
    }
    assert_eq!(control.issued("jwt"), 5);
    assert!(control.refusals("jwt").iter().all(|reason| reason == "audience"));

    // Without a certificate nobody gets one; what operators see of it is never the token.
    let join = control.token("/b", &[]);
    let mut stranger = Connection::to(&control, &join, None).await;
    assert_eq!(fetch(&mut stranger, &["a"], 0).await.unwrap_err().code(), Code::Unauthenticated);
    let records = control.json(&["audit", "--last", "1000"]).to_string();
    let signature = answer.token.rsplit('.').next().unwrap();
    assert!(records.contains(kid) && !records.contains(signature) && !records.contains("eyJ"));
}

#[tokio::test]
async fn a_revoked_workload_gets_no_token() {
    let control = Control::start();
    let (mut web, _) = workload(&control, "/a").await;
    fetch(&mut web, &["a"], 0).await.unwrap();
    control.json(&["revoke", &format!("spiffe://{TD}/a"), "--reason", "keyCompromise"]);
    let refused = fetch(&mut web, &["a"], 0).await.unwrap_err();
    assert!(matches!(refused.code(), Code::PermissionDenied | Code::Unavailable), "{refused}");
}

#[tokio::test]
async fn an_issuer_and_a_name_are_said_where_they_are_configured() {
    let control =
        Control::configured("jwt: { issuer: 'https://corp.example/', jti: true, ttl: 1m, max_ttl: 2m }\n");
    let (mut web, bundle) = workload(&control, "/a").await;
    let tokens =
        [fetch(&mut web, &["a"], 0).await.unwrap(), fetch(&mut web, &["a"], u64::MAX).await.unwrap()];
    let claims = tokens.map(|t| judge(&t.token, "a", &bundle).unwrap().claims);
    assert_eq!(claims[0]["iss"], "https://corp.example");
    assert!(claims[0]["jti"].is_string() && claims[0]["jti"] != claims[1]["jti"]);
    let lives = claims.map(|c| c["exp"].as_i64().unwrap() - c["iat"].as_i64().unwrap());
    assert_eq!(lives, [60, 120]);
}

/// B-2, B-8: a key is in the bundle before it signs and until its last token has ended, and the sequence tells each change.
#[tokio::test]
async fn keys_are_published_before_they_sign_and_until_their_tokens_end() {
    let control = Control::configured("jwt: { ttl: 1s, max_ttl: 1s, rotation: 4s, publish_ahead: 1s }\n");
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let mut watch = Watch::open(&control, &join, &svid).await.unwrap();
    let mut web = Connection::to(&control, &join, Some(&svid)).await;
    let mut bundle = pushed(&watch.next().await.unwrap());
    let mut signed_by: Vec<String> = Vec::new();
    let started = std::time::Instant::now();
    while signed_by.len() < 3 {
        assert!(started.elapsed() < LONG, "{signed_by:?}");
        let token = fetch(&mut web, &["a"], 0).await.unwrap().token;
        let kid = part(&token, 0)["kid"].as_str().unwrap().to_owned();
        let before = bundle.clone();
        while let Ok(message) = tokio::time::timeout(std::time::Duration::from_millis(50), watch.next()).await
        {
            let next = pushed(&message.unwrap());
            let kids = |b: &TrustBundle| b.jwt_keys().iter().map(|k| k.kid().to_owned()).collect::<Vec<_>>();
            assert!(kids(&next) == kids(&bundle) || next.sequence() > bundle.sequence());
            bundle = next;
        }
        if signed_by.last() != Some(&kid) {
            assert!(!signed_by.contains(&kid), "a key that was replaced signs no more");
            assert!(
                signed_by.is_empty() || before.jwt_key(&kid).is_some(),
                "{kid} signs, and nobody knew of it before"
            );
            signed_by.push(kid);
        }
        match judge(&token, "a", &bundle) {
            Ok(_) | Err(JwtSvidError::Expired) => {}
            Err(why) => panic!("{why}"),
        }
    }
    // The private half of a key that signs no more is gone: at most the current one and its successor are there.
    let files = std::fs::read_dir(control.data().join("jwt")).unwrap();
    let names: Vec<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.len() <= 2 && !names.contains(&format!("{}.pem", signed_by[0])), "{names:?}");
}

#[tokio::test]
async fn a_key_survives_a_restart_and_is_nobody_elses() {
    let control = Control::start();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let token =
        fetch(&mut Connection::to(&control, &join, Some(&svid)).await, &["a"], 0).await.unwrap().token;
    let dir = control.data().join("jwt");
    let key = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(dir.join("interrupted.pem"), "half a key").unwrap();

    let control = control.restart();
    assert!(!dir.join("interrupted.pem").exists());
    let mut watch =
        Watch::open(&control, &join, &Svid { chain: svid.chain.clone(), key: svid.key.clone_key() })
            .await
            .unwrap();
    let bundle = pushed(&watch.next().await.unwrap());
    judge(&token, "a", &bundle).unwrap();
    let again =
        fetch(&mut Connection::to(&control, &join, Some(&svid)).await, &["a"], 0).await.unwrap().token;
    assert_eq!(part(&again, 0), part(&token, 0));

    let mut control = control;
    control.kill();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    let output = serve(control.data().parent().unwrap(), &[]).output().unwrap();
    failed(&output, 1, "can be read by others");
}
