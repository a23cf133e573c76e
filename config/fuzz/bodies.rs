//! What each fuzz target does with its input: shared by the targets and by the test that replays their corpora.

use std::borrow::Cow;
use std::str::FromStr;

use http::{HeaderMap, HeaderValue};
use postern_config::bundle::{BundleSet, TrustBundle};
use postern_config::enroll::JoinString;
use postern_config::file;
use postern_config::file::control::ControlConfig;
use postern_config::file::proxy::ProxyConfig;
use postern_config::http::authority::{Authority, canonical_host};
use postern_config::http::path::{Rules, normalise};
use postern_config::http::proxy_protocol::{self, Parsed};
use postern_config::http::trace::TraceParent;
use postern_config::http::xfcc::{self, Caller, Element, Mode};
use postern_config::id::SpiffeId;
use postern_config::jwt_svid;
use postern_config::policy::lint::{Placed, Setting, lint};
use postern_config::policy::{Connection, Document, MtlsModes, Policy, Request, Token, read_stream};
use postern_config::revocation::Revocations;
use postern_config::svid::{Algorithms, Role, verify};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime, alg_id,
};

/// The moment at which the certificates of the corpus are valid.
const NOW: u64 = 2_000_000_000;
/// The root of the corpus's trust domain.
const ROOT: &[u8] = include_bytes!("fixture/root.der");
/// The only identity that its issuing CA ever signed.
const ID: &str = "spiffe://corp.example/ns/shop/sa/pay";

/// Its one key for JWT-SVIDs; the private half is gone.
const JWT_BUNDLE: &str = include_str!("fixture/jwt-bundle.json");

static SIGNATURES: [&dyn SignatureVerificationAlgorithm; 2] =
    [webpki::aws_lc_rs::ECDSA_P256_SHA256, webpki::aws_lc_rs::ECDSA_P384_SHA384];

/// What parses prints as it was, and has the parts that it should have.
pub(crate) fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.to_string(), text);
    assert!(text.len() <= 2048);
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/:".contains(&b)));
    assert_eq!(format!("{}{}", id.trust_domain().id_string(), id.path()), text);
    assert!(id.segments().all(|s| !matches!(s, "" | "." | "..")));
    assert_eq!(id.trust_domain().to_string(), id.trust_domain_str());
}

/// What parses says the same after it was written again.
pub(crate) fn join_string(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(join) = JoinString::from_str(text) else { return };
    assert_eq!(join.reveal().as_str(), text.trim());
    assert!(!format!("{join:?}").contains(text.trim()));
}

/// What parses holds as much after it was written again.
pub(crate) fn bundle(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parse = |text: &str| TrustBundle::parse("corp.example".parse().unwrap(), text);
    let Ok(bundle) = parse(text) else { return };
    assert_eq!(parse(&bundle.to_document()).unwrap(), bundle);
}

/// A token that the fixture's key has signed speaks for [`ID`] alone; and were every signature good, what comes out would still
/// be within its dates and for its audience.
pub(crate) fn jwt_svid(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else { return };
    let bundle = TrustBundle::parse("corp.example".parse().unwrap(), JWT_BUNDLE).unwrap();
    let bundles: BundleSet = [bundle].into_iter().collect();
    if let Ok(svid) = jwt_svid::validate(token, "api", &bundles, NOW as i64, &SIGNATURES) {
        assert_eq!(svid.id.as_str(), ID);
    }
    if let Ok(svid) = jwt_svid::validate(token, "api", &bundles, NOW as i64, &[&Credulous]) {
        assert_eq!(svid.id.trust_domain_str(), "corp.example");
        assert!(svid.expires > NOW as i64 && svid.audiences.iter().any(|a| a == "api"));
        assert_eq!(token.split('.').count(), 3);
    }
}

/// Takes whatever is called ES256 for signed, so that fuzzing gets past the signature.
#[derive(Debug)]
struct Credulous;

