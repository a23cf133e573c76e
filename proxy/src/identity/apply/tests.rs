//! A push that cannot be read in full changes nothing: policy, modes, generation and what the cache keeps stay.

use postern_config::file::proxy::ProxyConfig;
use postern_config::policy::MtlsMode;

use super::*;

struct Proxy {
    held: Held,
    snapshots: Arc<Snapshots>,
    tls: Tls,
    metrics: Metrics,
    readiness: Readiness,
}

fn proxy() -> Proxy {
    let snapshots = Arc::new(Snapshots::default());
    Proxy {
        held: Held::new("corp.example".parse().unwrap()),
        tls: Tls::new(Arc::clone(&snapshots), 1024, crate::tls::ChainCounters::default()).unwrap(),
        metrics: Metrics::new(&snapshots, &ProxyConfig::default()),
        readiness: Readiness::default(),
        snapshots,
    }
}

impl Proxy {
    fn push(&mut self, generation: u64, policies: &[String], peers: &[String]) -> Result<bool, String> {
        let policies = v1::PolicySet {
            documents: policies.to_vec(),
            peer_authentications: peers.to_vec(),
            root_namespace: "root".into(),
        };
        let message =
            v1::WatchResponse { generation, policies: Some(policies), ..v1::WatchResponse::default() };
        self.held.apply(&message, &self.snapshots, &self.tls, &self.metrics, &self.readiness)
    }
}

fn document(kind: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion":"security.istio.io/v1","kind":"{kind}","metadata":{{"name":"p","namespace":"shop"}},"spec":{spec}}}"#
    )
}

#[test]
fn a_policy_of_another_version_keeps_the_last_good_one_in_force() {
    let mut proxy = proxy();
    let policy = document(
        "AuthorizationPolicy",
        r#"{"action":"DENY","rules":[{"from":[{"source":{"ipBlocks":["10.0.0.0/8"]}}]}]}"#,
    );
    let peer = document("PeerAuthentication", r#"{"mtls":{"mode":"PERMISSIVE"}}"#);
    assert_eq!(proxy.push(7, std::slice::from_ref(&policy), std::slice::from_ref(&peer)), Ok(true));
    let good = proxy.snapshots.policy.load_full().unwrap();
    assert_eq!(good.mtls_mode(8080), MtlsMode::Permissive);

    for (bad, why) in [
        (policy.replace("10.0.0.0/8", "10.0.0.0/33"), "is not a CIDR block"),
        (policy.replace("\"action\"", "\"effect\""), "unknown field `effect`"),
        (policy.replace("ipBlocks", "ipRanges"), "unknown field `ipRanges`"),
        (policy.replace("DENY", "CUSTOM"), "CUSTOM is not supported"),
        (policy.replace("io/v1", "io/v2"), "unknown variant `security.istio.io/v2`"),
        (policy.replace("AuthorizationPolicy", "RequestAuthentication"), "unknown variant"),
        (
            policy.replace("\"10.0.0.0/8\"", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
            "policy document",
        ),
        (peer.clone(), "unknown variant"),
        (String::new(), "policy document"),
    ] {
        // A good one beside it does not help: a set of policies is taken as a whole.
        let refused = proxy.push(8, &[policy.clone(), bad.clone()], &[]).unwrap_err();
        assert!(refused.contains(why), "{refused} for {:.200}", bad);
    }
    for (bad, why) in [
        (peer.replace("PERMISSIVE", "OPEN"), "unknown variant `OPEN`"),
        (peer.replace("\"mtls\"", "\"tls\""), "unknown field `tls`"),
        (policy.clone(), "unknown variant"),
    ] {
        let refused = proxy.push(8, &[], &[peer.clone(), bad]).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    assert!(Arc::ptr_eq(&good, &proxy.snapshots.policy.load_full().unwrap()), "the last good one stays");
    assert_eq!(proxy.held.generation(), 7);
    assert_eq!(proxy.held.state().policies.as_ref().unwrap().documents, [policy]);

    assert_eq!(proxy.push(9, &[], &[]), Ok(true));
    assert_eq!(proxy.held.generation(), 9);
    assert_eq!(proxy.snapshots.policy.load_full().unwrap().mtls_mode(8080), MtlsMode::Strict);
}
