//! TPMs by their endorsement keys: a challenge that one TPM can open, a quote that binds it to connection and request.
//!
//! The TPM here is one in software that does what its caller wants, which a real one refuses: that is what attackers have. Real
//! ones (`swtpm`) enroll in the end-to-end tests.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use postern_config::enroll::{Pin, proof_message};
use postern_config::tpm::{AttestationKey, Endorsement, Point, Reader, put_sized, quote_message};
use postern_config::wire::v1::{self, enroll_request::Credential};
use postern_control::digest::{hex, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use tonic::{Code, Status};

use super::{REFUSED, identity};
use crate::harness::{Connection, Control, Keys};

enum Private {
    Rsa(Box<OaepPrivateDecryptingKey>),
    Ecc(PrivateKey, Point),
}

/// A TPM that keeps no rule.
struct Tpm {
    private: Private,
    endorsement: Endorsement,
    certificate: Vec<u8>,
    key: EcdsaKeyPair,
    /// The attestation key as it is shown.
    area: Vec<u8>,
}

fn point(uncompressed: &[u8]) -> Point {
    Point { x: uncompressed[1..33].try_into().unwrap(), y: uncompressed[33..].try_into().unwrap() }
}

impl Tpm {
    fn ecc() -> Self {
        let private = PrivateKey::generate(&ECDH_P256).unwrap();
        let point = point(private.compute_public_key().unwrap().as_ref());
        Self::with(Private::Ecc(private, point), Endorsement::Ecc(point))
    }

    fn rsa() -> Self {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki = private.public_key().as_der().unwrap().as_ref().to_vec();
        let modulus: [u8; 256] = spki[33..289].try_into().unwrap();
        let endorsement = Endorsement::Rsa(Box::new(modulus));
        assert_eq!(endorsement.spki(), spki);
        Self::with(Private::Rsa(Box::new(OaepPrivateDecryptingKey::new(private).unwrap())), endorsement)
    }

    fn with(private: Private, endorsement: Endorsement) -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
        let area = area(&key);
        Self { private, endorsement, certificate: Vec::new(), key, area }
    }

    fn hash(&self) -> [u8; 32] {
        sha256(&self.endorsement.spki())
    }

    fn asks(&self) -> v1::ChallengeRequest {
        v1::ChallengeRequest {
            ek_public: self.endorsement.marshal(),
            ek_certificate: self.certificate.clone(),
            ak_public: self.area.clone(),
        }
    }

    /// TPM2_ActivateCredential; `None` where the name is not the credential's, as a TPM finds by the HMAC.
    fn activate(&self, challenge: &v1::ChallengeResponse, name: &[u8]) -> Option<Vec<u8>> {
        let seed: Vec<u8> = match &self.private {
            Private::Rsa(key) => {
                let mut out = vec![0; 256];
                let label = Some(b"IDENTITY\0".as_slice());
                key.decrypt(&OAEP_SHA256_MGF1SHA256, &challenge.encrypted_secret, &mut out, label)
                    .ok()?
                    .to_vec()
            }
            Private::Ecc(key, own) => {
                let mut reader = Reader::new(&challenge.encrypted_secret, "the seed");
                let (x, y) = (reader.sized(32).unwrap(), reader.sized(32).unwrap());
                reader.end().unwrap();
                let other = UnparsedPublicKey::new(&ECDH_P256, [&[4], x, y].concat());
                agree(key, other, (), |z| {
                    Ok(sha256(&[&[0, 0, 0, 1], z, b"IDENTITY\0", x, own.x.as_slice()].concat()).to_vec())
                })
                .ok()?
            }
        };
        let kdf = |label: &[u8], context: &[u8], bits: u32| {
            let input = [&[0, 0, 0, 1], label, &[0], context, &bits.to_be_bytes()].concat();
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &seed), &input)
        };
        let mut reader = Reader::new(&challenge.credential_blob, "the credential");
        let integrity = reader.sized(32).unwrap();
        let mut identity = reader.bytes(34).unwrap().to_vec();
        reader.end().unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, kdf(b"INTEGRITY", &[], 256).as_ref());
        hmac::verify(&key, &[&identity, name].concat(), integrity).ok()?;
        let storage = kdf(b"STORAGE", name, 128);
        let key = UnboundCipherKey::new(&AES_128, &storage.as_ref()[..16]).unwrap();
        let context = DecryptionContext::Iv128(FixedLength::from([0; 16]));
        DecryptingKey::cfb128(key).unwrap().decrypt(&mut identity, context).unwrap();
        Some(Reader::new(&identity, "the secret").sized(32).unwrap().to_vec())
    }

    fn name(&self) -> Vec<u8> {
        [&[0, 0x0b], sha256(&self.area).as_slice()].concat()
    }

    /// TPM2_Quote over no PCR.
    fn quote(&self, extra: &[u8]) -> Vec<u8> {
        let mut out = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18];
        put_sized(&mut out, &[0; 34]);
        put_sized(&mut out, extra);
        out.extend_from_slice(&[0; 29]);
        put_sized(&mut out, &sha256(b""));
        out
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&SystemRandom::new(), message).unwrap();
        let mut out = vec![0, 0x18, 0, 0x0b];
        put_sized(&mut out, &signature.as_ref()[..32]);
        put_sized(&mut out, &signature.as_ref()[32..]);
        out
    }

    fn answer(&self, secret: &[u8], proof_message: &[u8]) -> v1::Tpm {
        let quote = self.quote(&sha256(&quote_message(secret, proof_message)));
        let signature = self.sign(&quote);
        v1::Tpm { secret: secret.to_vec(), quote, signature }
    }
}

