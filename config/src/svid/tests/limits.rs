//! What is refused before it costs anything: long chains, heavy chains, unreadable bytes.

use super::forge::{ALT_NAME, Spec, dns, rsa_key, tlv, uri};
use super::{CertificateDer, Flaw, ID, Mesh, Reason, VerifyError, believe, refused};
use crate::svid::{MAX_CHAIN, MAX_CHAIN_BYTES};

#[test]
fn the_fifth_certificate_is_one_too_many() {
    let mesh = Mesh::new();
    let mut chain = mesh.chain(&Spec::leaf(ID));
    chain.resize(MAX_CHAIN, mesh.root.der.clone());
    assert!(believe(&chain, &mesh.bundles()).is_ok());
    chain.push(mesh.root.der.clone());
    let error = refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::ChainTooLarge));
    chain.resize(201, CertificateDer::from(vec![0]));
    let error = refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::ChainTooLarge));
}

#[test]
fn sixteen_kibibytes_are_enough() {
    let mesh = Mesh::new();
    let with_padding = |n: usize| {
        let host = format!("{}.example", "a".repeat(50));
        let mut names = vec![uri(ID.as_bytes())];
        names.resize(n, dns(&host));
        mesh.present(&Spec::leaf(ID).with(ALT_NAME, true, tlv(0x30, &names.concat())))
    };
    assert!(with_padding(200).is_ok());
    let error = refused(with_padding(MAX_CHAIN_BYTES / 60), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::ChainTooLarge));
}

/// The size of a key is looked at before any signature is, on every presented certificate.
#[test]
fn a_huge_rsa_key_is_never_computed_with() {
    let mesh = Mesh::new();
    let huge = mesh.root.sign(&Spec { key: rsa_key(16384), ..mesh.issuing.spec.clone() });
    let chain = [mesh.issuing.sign(&Spec::leaf(ID)), huge];
    let error = refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::RsaKeySize));
    let negative = {
        let mut key = rsa_key(8192);
        let at = key.windows(2).position(|w| w == [0, 0x80]).unwrap();
        key[at] = 0x80;
        key
    };
    let chain = mesh.chain(&Spec { key: negative, ..Spec::leaf(ID) });
    let error = refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate);
    assert_eq!(error, VerifyError::Flaw(Flaw::RsaKeySize));
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let mesh = Mesh::new();
    let good = mesh.chain(&Spec::leaf(ID));
    let trailing: CertificateDer<'_> = [good[0].as_ref(), &[0]].concat().into();
    let cut: CertificateDer<'_> = good[0][..good[0].len() - 1].to_vec().into();
    for bad in [trailing, cut, vec![].into(), vec![0x30, 0x80].into(), vec![0xff; 64].into()] {
        for chain in [vec![bad.clone(), good[1].clone()], vec![good[0].clone(), good[1].clone(), bad.clone()]]
        {
            let error = refused(believe(&chain, &mesh.bundles()), Reason::BadCertificate);
            assert_eq!(error, VerifyError::Flaw(Flaw::Unreadable));
        }
    }
}