impl SignatureVerificationAlgorithm for Credulous {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

/// Certificates one after the other, as the SPIFFE Workload API writes them: nobody but [`ID`] may come out of it.
pub(crate) fn chain(data: &[u8]) {
    let root = CertificateDer::from(ROOT);
    let bundle = TrustBundle::new("corp.example".parse().unwrap(), 1, [root]).unwrap();
    let bundles: BundleSet = [bundle].into_iter().collect();
    let chain = split(data);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    for role in [Role::Client, Role::Server] {
        let algorithms = Algorithms { signatures: &SIGNATURES, sha256: digest };
        if let Ok(peer) = verify(&chain, &bundles, &Revocations::default(), role, now, algorithms) {
            assert_eq!(peer.id.as_str(), ID);
            assert_eq!(peer.recheck(&bundles, &Revocations::default(), NOW as i64), Ok(()));
        }
    }
}

fn split(mut data: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while !data.is_empty() && chain.len() < 8 {
        let length = match data {
            [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => data.len(),
        };
        let (certificate, rest) = data.split_at(length.min(data.len()));
        chain.push(CertificateDer::from(certificate));
        data = rest;
    }
    chain
}

/// Stands for SHA-256: nothing here depends on its strength.
fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    bytes.iter().enumerate().for_each(|(i, b)| out[i % 32] = u8::rotate_left(out[i % 32], 3) ^ b);
    out
}

/// What loads, from YAML or JSON, survives the wire, and decides without panicking.
pub(crate) fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut documents = read_stream(text).unwrap_or_default();
    documents.extend(Document::from_json(text));
    let (mut policies, mut peers) = (Vec::new(), Vec::new());
    for document in documents {
        assert_eq!(Document::from_json(&document.to_json()).unwrap(), document);
        match document {
            Document::Policy(policy) => policies.push(policy),
            Document::Peer(peer) => peers.push(peer),
        }
    }
    let _ = MtlsModes::effective(&peers, "istio-system").of(8080);
    let compiled = Policy::compile(&policies, "corp.example".parse().unwrap());
    let peer = ID.parse().unwrap();
    let ip = [10, 0, 0, 1].into();
    let connection = |peer| Connection {
        peer,
        admits_anonymous: false,
        source_ip: ip,
        remote_ip: ip,
        destination_ip: ip,
        destination_port: 8080,
        sni: Some("pay.corp.example"),
    };
    let mut headers = HeaderMap::new();
    headers.append("x-role", HeaderValue::from_static("ok,banned"));
    headers.append("x-role", HeaderValue::from_static("ok"));
    let claims = serde_json::json!({ "group": ["a"], "scope": "a b", "x": { "y": "z" } });
    let token = Token {
        issuer: "https://issuer.example".to_owned(),
        subject: "a/b".to_owned(),
        claims: claims.as_object().unwrap().clone(),
        ..Token::default()
    };
    for peer in [Some(&peer), None] {
        let connection = connection(peer);
        let verdict = compiled.decide(&connection);
        assert!(!compiled.explain(&verdict).is_empty());
        assert_eq!(verdict.allow, compiled.allows(&connection));
        for (path, token) in [("/a/b", Some(&token)), ("/", None), ("*", None)] {
            let request =
                Request { connection, method: "GET", host: "Pay.example:80", path, headers: &headers, token };
            let verdict = compiled.decide_request(&request);
            assert!(!compiled.explain(&verdict).is_empty());
            assert_eq!(verdict.allow, compiled.allows_request(&request));
        }
    }
    if let Ok(placed) = Placed::read(text, 0) {
        lint(&placed, &Setting { root_namespace: "istio-system", tcp_ports: &[8080] });
    }
}

