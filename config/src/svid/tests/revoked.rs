//! Revocation by serial, identity and key on every member of a path, and the re-check of open connections.

use super::forge::{Authority, HOUR, NOW, Spec};
use super::{
    BundleSet, CertificateDer, ID, Mesh, Peer, Reason, Revocations, Role, VerifyError, at, brought, bundles,
    digest, refused, verify,
};

fn judged(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
    revoked: &Revocations,
) -> Result<Peer, VerifyError> {
    verify(chain, bundles, revoked, Role::Client, at(NOW), brought())
}

fn key_revoked(authority: &Authority) -> Revocations {
    Revocations { spkis: [digest(&authority.spec.key)].into(), ..Revocations::default() }
}

fn serial_revoked(peer: &Peer) -> Revocations {
    Revocations {
        serials: [(peer.issuer_key_id.clone(), peer.serial.clone())].into(),
        ..Revocations::default()
    }
}

fn identity_revoked(id: &str, before: i64) -> Revocations {
    Revocations { identities: [(id.parse().unwrap(), before)].into(), ..Revocations::default() }
}

/// New connections and open ones must judge alike.
#[track_caller]
fn both_refuse(mesh: &Mesh, chain: &[CertificateDer<'_>], revoked: &Revocations) {
    let peer = judged(chain, &mesh.bundles(), &Revocations::default()).unwrap();
    let error = refused(judged(chain, &mesh.bundles(), revoked), Reason::Revoked);
    assert_eq!(error, VerifyError::Revoked { id: ID.parse().unwrap() });
    assert_eq!(peer.recheck(&mesh.bundles(), revoked, NOW), Err(error));
}

#[track_caller]
fn both_accept(mesh: &Mesh, chain: &[CertificateDer<'_>], revoked: &Revocations) {
    let peer = judged(chain, &mesh.bundles(), revoked).unwrap();
    assert_eq!(peer.recheck(&mesh.bundles(), revoked, NOW), Ok(()));
}

#[test]
fn by_serial() {
    let mesh = Mesh::new();
    let chain = mesh.chain(&Spec::leaf(ID));
    let peer = judged(&chain, &mesh.bundles(), &Revocations::default()).unwrap();
    both_refuse(&mesh, &chain, &serial_revoked(&peer));
    // The same serial of another issuer is another certificate.
    let mut other = serial_revoked(&peer);
    other.serials = [(mesh.root.key_id(), peer.serial.clone())].into();
    both_accept(&mesh, &chain, &other);
    both_accept(&mesh, &mesh.chain(&Spec::leaf(ID)), &serial_revoked(&peer));
}

#[test]
fn by_serial_of_an_issuing_ca_and_of_an_anchor() {
    let mesh = Mesh::new();
    let chain = mesh.chain(&Spec::leaf(ID));
    let peer = judged(&chain, &mesh.bundles(), &Revocations::default()).unwrap();
    assert_eq!(peer.issuers[0].0, mesh.root.key_id());
    for issuer in &peer.issuers {
        let revoked = Revocations { serials: [issuer.clone()].into(), ..Revocations::default() };
        both_refuse(&mesh, &chain, &revoked);
    }
    // The issuing CA as an anchor is the same certificate.
    let revoked = Revocations { serials: [peer.issuers[0].clone()].into(), ..Revocations::default() };
    refused(judged(&chain, &bundles(&[&mesh.issuing]), &revoked), Reason::Revoked);
}

#[test]
fn by_key_of_every_member() {
    let mesh = Mesh::new();
    let leaf = Spec::leaf(ID);
    let chain = mesh.chain(&leaf);
    let leaf_key = Revocations { spkis: [digest(&leaf.key)].into(), ..Revocations::default() };
    for revoked in [leaf_key, key_revoked(&mesh.issuing), key_revoked(&mesh.root)] {
        both_refuse(&mesh, &chain, &revoked);
    }
    both_accept(&mesh, &chain, &key_revoked(&Authority::root("root")));
}

#[test]
fn by_identity_until_a_newer_certificate_comes() {
    let mesh = Mesh::new();
    let old = mesh.chain(&Spec::leaf(ID).dates(NOW - 100, NOW + HOUR));
    both_refuse(&mesh, &old, &identity_revoked(ID, NOW - 99));
    both_accept(&mesh, &old, &identity_revoked(ID, NOW - 100));
    both_accept(&mesh, &old, &identity_revoked("spiffe://corp.example/ns/shop/sa/other", NOW));
}

/// A renewed issuer has a later notBefore than the leaves that it signed before: they stay as old as they are.
#[test]
fn a_renewed_issuer_does_not_make_a_revoked_leaf_look_new() {
    let mesh = Mesh::new();
    let leaf = mesh.issuing.sign(&Spec::leaf(ID).dates(NOW - 100, NOW + HOUR));
    let newer = mesh.root.sign(&mesh.issuing.spec.clone().dates(NOW - 10, NOW + HOUR));
    both_refuse(&mesh, &[leaf, newer], &identity_revoked(ID, NOW - 50));

    let root = mesh.root.renewed(|spec| spec.dates(NOW - 10, NOW + HOUR));
    let leaf = mesh.root.sign(&Spec::leaf(ID).dates(NOW - 100, NOW + HOUR));
    refused(judged(&[leaf], &bundles(&[&root]), &identity_revoked(ID, NOW - 50)), Reason::Revoked);
}

/// A tainted CA bites only the paths through it: a leaf whose issuer is also certified otherwise is still good.
#[test]
fn a_second_path_around_a_tainted_issuer_is_taken() {
    let mesh = Mesh::new();
    let other_root = Authority::root("other root");
    let crossed = other_root.sign(&mesh.issuing.spec);
    let chain = [mesh.issuing.sign(&Spec::leaf(ID)), mesh.issuing.der.clone(), crossed];
    let both = bundles(&[&mesh.root, &other_root]);
    let taken = judged(&chain, &both, &key_revoked(&mesh.root)).unwrap();
    assert_eq!(taken.anchor.der(), other_root.der.as_ref());
    let taken = judged(&chain, &both, &key_revoked(&other_root)).unwrap();
    assert_eq!(taken.anchor.der(), mesh.root.der.as_ref());
    refused(judged(&chain, &both, &key_revoked(&mesh.issuing)), Reason::Revoked);
}

#[test]
fn an_open_connection_ends_with_its_certificate() {
    let mesh = Mesh::new();
    let peer = mesh.present(&Spec::leaf(ID)).unwrap();
    let none = Revocations::default();
    assert_eq!(peer.recheck(&mesh.bundles(), &none, peer.not_after), Ok(()));
    let now = peer.not_after + 1;
    let expired = VerifyError::Expired { not_after: peer.not_after, now };
    assert_eq!(peer.recheck(&mesh.bundles(), &none, now), Err(expired));
}

/// only the removal of a root, or a short life, takes an issuing CA's leaves back without a revocation.
#[test]
fn an_open_connection_ends_when_its_anchor_leaves_the_bundle() {
    let mesh = Mesh::new();
    let peer = mesh.present(&Spec::leaf(ID)).unwrap();
    let none = Revocations::default();
    let gone = |bundles: &BundleSet| peer.recheck(bundles, &none, NOW).map_err(|e| e.reason());
    assert_eq!(gone(&bundles(&[&Authority::root("root"), &mesh.root])), Ok(()));
    assert_eq!(gone(&bundles(&[])), Err(Reason::UnknownIssuer));
    assert_eq!(gone(&bundles(&[&mesh.issuing])), Err(Reason::UnknownIssuer));
    assert_eq!(gone(&BundleSet::default()), Err(Reason::WrongTrustDomain));
    // A renewed root is another anchor: the connection is closed and its successor finds the new one.
    let renewed = mesh.root.renewed(|spec| spec.dates(NOW, NOW + 48 * HOUR));
    assert_eq!(gone(&bundles(&[&renewed])), Err(Reason::UnknownIssuer));
}
