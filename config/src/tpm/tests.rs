use proptest::prelude::*;

use super::*;

fn rsa() -> Endorsement {
    let mut modulus = [0xab; 256];
    modulus[255] = 1;
    Endorsement::Rsa(Box::new(modulus))
}

const POINT: Point = Point { x: [7; 32], y: [9; 32] };

fn ak() -> Vec<u8> {
    AttestationKey::template(&[7; 32])
}

fn quote(extra: &[u8]) -> Vec<u8> {
    let mut out = GENERATED.to_be_bytes().to_vec();
    put_numbers(&mut out, &[QUOTE]);
    put_sized(&mut out, &[1; 34]);
    put_sized(&mut out, extra);
    out.extend_from_slice(&[0; 25]);
    out.extend_from_slice(&[0; 4]);
    put_sized(&mut out, &[2; 32]);
    out
}

fn signed(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_numbers(&mut out, &[ALG_ECDSA, ALG_SHA256]);
    put_sized(&mut out, r);
    put_sized(&mut out, s);
    out
}

#[test]
fn keys_read_back_as_they_were_written() {
    for key in [rsa(), Endorsement::Ecc(POINT)] {
        assert_eq!(Endorsement::parse(&key.marshal()), Ok(key));
    }
    assert_eq!(Endorsement::template(EkKind::Rsa).len(), 314);
    assert_eq!(Endorsement::template(EkKind::Ecc).len(), 122);
    assert_eq!(AttestationKey::parse(&ak()).unwrap().point().x, [7; 32]);
    assert_eq!(quoted(&quote(b"extra")), Ok(b"extra".as_slice()));
}

#[test]
fn every_cut_and_every_tail_is_refused() {
    type Parse = fn(&[u8]) -> bool;
    let cases: [(Vec<u8>, Parse); 5] = [
        (rsa().marshal(), |b| Endorsement::parse(b).is_ok()),
        (Endorsement::Ecc(POINT).marshal(), |b| Endorsement::parse(b).is_ok()),
        (ak(), |b| AttestationKey::parse(b).is_ok()),
        (quote(&[3; 32]), |b| quoted(b).is_ok()),
        (signed(&[1; 32], &[2; 32]), |b| signature(b).is_ok()),
    ];
    for (whole, parses) in cases {
        assert!(parses(&whole));
        assert!((0..whole.len()).all(|end| !parses(&whole[..end])));
        assert!(!parses(&[whole, vec![0]].concat()));
    }
}

/// The one bit that makes an endorsement key another kind of key is enough.
#[test]
fn an_endorsement_key_is_of_the_template_to_the_bit() {
    for key in [rsa(), Endorsement::Ecc(POINT)] {
        let whole = key.marshal();
        let head =
            Endorsement::head(if matches!(key, Endorsement::Rsa(_)) { EkKind::Rsa } else { EkKind::Ecc });
        for bit in 0..head.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Endorsement::parse(&changed).is_err(), "bit {bit}");
        }
    }
    let mut short = [0xff; 256];
    short[0] = 0x7f;
    assert!(Endorsement::parse(&Endorsement::Rsa(Box::new(short)).marshal()).is_err());
    assert!(Endorsement::parse(&Endorsement::Rsa(Box::new([0xfe; 256])).marshal()).is_err());
}

#[test]
fn an_attestation_key_that_could_leave_or_sign_anything_is_refused() {
    let with = |attributes: u32| [AttestationKey::head(attributes), POINT.marshal()].concat();
    assert!(AttestationKey::parse(&with(AK_ATTRIBUTES)).is_ok());
    for (bit, name) in [
        (FIXED_TPM, "fixedTPM"),
        (FIXED_PARENT, "fixedParent"),
        (SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (RESTRICTED, "restricted"),
        (SIGN, "sign"),
    ] {
        assert_eq!(AttestationKey::parse(&with(AK_ATTRIBUTES & !bit)), Err(TpmError::Attribute(name)));
    }
    assert!(matches!(AttestationKey::parse(&with(AK_ATTRIBUTES | DECRYPT)), Err(TpmError::Attribute(_))));
    // An endorsement key is no attestation key.
    assert!(AttestationKey::parse(&Endorsement::Ecc(POINT).marshal()).is_err());
    assert_eq!(AttestationKey::parse(&rsa().marshal()), Err(TpmError::Kind));
}

#[test]
fn only_a_quote_is_a_quote() {
    let mut other = quote(b"x");
    other[5] = 0x17; // TPM_ST_ATTEST_CERTIFY
    assert_eq!(quoted(&other), Err(TpmError::NotAQuote));
    let mut forged = quote(b"x");
    forged[0] = 0;
    assert_eq!(quoted(&forged), Err(TpmError::NotAQuote));
}

#[test]
fn numbers_without_their_leading_zeros_are_whole_again() {
    let whole = signature(&signed(&[5], &[6; 31])).unwrap();
    assert_eq!((whole[31], whole[32], whole[33]), (5, 0, 6));
    assert!(signature(&signed(&[1; 33], &[1; 32])).is_err());
    assert!(signature(&signed(&[], &[1; 32])).is_err());
}

#[test]
fn the_quote_separates_its_parts() {
    assert_ne!(quote_message(b"ab", b"c"), quote_message(b"a", b"bc"));
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_stumble(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = (Endorsement::parse(&bytes), AttestationKey::parse(&bytes), quoted(&bytes), signature(&bytes));
    }

    #[test]
    fn what_is_changed_reads_as_something_else_or_not_at_all(at in 0_usize..122, to in any::<u8>()) {
        let key = Endorsement::Ecc(POINT);
        let mut bytes = key.marshal();
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        if let Ok(read) = Endorsement::parse(&bytes) {
            prop_assert_ne!(read, key);
        }
    }
}