/// The public area of this key, with the template's attributes.
fn area(key: &EcdsaKeyPair) -> Vec<u8> {
    let template = AttestationKey::template(&[0; 32]);
    let head = template.len() - 68;
    [&template[..head], &point(key.public_key().as_ref()).marshal()].concat()
}

/// Sets or clears bits of an attestation key's attributes.
fn changed(area: &[u8], flip: u32) -> Vec<u8> {
    let attributes = u32::from_be_bytes(area[4..8].try_into().unwrap()) ^ flip;
    [&area[..4], &attributes.to_be_bytes(), &area[8..]].concat()
}

async fn open(control: &Control) -> Connection {
    Connection::open(control.listen, control.pin(), None).await.unwrap()
}

async fn ask(connection: &mut Connection, tpm: &Tpm) -> Result<v1::ChallengeResponse, Status> {
    connection.client.challenge(tpm.asks()).await.map(tonic::Response::into_inner)
}

/// What an honest proxy sends: the request with the answer for it.
fn request(connection: &Connection, tpm: &Tpm, secret: &[u8], keys: &Keys) -> v1::EnrollRequest {
    let mut request = connection.attested(Credential::Tpm(v1::Tpm::default()), keys);
    let bound = proof_message(&connection.exporter, &request.nonce, &request.csr);
    request.credential = Some(Credential::Tpm(tpm.answer(secret, &bound)));
    request
}

async fn enroll(control: &Control, tpm: &Tpm) -> Result<v1::EnrollResponse, Status> {
    let mut connection = open(control).await;
    let challenge = ask(&mut connection, tpm).await?;
    let secret = tpm.activate(&challenge, &tpm.name()).unwrap();
    let request = request(&connection, tpm, &secret, &Keys::new());
    connection.client.enroll(request).await.map(tonic::Response::into_inner)
}

fn assert_refused<T: std::fmt::Debug>(control: &Control, answer: Result<T, Status>, reason: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, REFUSED), "{reason}");
    assert_eq!(control.refusals("enroll").last().map(String::as_str), Some(reason));
}

/// A control plane that knows these TPMs by their keys.
fn knows(tpms: &[&Tpm]) -> Control {
    let hashes: Vec<String> = tpms.iter().map(|tpm| format!("\"{}\"", Pin(tpm.hash()))).collect();
    Control::configured(&format!(
        "attest:\n  tpm:\n    ek_hashes: [{}]\n    rules:\n      - match: {{ tpm.ek: \"*\" }}\n        id: spiffe://corp.example/machines/{{tpm.ek}}\n",
        hashes.join(", ")
    ))
}

