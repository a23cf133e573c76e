//! A mesh without a control plane: CAs whose keys the test holds, and the cache from which a proxy resumes.

use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_config::bundle::TrustBundle;
use postern_config::wire::v1;
use prost::Message as _;
use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::forge::{Authority, Spec, key, now};

pub(crate) const DOMAIN: &str = "corp.example";
/// The proxy under test.
pub(crate) const PROXY: &str = "spiffe://corp.example/ns/shop/sa/proxy";
/// Whoever talks to it, from either side.
pub(crate) const PEER: &str = "spiffe://corp.example/ns/shop/sa/peer";
/// A federated trust domain.
pub(crate) const PARTNER: &str = "spiffe://partner.example/ns/shop/sa/peer";

/// The fixtures' root; see `fixtures/make.sh`.
const FIXTURE_ROOT: &[u8] = include_bytes!("../fixtures/root.der");

/// A chain and a key that signs the handshake, be it the chain's or not.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<KeyPair>,
}

impl Presented {
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let der = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let signer = default_provider().key_provider.load_private_key(der).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), signer))
    }
}

/// The trust domain corp.example, its CAs, and a root of partner.example.
pub(crate) struct Mesh {
    pub(crate) root: Authority,
    pub(crate) issuing: Authority,
    pub(crate) partner: Authority,
    /// Documents of `AuthorizationPolicy`, each one JSON; none to begin with.
    pub(crate) policies: Vec<String>,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let root = Authority::root("corp root");
        let issuing = root.issuing("corp issuing", |spec| spec);
        Self { root, issuing, partner: Authority::root("partner root"), policies: Vec::new() }
    }

    /// A leaf of this identity, changed, signed by the issuing CA.
    pub(crate) fn leaf(&self, id: &str, change: impl FnOnce(Spec) -> Spec) -> Presented {
        let key = key();
        let leaf = self.issuing.sign(&change(Spec::leaf(id, &key)));
        Presented { chain: vec![leaf, self.issuing.der.clone()], key: Arc::new(key) }
    }

    /// What an honest peer presents.
    pub(crate) fn honest(&self) -> Presented {
        self.leaf(PEER, |spec| spec)
    }

    /// The state that a control plane would have pushed: bundles, the policies, nothing revoked.
    pub(crate) fn state(&self) -> v1::WatchResponse {
        let bundle = |domain: &str, roots: Vec<CertificateDer<'static>>| {
            let bundle = TrustBundle::new(domain.parse().unwrap(), 1, roots).unwrap();
            v1::Bundle::from(&bundle)
        };
        let own = bundle(DOMAIN, vec![self.root.der.clone(), FIXTURE_ROOT.into()]);
        let partner = bundle("partner.example", vec![self.partner.der.clone()]);
        v1::WatchResponse {
            generation: 1,
            bundles: Some(v1::BundleSet { bundles: vec![own, partner] }),
            policies: Some(v1::PolicySet { documents: self.policies.clone(), ..v1::PolicySet::default() }),
            revocations: Some(v1::RevocationSet::default()),
            services: Some(v1::ServiceSet::default()),
            ..v1::WatchResponse::default()
        }
    }

    /// The cache's document for a proxy whose certificate lives for `ttl` seconds from now.
    pub(crate) fn cache(&self, ttl: i64) -> Value {
        let proxy = self.leaf(PROXY, |spec| spec.valid(-60, ttl));
        let chain: Vec<String> = proxy.chain.iter().map(|der| STANDARD.encode(der)).collect();
        json!({
            "version": 1,
            // Nobody listens there.
            "address": "127.0.0.1:1",
            "trust_domain": DOMAIN,
            "key": STANDARD.encode(proxy.key.serialize_der()),
            "chain": chain,
            "not_after": now() + ttl,
            "state": STANDARD.encode(self.state().encode_to_vec()),
        })
    }
}

/// A directory of one test; it goes when this does.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("promises-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file that its owner alone may read.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::io::Write as _;
        let path = self.0.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
