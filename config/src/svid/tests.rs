//! The verifier against forged chains: every refusal with its exact reason, every acceptance with its exact identity.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::aws_lc_rs as algorithms;

use super::{Algorithms, Flaw, Peer, Role, VerifyError, verify};
use crate::bundle::{BundleSet, TrustBundle};
use crate::reason::Reason;
use crate::revocation::Revocations;

mod corpus;
mod dates;
mod flips;
mod forge;
mod leaf;
mod limits;
mod path;
mod revoked;

use forge::{Authority, NOW, Spec};

const ID: &str = "spiffe://corp.example/ns/shop/sa/pay";

/// What a proxy accepts: no Ed25519, no P-521.
static SIGNATURES: [&dyn SignatureVerificationAlgorithm; 5] = [
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
];

/// Stands for SHA-256, which the caller brings: the verifier only ever compares its results.
fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut state = [0u64; 4];
    for (i, byte) in bytes.iter().enumerate() {
        let lane = &mut state[i % 4];
        *lane = (*lane ^ u64::from(*byte) ^ i as u64).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    let mut out = [0; 32];
    out.chunks_mut(8).zip(state).for_each(|(chunk, lane)| chunk.copy_from_slice(&lane.to_be_bytes()));
    out
}

fn brought() -> Algorithms<'static> {
    Algorithms { signatures: &SIGNATURES, sha256: digest }
}

/// The trust domain corp.example, its root and its issuing CA.
struct Mesh {
    root: Authority,
    issuing: Authority,
}

impl Mesh {
    fn new() -> Self {
        let root = Authority::root("root");
        let issuing = root.issuing("issuing");
        Self { root, issuing }
    }

    fn bundles(&self) -> BundleSet {
        bundles(&[&self.root])
    }

    /// The leaf, signed by the issuing CA, with the chain that a workload presents.
    fn chain(&self, leaf: &Spec) -> Vec<CertificateDer<'static>> {
        vec![self.issuing.sign(leaf), self.issuing.der.clone()]
    }

    fn present(&self, leaf: &Spec) -> Result<Peer, VerifyError> {
        believe(&self.chain(leaf), &self.bundles())
    }
}

/// corp.example's bundle with these roots.
fn bundles(roots: &[&Authority]) -> BundleSet {
    let roots = roots.iter().map(|r| r.der.clone());
    [TrustBundle::new("corp.example".parse().unwrap(), 1, roots).unwrap()].into_iter().collect()
}

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds as u64))
}

/// Verifies at [`NOW`] with nothing revoked, in both roles, which must agree.
fn believe(chain: &[CertificateDer<'_>], bundles: &BundleSet) -> Result<Peer, VerifyError> {
    believe_at(chain, bundles, NOW)
}

fn believe_at(chain: &[CertificateDer<'_>], bundles: &BundleSet, now: i64) -> Result<Peer, VerifyError> {
    let none = Revocations::default();
    let client = verify(chain, bundles, &none, Role::Client, at(now), brought());
    let server = verify(chain, bundles, &none, Role::Server, at(now), brought());
    assert_eq!(client.as_ref().err(), server.as_ref().err(), "both roles must judge alike");
    client
}

/// The error, of which the reason must be `reason`.
#[track_caller]
fn refused(result: Result<Peer, VerifyError>, reason: Reason) -> VerifyError {
    let error = result.expect_err("must be refused");
    assert_eq!(error.reason(), reason, "{error}");
    error
}

#[test]
fn a_good_chain_is_believed_and_described() {
    let mesh = Mesh::new();
    let leaf = Spec::leaf(ID);
    let chain = mesh.chain(&leaf);
    let peer = believe(&chain, &mesh.bundles()).unwrap();
    assert_eq!(peer.id.as_str(), ID);
    assert_eq!(
        (peer.issued, peer.not_before, peer.not_after),
        (leaf.not_before, leaf.not_before, leaf.not_after)
    );
    assert_eq!(peer.issuer_key_id, mesh.issuing.key_id());
    assert_eq!(peer.fingerprint, digest(&chain[0]));
    let keys = [&leaf.key, &mesh.issuing.spec.key, &mesh.root.spec.key];
    assert_eq!(peer.spkis, keys.map(|k| digest(k)));
    assert_eq!(peer.anchor.der(), mesh.root.der.as_ref());
    assert_eq!(peer.issuers.len(), 2, "the issuing CA and the root");
}

#[test]
fn a_chain_by_another_encoder_is_believed() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_der = root.self_signed(&root_key).unwrap().der().clone();
    let leaf_key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::default();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    let issuer = Issuer::from_params(&root, &root_key);
    let leaf_der = leaf.signed_by(&leaf_key, &issuer).unwrap().der().clone();
    let bundle = TrustBundle::new("corp.example".parse().unwrap(), 1, [root_der]).unwrap();
    let peer = believe(&[leaf_der], &[bundle].into_iter().collect()).unwrap();
    assert_eq!(peer.id.as_str(), ID);
}

#[test]
fn nothing_presented_is_no_certificate() {
    refused(believe(&[], &Mesh::new().bundles()), Reason::NoCertificate);
}