#[tokio::test]
async fn a_known_tpm_gets_its_identity_by_either_kind_of_key_and_may_come_again() {
    let tpms = [Tpm::ecc(), Tpm::rsa()];
    let control = knows(&[&tpms[0], &tpms[1]]);
    for tpm in [&tpms[0], &tpms[1], &tpms[0]] {
        let answer = enroll(&control, tpm).await.unwrap();
        assert_eq!(identity(&answer), format!("spiffe://corp.example/machines/{}", hex(&tpm.hash())));
    }
    assert_refused(&control, enroll(&control, &Tpm::ecc()).await, "tpm_ek_unknown");
    assert_eq!(control.issued("enroll"), 3);
    // Where no TPM is configured, none is asked anything.
    let without = Control::start();
    assert_refused(&without, enroll(&without, &tpms[0]).await, "attest_off");
}

#[tokio::test]
async fn keys_that_prove_nothing_get_no_challenge() {
    let mut tpm = Tpm::ecc();
    let control = knows(&[&tpm]);
    let good = tpm.area.clone();
    // fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign; and one that decrypts as well.
    for bit in [1, 4, 5, 16, 18, 17] {
        tpm.area = changed(&good, 1 << bit);
        let mut connection = open(&control).await;
        assert_refused(&control, ask(&mut connection, &tpm).await, "tpm_ak_attributes");
    }
    let malformed = [good[..good.len() - 1].to_vec(), [good.as_slice(), &[0]].concat(), Vec::new()];
    for area in malformed {
        tpm.area = area;
        let mut connection = open(&control).await;
        assert_refused(&control, ask(&mut connection, &tpm).await, "tpm_malformed");
    }
    tpm.area = tpm.endorsement.marshal();
    let mut connection = open(&control).await;
    assert_refused(&control, ask(&mut connection, &tpm).await, "tpm_ak_attributes");
    tpm.area = good;
    let mut asks = tpm.asks();
    // An endorsement key that could be used for something else than credentials.
    asks.ek_public = changed(&asks.ek_public, 1 << 16);
    assert_refused(&control, connection.client.challenge(asks).await, "tpm_ek_template");
    // A point that is not on the curve.
    let off = Tpm { endorsement: Endorsement::Ecc(Point { x: [1; 32], y: [1; 32] }), ..Tpm::ecc() };
    let control = knows(&[&off]);
    let mut connection = open(&control).await;
    assert_refused(&control, ask(&mut connection, &off).await, "tpm_ek_key");
}

#[tokio::test]
async fn a_credential_opens_for_the_very_key_that_it_was_made_for() {
    let tpm = Tpm::ecc();
    let control = knows(&[&tpm]);
    let mut connection = open(&control).await;
    let challenge = ask(&mut connection, &tpm).await.unwrap();
    // The attacker's own key, beside the real one in the same TPM; the same key with other attributes; another TPM.
    assert!(tpm.activate(&challenge, &Tpm::ecc().name()).is_none());
    let loose = [&[0, 0x0b], sha256(&changed(&tpm.area, 1 << 16)).as_slice()].concat();
    assert!(tpm.activate(&challenge, &loose).is_none());
    assert!(Tpm::ecc().activate(&challenge, &tpm.name()).is_none());
    assert!(tpm.activate(&challenge, &tpm.name()).is_some());
    // Who knows the keys but cannot open the challenge has to guess.
    let guess = request(&connection, &tpm, &[7; 32], &Keys::new());
    assert_refused(&control, connection.client.enroll(guess).await, "tpm_secret");
}

