//! A join token works once, for one identity, over one connection; every abuse is refused, recorded, and gets nothing.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use tonic::Code;

use crate::harness::{Connection, Control, Keys};

const REFUSED: &str = "join token refused: unknown, used or expired";

#[tokio::test]
async fn a_token_that_does_not_fit_is_refused_in_one_voice_and_recorded_in_its_own() {
    let control = Control::start();
    let attempt = async |join: &postern_config::enroll::JoinString| {
        let refused =
            Connection::to(&control, join, None).await.enroll(join, &Keys::new()).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, REFUSED));
    };
    let good = control.token("/a", &[]);
    let mut unknown = good.clone();
    unknown.token_id = "01JD9W3V8Q4T7ZK2M5XB6R0N1C".into();
    attempt(&unknown).await;
    let mut wrong = good.clone();
    wrong.secret[0] ^= 1;
    attempt(&wrong).await;
    attempt(&control.token("/a", &["--cidr", "10.0.0.0/8"])).await;
    Connection::to(&control, &good, None).await.enroll(&good, &Keys::new()).await.unwrap();
    attempt(&good).await;
    assert_eq!(
        control.refusals("enroll"),
        ["token_unknown", "token_wrong_secret", "token_address", "token_used"]
    );
    assert_eq!(control.issued("enroll"), 1);
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let control = Control::start();
    let join = control.token("/a", &["--ttl", "1s"]);
    // The token was made before this line, so it is over a second after it.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let refused = Connection::to(&control, &join, None).await.enroll(&join, &Keys::new()).await.unwrap_err();
    assert_eq!(refused.message(), REFUSED);
    assert_eq!(control.refusals("enroll"), ["token_expired"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_parallel_redemptions_exactly_one_wins() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let mut attempts = tokio::task::JoinSet::new();
    let gate = std::sync::Arc::new(tokio::sync::Barrier::new(64));
    for _ in 0..64 {
        let (join, listen, gate) = (join.clone(), control.listen, gate.clone());
        attempts.spawn(async move {
            let mut connection = Connection::open(listen, join.pins[0], None).await.unwrap();
            let keys = Keys::new();
            gate.wait().await;
            connection.enroll(&join, &keys).await
        });
    }
    let results = attempts.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    for refused in results.iter().filter_map(|r| r.as_ref().err()) {
        assert_eq!(refused.message(), REFUSED);
    }
    assert_eq!(control.refusals("enroll"), vec!["token_used"; 63]);
    assert_eq!(control.issued("enroll"), 1);
    assert_eq!(control.json(&["identities"]).as_array().unwrap().len(), 1);
}

/// Row 65. A secret has 256 bits, so nobody guesses one; what a flood of guesses may cost others is what is bounded: nothing of a
/// token's owner, a few records of audit, no memory. `POSTERN_FULL=1` guesses ten thousand times.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_guesses_gets_nothing_and_leaves_the_honest_alone() {
    let guesses = if std::env::var_os("POSTERN_FULL").is_some_and(|v| v == "1") { 10_000 } else { 600 };
    let (control, began) = (Control::start(), std::time::Instant::now());
    let honest = control.token("/honest", &[]);
    let left = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(guesses));
    let mut guessers = tokio::task::JoinSet::new();
    for guesser in 0..16 {
        // Half of them know the token's public name.
        let mut guess = honest.clone();
        if guesser % 2 == 0 {
            guess.token_id = "01JD9W3V8Q4T7ZK2M5XB6R0N1C".into();
        }
        let (listen, left) = (control.listen, std::sync::Arc::clone(&left));
        guessers.spawn(async move {
            use std::sync::atomic::Ordering::Relaxed;
            let keys = Keys::new();
            let take = || left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).ok();
            // A connection may be turned away or ended for its many failures: then the next one.
            while left.load(Relaxed) > 0 {
                let opened = Connection::open(listen, guess.pins[0], None).await;
                let Ok(mut connection) = opened else { continue };
                while let Some(number) = take() {
                    guess.secret[..8].copy_from_slice(&(number as u64).to_be_bytes());
                    assert_ne!(connection.enroll(&guess, &keys).await.map_err(|s| s.code()).err(), None);
                    if number % 8 == 0 {
                        break;
                    }
                }
            }
        });
    }
    let mut connection = Connection::to(&control, &honest, None).await;
    connection.enroll(&honest, &Keys::new()).await.expect("whoever knows the secret gets in meanwhile");
    while let Some(done) = guessers.join_next().await {
        done.unwrap();
    }
    assert_eq!(control.json(&["identities"]).as_array().unwrap().len(), 1);
    // At most 512 and 20 a second more.
    let most = 512 + 20 * usize::try_from(began.elapsed().as_secs() + 1).unwrap();
    let export = control.cli(&["audit", "export"]).stdout;
    let refused = String::from_utf8(export).unwrap().matches("\"refused\"").count();
    assert!(refused > 0 && refused <= most, "{refused} records, {most} are allowed");
    let status = std::fs::read_to_string(format!("/proc/{}/status", control.pid())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 300 * 1024, "{peak} kB");
}