/// What loads reads the same from its JSON, and can be checked.
pub(crate) fn proxy_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = file::parse::<ProxyConfig>(text) {
        let again: ProxyConfig = file::parse(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        let _ = config.check();
    }
    if let Ok(config) = file::parse::<ControlConfig>(text) {
        let again: ControlConfig = file::parse(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        let _ = config.check();
    }
}

/// What is normal stays as it is, and leaves an app nothing to read differently.
pub(crate) fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for rules in [Rules::Basic, Rules::Strict] {
        let Ok(path) = normalise(text, rules) else { continue };
        assert!(matches!(normalise(&path, rules), Ok(Cow::Borrowed(same)) if same == path));
        assert!(path == "*" || path.starts_with('/'));
        assert!(path.len() <= text.len());
        assert!(path.bytes().all(|b| b.is_ascii_graphic() && !b"\\#?".contains(&b)));
        assert!(path.split('/').all(|s| !matches!(s, "." | "..")));
        assert!(!path.contains("%2e") && !path.contains("%2E") && !path.contains("%00"));
        if rules == Rules::Strict {
            assert!(!["//", "%2f", "%2F", "%5c", "%5C", "/..;", "/.;"].iter().any(|bad| path.contains(bad)));
        }
    }
}

/// What parses prints as something that parses the same; its host has one spelling.
pub(crate) fn authority(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(authority) = Authority::parse(text) else { return };
    assert_eq!(Authority::parse(&authority.to_string()), Ok(authority.clone()));
    assert!(matches!(canonical_host(&authority.host), Ok(Cow::Borrowed(same)) if same == authority.host));
    assert!(!authority.host.is_empty() && !authority.host.ends_with('.') && authority.port != Some(0));
    assert!(
        authority
            .host
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && !b"@/,%".contains(&b))
    );
}

/// A header is read from exactly its own bytes, however they arrive.
pub(crate) fn proxy_protocol(data: &[u8]) {
    match proxy_protocol::parse(data) {
        Ok(Parsed::Complete(header)) => {
            assert_eq!(proxy_protocol::parse(&data[..header.len]), Ok(Parsed::Complete(header)));
            assert!((0..header.len).all(|cut| proxy_protocol::parse(&data[..cut]) == Ok(Parsed::Incomplete)));
            assert!(!header.local || header.addresses.is_none());
        }
        Ok(Parsed::Incomplete) => assert!(data.len() < 16 + proxy_protocol::MAX_V2_BODY),
        Err(error) => assert_eq!(proxy_protocol::parse(&[data, b"x"].concat()), Err(error)),
    }
}

/// What parses goes on with the same trace, in a form that parses.
pub(crate) fn traceparent(data: &[u8]) {
    let Ok(theirs) = TraceParent::parse(data) else { return };
    let ours = theirs.child([7; 8]);
    assert_eq!(ours.trace_id(), theirs.trace_id());
    assert_eq!(ours.sampled(), theirs.sampled());
    assert_eq!(TraceParent::parse(&ours.to_bytes()), Ok(ours));
    assert_eq!(TraceParent::parse(&theirs.to_bytes()), Ok(theirs));
}

/// Nothing that a caller sends, and nothing in its certificate, adds an element to ours or hides it.
pub(crate) fn xfcc(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let element = Element {
        by: &[text],
        hash: [7; 32],
        subject: text,
        uris: &[ID, text],
        dns: &[text],
        ..Element::default()
    };
    let element = element.to_text();
    let own = xfcc::parse(&element).unwrap();
    assert_eq!((own.len(), own[0].len()), (1, 6));
    let (first, second) = text.split_once('\n').unwrap_or((text, "Hash=00"));
    let caller = Some(Caller { id: None, element: &element });
    let sent = xfcc::outgoing(Mode::AppendForward, None, caller, &[first, second]).unwrap();
    let sent = xfcc::parse(&sent).unwrap();
    assert_eq!(sent.last(), own.first());
    let theirs = match (xfcc::parse(first), xfcc::parse(second)) {
        (Ok(first), Ok(second)) => first.len() + second.len(),
        _ => 0,
    };
    assert_eq!(sent.len(), theirs + 1);
}