#[tokio::test]
async fn a_challenge_is_for_one_connection_and_one_try() {
    let tpm = Tpm::ecc();
    let control = knows(&[&tpm]);
    let mut connection = open(&control).await;
    let never_asked = request(&connection, &tpm, &[7; 32], &Keys::new());
    assert_refused(&control, connection.client.enroll(never_asked).await, "tpm_no_challenge");
    let challenge = ask(&mut connection, &tpm).await.unwrap();
    let secret = tpm.activate(&challenge, &tpm.name()).unwrap();
    // Another connection has no challenge, or one of its own.
    let mut other = open(&control).await;
    let elsewhere = request(&other, &tpm, &secret, &Keys::new());
    assert_refused(&control, other.client.enroll(elsewhere).await, "tpm_no_challenge");
    ask(&mut other, &tpm).await.unwrap();
    let elsewhere = request(&other, &tpm, &secret, &Keys::new());
    assert_refused(&control, other.client.enroll(elsewhere).await, "tpm_secret");
    // The first one is still open, once.
    let answer = request(&connection, &tpm, &secret, &Keys::new());
    connection.client.enroll(answer.clone()).await.unwrap();
    assert_refused(&control, connection.client.enroll(answer).await, "tpm_no_challenge");
    // A new one replaces the one before; and nobody asks for ever.
    let earlier = ask(&mut connection, &tpm).await.unwrap();
    ask(&mut connection, &tpm).await.unwrap();
    let earlier = tpm.activate(&earlier, &tpm.name()).unwrap();
    let stale = request(&connection, &tpm, &earlier, &Keys::new());
    assert_refused(&control, connection.client.enroll(stale).await, "tpm_secret");
    ask(&mut connection, &tpm).await.unwrap();
    assert_eq!(ask(&mut connection, &tpm).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(control.issued("enroll"), 1);
}

#[tokio::test]
async fn a_quote_is_for_one_request_and_made_by_the_tpm() {
    let tpm = Tpm::ecc();
    let control = knows(&[&tpm]);
    type Change = fn(&Tpm, &[u8], &[u8]) -> v1::Tpm;
    let cases: [(&str, Change); 6] = [
        // A key that signs what it is given would have signed this.
        ("tpm_not_a_quote", |tpm, secret, bound| {
            let message = sha256(&quote_message(secret, bound)).to_vec();
            v1::Tpm { secret: secret.to_vec(), signature: tpm.sign(&message), quote: message }
        }),
        ("tpm_not_a_quote", |tpm, secret, bound| {
            let mut quote = tpm.answer(secret, bound).quote;
            quote[5] = 0x17;
            v1::Tpm { secret: secret.to_vec(), signature: tpm.sign(&quote), quote }
        }),
        ("tpm_signature", |tpm, secret, bound| {
            let answer = tpm.answer(secret, bound);
            v1::Tpm { signature: Tpm::ecc().sign(&answer.quote), ..answer }
        }),
        ("tpm_malformed", |tpm, secret, bound| {
            let mut answer = tpm.answer(secret, bound);
            answer.quote.push(0);
            v1::Tpm { signature: tpm.sign(&answer.quote), ..answer }
        }),
        ("tpm_malformed", |tpm, secret, bound| v1::Tpm {
            signature: vec![0, 0x18, 0, 0x0b, 0xff, 0xff],
            ..tpm.answer(secret, bound)
        }),
        ("tpm_other_request", |tpm, secret, _| tpm.answer(secret, b"something else")),
    ];
    for (reason, change) in cases {
        let mut connection = open(&control).await;
        let challenge = ask(&mut connection, &tpm).await.unwrap();
        let secret = tpm.activate(&challenge, &tpm.name()).unwrap();
        let mut request = request(&connection, &tpm, &secret, &Keys::new());
        let bound = proof_message(&connection.exporter, &request.nonce, &request.csr);
        request.credential = Some(Credential::Tpm(change(&tpm, &secret, &bound)));
        assert_refused(&control, connection.client.enroll(request).await, reason);
    }
    // A good answer is taken off and put before another key, which is proven as well.
    let mut connection = open(&control).await;
    let challenge = ask(&mut connection, &tpm).await.unwrap();
    let secret = tpm.activate(&challenge, &tpm.name()).unwrap();
    let honest = request(&connection, &tpm, &secret, &Keys::new());
    let stolen = connection.attested(honest.credential.unwrap(), &Keys::new());
    assert_refused(&control, connection.client.enroll(stolen).await, "tpm_other_request");
    assert_eq!(control.issued("enroll"), 0);
}

/// A maker's CA.
fn maker() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Maker's EK CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

/// An endorsement key, as certificates want it.
struct Ek<'a>(&'a Endorsement, Vec<u8>);

