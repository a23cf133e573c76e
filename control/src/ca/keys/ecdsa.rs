//! ECDSA as tokens speak it: digests in, `r || s` out (PKCS#11 3.1 §6.3.12); certificates want DER (RFC 3279 §2.2.3).

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use rcgen::PublicKeyData as _;

use crate::issue::csr::SubjectKey;

/// The digest that a key of this curve signs; `None` for a key that takes the message itself.
pub(super) fn digest_for(key: &SubjectKey, message: &[u8]) -> Option<Vec<u8>> {
    let algorithm = match key.der_bytes().len() {
        65 => &SHA256,
        97 => &SHA384,
        _ => return None,
    };
    Some(digest(algorithm, message).as_ref().to_vec())
}

/// `SEQUENCE { r INTEGER, s INTEGER }`; `None` unless both halves are there. Static builds load no tokens, which alone need it.
#[cfg(any(test, not(target_feature = "crt-static")))]
pub(super) fn der(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.is_empty() || !raw.len().is_multiple_of(2) || raw.len() > 96 {
        return None;
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    let mut body = Vec::with_capacity(raw.len() + 6);
    for half in [r, s] {
        let start = half.iter().position(|b| *b != 0)?;
        let digits = &half[start..];
        let pad = digits[0] >= 0x80;
        body.extend([0x02, u8::try_from(digits.len() + usize::from(pad)).ok()?]);
        body.extend(pad.then_some(0));
        body.extend_from_slice(digits);
    }
    let mut out = vec![0x30, u8::try_from(body.len()).ok().filter(|len| *len < 0x80)?];
    out.extend(body);
    Some(out)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1,
        ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    };

    /// Enough of them that every length of r and s turns up: a leading zero byte stands in one of 256.
    #[test]
    fn fixed_signatures_become_der_that_others_accept() {
        for (fixed, asn1) in [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P256_SHA256_ASN1),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, &ECDSA_P384_SHA384_ASN1),
        ] {
            let key = EcdsaKeyPair::generate(fixed).unwrap();
            let public = UnparsedPublicKey::new(asn1, key.public_key().as_ref());
            for round in 0..1500_u32 {
                let message = round.to_be_bytes();
                let raw = key.sign(&SystemRandom::new(), &message).unwrap();
                let der = super::der(raw.as_ref()).unwrap();
                public.verify(&message, &der).unwrap();
            }
        }
    }

    #[test]
    fn what_is_no_signature_stays_none() {
        for raw in [&[][..], &[1], &[0; 64], &[1; 98]] {
            assert_eq!(super::der(raw), None);
        }
        assert_eq!(super::der(&[0x80, 1]), Some(vec![0x30, 7, 2, 2, 0, 0x80, 2, 1, 1]));
    }
}
