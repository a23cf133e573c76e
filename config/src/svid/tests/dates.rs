//! Dates of leaf, issuing CA and anchor: nothing after notAfter, a minute before notBefore.

use super::forge::{Authority, HOUR, NOW, Spec};
use super::{ID, Mesh, Reason, VerifyError, believe, believe_at, bundles, refused};

#[test]
fn a_leaf_ends_with_the_second_of_its_not_after() {
    let mesh = Mesh::new();
    let ends = |at| mesh.present(&Spec::leaf(ID).dates(NOW - HOUR, at));
    assert_eq!(ends(NOW).unwrap().not_after, NOW);
    let error = refused(ends(NOW - 1), Reason::Expired);
    assert_eq!(error, VerifyError::Expired { not_after: NOW - 1, now: NOW });
    assert_eq!(
        error.to_string(),
        "expired: the certificate ended at 2033-05-18T03:33:19Z and this host's clock says 2033-05-18T03:33:20Z"
    );
}

#[test]
fn a_leaf_may_start_up_to_a_minute_ahead() {
    let mesh = Mesh::new();
    let starts = |ahead| mesh.present(&Spec::leaf(ID).dates(NOW + ahead, NOW + HOUR));
    for ahead in [0, 20, 59, 60] {
        assert_eq!(starts(ahead).unwrap().not_before, NOW + ahead);
    }
    let error = refused(starts(61), Reason::NotYetValid);
    assert_eq!(error, VerifyError::NotYetValid { not_before: NOW + 61, now: NOW });
}

/// The tolerance for the start of one certificate is none for the end of another.
#[test]
fn the_tolerance_never_prolongs_anything() {
    let mesh = Mesh::new();
    let issuing = mesh.issuing.renewed(|spec| spec.dates(NOW - HOUR, NOW - 1));
    let leaf = issuing.sign(&Spec::leaf(ID).dates(NOW + 60, NOW + HOUR));
    let issuing = mesh.root.sign(&issuing.spec);
    refused(believe(&[leaf, issuing], &mesh.bundles()), Reason::Expired);
}

#[test]
fn an_issuing_ca_has_dates_too() {
    let mesh = Mesh::new();
    for (before, after, reason) in [
        (NOW - HOUR, NOW - 1, Some(Reason::Expired)),
        (NOW + 61, NOW + HOUR, Some(Reason::NotYetValid)),
        (NOW + 60, NOW + HOUR, None),
        (NOW - HOUR, NOW, None),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let issuing = mesh.root.issuing_as("dated", key, |spec| spec.dates(before, after));
        let result = believe(&[issuing.sign(&Spec::leaf(ID)), issuing.der], &mesh.bundles());
        match reason {
            Some(reason) => drop(refused(result, reason)),
            None => {
                let peer = result.unwrap();
                assert_eq!(peer.not_before, before.max(NOW - HOUR));
                assert_eq!(peer.not_after, after);
            }
        }
    }
}

/// webpki does not look at an anchor's dates.
#[test]
fn an_anchor_has_dates_too() {
    for (before, after, reason) in [
        (NOW - HOUR, NOW - 1, Some(Reason::Expired)),
        (NOW + 61, NOW + HOUR, Some(Reason::NotYetValid)),
        (NOW + 60, NOW + HOUR, None),
        (NOW - HOUR, NOW, None),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let root = Authority::root_as("root", key, |spec| spec.dates(before, after));
        let issuing = root.issuing("issuing");
        for chain in
            [vec![issuing.sign(&Spec::leaf(ID)), issuing.der.clone()], vec![root.sign(&Spec::leaf(ID))]]
        {
            let result = believe(&chain, &bundles(&[&root]));
            match reason {
                Some(reason) => drop(refused(result, reason)),
                None => assert_eq!(result.unwrap().not_after, after.min(NOW + HOUR)),
            }
        }
    }
}

#[test]
fn a_renewed_root_serves_beside_its_expired_twin() {
    let mesh = Mesh::new();
    let expired = mesh.root.renewed(|spec| spec.dates(NOW - 2 * HOUR, NOW - 1));
    let chain = mesh.chain(&Spec::leaf(ID));
    for order in [[&expired, &mesh.root], [&mesh.root, &expired]] {
        let peer = believe(&chain, &bundles(&order)).unwrap();
        assert_eq!(peer.anchor.der(), mesh.root.der.as_ref());
        assert_eq!(peer.not_after, NOW + HOUR);
    }
    refused(believe(&chain, &bundles(&[&expired])), Reason::Expired);
}

/// From 2050 on dates are GeneralizedTime (RFC 5280 §4.1.2.5); 2038 ends nothing here.
#[test]
fn dates_beyond_2038_and_2050_are_read() {
    let y2039 = 2_177_452_800;
    let y2051 = 2_556_144_000;
    let root =
        Authority::root_as("root", rcgen::KeyPair::generate().unwrap(), |s| s.dates(NOW, y2051 + HOUR));
    let chain = [root.sign(&Spec::leaf(ID).dates(y2039, y2051))];
    let bundles = bundles(&[&root]);
    assert_eq!(believe_at(&chain, &bundles, y2039).unwrap().not_after, y2051);
    assert_eq!(believe_at(&chain, &bundles, y2051).unwrap().not_before, y2039);
    refused(believe_at(&chain, &bundles, y2051 + 1), Reason::Expired);
    refused(believe_at(&chain, &bundles, y2039 - 61), Reason::NotYetValid);
}

#[test]
fn a_certificate_that_ends_before_it_starts_is_refused() {
    let mesh = Mesh::new();
    refused(mesh.present(&Spec::leaf(ID).dates(NOW + 10, NOW - 10)), Reason::BadCertificate);
}

#[test]
fn the_clocks_extremes_are_only_wrong_times() {
    let mesh = Mesh::new();
    let chain = mesh.chain(&Spec::leaf(ID));
    refused(believe_at(&chain, &mesh.bundles(), 0), Reason::NotYetValid);
    refused(believe_at(&chain, &mesh.bundles(), i64::MAX), Reason::Expired);
    let late = super::UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::MAX));
    let none = super::Revocations::default();
    let result = super::verify(&chain, &mesh.bundles(), &none, super::Role::Client, late, super::brought());
    refused(result, Reason::Expired);
}