impl<'a> Ek<'a> {
    fn of(tpm: &'a Tpm) -> Self {
        let bits = match &tpm.endorsement {
            Endorsement::Ecc(point) => point.uncompressed().to_vec(),
            key @ Endorsement::Rsa(_) => key.spki()[24..].to_vec(),
        };
        Self(&tpm.endorsement, bits)
    }
}

impl PublicKeyData for Ek<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.1
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        if matches!(self.0, Endorsement::Rsa(_)) {
            &rcgen::PKCS_RSA_SHA256
        } else {
            &rcgen::PKCS_ECDSA_P256_SHA256
        }
    }
}

/// DER: one value of at most 127 bytes.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

/// The subject's alternative names as makers write them: manufacturer and model in a directory name.
fn made_by(manufacturer: &str, model: &str) -> CustomExtension {
    let attribute = |last: u8, value: &str| {
        let oid = der(0x06, &[0x67, 0x81, 0x05, 0x02, last]);
        der(0x31, &der(0x30, &[oid, der(0x0c, value.as_bytes())].concat()))
    };
    let name = der(0x30, &[attribute(1, manufacturer), attribute(2, model)].concat());
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &der(0xa4, &name)));
    extension.set_criticality(true);
    extension
}

fn certificate(
    issuer: &Issuer<'static, KeyPair>,
    tpm: &Tpm,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    params.custom_extensions = vec![made_by("id:4a4B4c4d", "soft")];
    change(&mut params);
    params.signed_by(&Ek::of(tpm), issuer).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_makers_certificate_says_whose_the_tpm_is() {
    let (issuer, pem) = maker();
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), pem).unwrap();
    let control = Control::configured(&format!(
        "attest:\n  tpm:\n    ek_roots: \"{}\"\n    rules:\n      - match: {{ tpm.ek: \"*\", tpm.manufacturer: 4A4B4C4D }}\n        id: spiffe://corp.example/{{tpm.model}}/{{tpm.ek}}\n",
        roots.path().display()
    ));
    for mut tpm in [Tpm::rsa(), Tpm::ecc()] {
        assert_refused(&control, enroll(&control, &tpm).await, "tpm_ek_unknown");
        tpm.certificate = certificate(&issuer, &tpm, |_| {});
        let answer = enroll(&control, &tpm).await.unwrap();
        assert_eq!(identity(&answer), format!("spiffe://corp.example/soft/{}", hex(&tpm.hash())));
    }
    let mut tpm = Tpm::ecc();
    // Another CA of the same name; somebody else's certificate; one that has ended; a CA's; one for another use.
    tpm.certificate = certificate(&maker().0, &tpm, |_| {});
    assert_refused(&control, enroll(&control, &tpm).await, "tpm_ek_certificate");
    tpm.certificate = certificate(&issuer, &Tpm::ecc(), |_| {});
    assert_refused(&control, enroll(&control, &tpm).await, "tpm_ek_other");
    type Change = fn(&mut CertificateParams);
    let cases: [Change; 3] = [
        |p| p.not_after = rcgen::date_time_ymd(2025, 1, 1),
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
    ];
    for change in cases {
        tpm.certificate = certificate(&issuer, &tpm, change);
        assert_refused(&control, enroll(&control, &tpm).await, "tpm_ek_certificate");
    }
    tpm.certificate = vec![0x30; 9000];
    assert_refused(&control, enroll(&control, &tpm).await, "tpm_ek_certificate");
    // The maker's word counts as it stands: another maker, or two, is not the one of the rule.
    for (manufacturer, reason) in [("id:00000000", "no_rule"), ("4A4B4C4D", "no_rule")] {
        tpm.certificate =
            certificate(&issuer, &tpm, |p| p.custom_extensions = vec![made_by(manufacturer, "soft")]);
        assert_refused(&control, enroll(&control, &tpm).await, reason);
    }
    tpm.certificate =
        certificate(&issuer, &tpm, |p| p.custom_extensions = vec![made_by("id:4A4B4C4D", "../x")]);
    assert_refused(&control, enroll(&control, &tpm).await, "bad_identity");
    assert_eq!(control.issued("enroll"), 2);
}