#[tokio::test]
async fn a_lost_answer_is_given_again_to_the_same_key_alone() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let keys = Keys::new();
    let first = Connection::to(&control, &join, None).await.enroll(&join, &keys).await.unwrap();
    let again = Connection::to(&control, &join, None).await.enroll(&join, &keys).await.unwrap();
    let [first_chain, chain_again] =
        [&first, &again].map(|answer| answer.svid.as_ref().unwrap().chain.clone());
    assert_eq!(first_chain, chain_again);
    assert_eq!(control.issued("enroll"), 1);
}

#[tokio::test]
async fn a_proof_is_worth_nothing_on_another_connection_or_for_another_key() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let keys = Keys::new();
    let mut connection = Connection::to(&control, &join, None).await;
    let captured = Connection::to(&control, &join, None).await.request(&join, &keys);
    let mut other_key = connection.request(&join, &Keys::new());
    other_key.csr.clone_from(&keys.csr);
    let mut no_nonce = connection.request(&join, &keys);
    no_nonce.nonce.push(0);
    for request in [captured, other_key, no_nonce] {
        let refused = connection.client.enroll(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("proof of possession"));
    }
    assert_eq!(control.refusals("enroll"), vec!["proof"; 3]);
    connection.enroll(&join, &keys).await.expect("the token itself is unharmed");
}

#[tokio::test]
async fn a_request_for_more_than_a_certificate_is_refused() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let uri = |text: &str| vec![SanType::URI(text.try_into().unwrap())];
    type Wish = Box<dyn FnOnce(&mut CertificateParams)>;
    let cases: Vec<(&str, Wish)> = vec![
        ("csr_other_identity", Box::new(move |p| p.subject_alt_names = uri("spiffe://corp.example/b"))),
        (
            "csr_other_identity",
            Box::new(|p| {
                let both = ["spiffe://corp.example/a", "spiffe://corp.example/b"];
                p.subject_alt_names = both.map(|t| SanType::URI(t.try_into().unwrap())).to_vec();
            }),
        ),
        (
            "csr_other_name",
            Box::new(|p| p.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())]),
        ),
        ("csr_ca", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("csr_ca", Box::new(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign])),
    ];
    let mut expected = Vec::new();
    for (reason, wish) in cases {
        let keys = Keys::asking(wish);
        let refused = Connection::to(&control, &join, None).await.enroll(&join, &keys).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{reason}");
        assert!(refused.message().contains("certificate request asks"), "{}", refused.message());
        expected.push(reason);
    }
    assert_eq!(control.refusals("enroll"), expected);
    assert_eq!(control.issued("enroll"), 0);
    let same = Keys::asking(|p| {
        p.subject_alt_names = vec![SanType::URI("spiffe://corp.example/a".try_into().unwrap())]
    });
    Connection::to(&control, &join, None)
        .await
        .enroll(&join, &same)
        .await
        .expect("asking for what it gets is fine");
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_refused() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let mut connection = Connection::to(&control, &join, None).await;
    let good = Keys::new();
    let with_csr = |connection: &Connection, csr: Vec<u8>| {
        connection.request(&join, &Keys { csr, key: KeyPair::generate().unwrap() })
    };
    let flipped = {
        let mut csr = good.csr.clone();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        csr
    };
    let mut cases = vec![
        ("csr_too_large", with_csr(&connection, vec![0x30; 8 * 1024 + 1])),
        ("csr_malformed", with_csr(&connection, vec![0x30; 100])),
        ("csr_malformed", with_csr(&connection, [good.csr.as_slice(), &[0]].concat())),
        ("csr_signature", with_csr(&connection, flipped)),
    ];
    for field in 0..4 {
        let mut request = connection.request(&join, &good);
        match field {
            0 => request.nonce.truncate(15),
            1 => request.token_secret.truncate(31),
            2 => request.token_id = "../x".into(),
            _ => request.instance = "x".repeat(129),
        }
        cases.push(("malformed", request));
    }
    let mut expected = Vec::new();
    for (reason, request) in cases {
        let refused = connection.client.enroll(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{reason}: {refused}");
        expected.push(reason);
    }
    let mut bomb = connection.request(&join, &good);
    bomb.instance = "x".repeat(100 * 1024);
    assert!(connection.client.enroll(bomb).await.is_err());
    expected.push("malformed");
    assert_eq!(control.refusals("enroll"), expected);
    assert_eq!(control.issued("enroll"), 0);
    connection.enroll(&join, &good).await.expect("nobody was harmed");
}

#[tokio::test]
async fn kinds_of_keys_are_an_allow_list() {
    let control = Control::start();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let join = control.token("/a", &[]);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        Connection::to(&control, &join, None).await.enroll(&join, &Keys { key, csr }).await.unwrap();
    }
    let join = control.token("/a", &[]);
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let refused =
            Connection::to(&control, &join, None).await.enroll(&join, &Keys { key, csr }).await.unwrap_err();
        assert!(refused.message().contains("P-256"), "{refused}");
    }
    assert_eq!(control.refusals("enroll"), ["csr_key_kind", "csr_key_kind"]);
}
