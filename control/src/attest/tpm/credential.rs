//! TPM2_MakeCredential without a TPM (TPM Library, part 1, 24 and B.10.3, C.6.4): a secret that a TPM with this endorsement key
//! gives to nobody but beside a key of this name.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use postern_config::tpm::{Endorsement, Point, put_sized};
use zeroize::Zeroizing;

use crate::digest::{random, sha256};

/// TPM2_ActivateCredential's parameters.
pub(super) struct Credential {
    /// TPMS_ID_OBJECT.
    pub(super) blob: Vec<u8>,
    /// The seed as the endorsement key alone can read it.
    pub(super) encrypted_seed: Vec<u8>,
}

/// Makes a credential that holds `secret` for the object of this name.
pub(super) fn make(key: &Endorsement, name: &[u8], secret: &[u8]) -> Result<Credential, Unspecified> {
    let (seed, encrypted_seed) = match key {
        Endorsement::Rsa(_) => encrypted(key)?,
        Endorsement::Ecc(point) => agreed(point)?,
    };
    let mut identity = Vec::with_capacity(secret.len() + 2);
    put_sized(&mut identity, secret);
    // The key is for this one message, so the specification's initialisation vector is zero.
    let storage = kdf_a(&seed, b"STORAGE\0", name, 128);
    let cipher = EncryptingKey::cfb128(UnboundCipherKey::new(&AES_128, &storage[..16])?)?;
    cipher.less_safe_encrypt(&mut identity, EncryptionContext::Iv128(FixedLength::from([0; 16])))?;
    let integrity = hmac::Key::new(hmac::HMAC_SHA256, kdf_a(&seed, b"INTEGRITY\0", &[], 256).as_slice());
    let mut signed = hmac::Context::with_key(&integrity);
    signed.update(&identity);
    signed.update(name);
    let mut blob = Vec::with_capacity(34 + identity.len());
    put_sized(&mut blob, signed.sign().as_ref());
    blob.extend_from_slice(&identity);
    Ok(Credential { blob, encrypted_seed })
}

type Seed = Zeroizing<[u8; 32]>;

/// A seed that is encrypted to an RSA key.
fn encrypted(key: &Endorsement) -> Result<(Seed, Vec<u8>), Unspecified> {
    let seed = Zeroizing::new(random()?);
    let public = PublicEncryptingKey::from_der(&key.spki()).map_err(|_| Unspecified)?;
    let public = OaepPublicEncryptingKey::new(public)?;
    let mut out = vec![0; public.ciphertext_size()];
    let length =
        public.encrypt(&OAEP_SHA256_MGF1SHA256, seed.as_slice(), &mut out, Some(b"IDENTITY\0"))?.len();
    out.truncate(length);
    Ok((seed, out))
}

/// A seed that is agreed upon with an ECC key; refuses what is no point of the curve.
fn agreed(with: &Point) -> Result<(Seed, Vec<u8>), Unspecified> {
    let ephemeral = PrivateKey::generate(&ECDH_P256)?;
    let public = ephemeral.compute_public_key()?;
    let point = Point {
        x: public.as_ref().get(1..33).and_then(|x| x.try_into().ok()).ok_or(Unspecified)?,
        y: public.as_ref().get(33..65).and_then(|y| y.try_into().ok()).ok_or(Unspecified)?,
    };
    let other = UnparsedPublicKey::new(&ECDH_P256, with.uncompressed());
    let seed = agree(&ephemeral, other, Unspecified, |z| Ok(kdf_e(z, &point.x, &with.x)))?;
    Ok((seed, point.marshal()))
}

/// KDFe (part 1, 11.4.10.3) for 256 bits: one block.
fn kdf_e(z: &[u8], party_u: &[u8], party_v: &[u8]) -> Seed {
    let input = Zeroizing::new([&1_u32.to_be_bytes(), z, b"IDENTITY\0", party_u, party_v].concat());
    Zeroizing::new(sha256(&input))
}

/// KDFa (part 1, 11.4.10.2) for at most 256 bits: one block.
fn kdf_a(seed: &Seed, label: &[u8], context: &[u8], bits: u32) -> Seed {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed.as_slice());
    let input = [&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()].concat();
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(hmac::sign(&key, &input).as_ref());
    out
}
