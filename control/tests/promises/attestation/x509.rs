//! Client certificates of an existing PKI: the handshake is the proof, one field is mapped, the issuing CA is pinned.

use postern_config::enroll::Pin;
use postern_config::wire::v1::{self, ClientCertificate, enroll_request::Credential};
use postern_control::digest::sha256;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use tonic::Code;

use super::{REFUSED, identity};
use crate::harness::{Connection, Control, Keys, LONG, Svid};

const CREDENTIAL: Credential = Credential::X509(ClientCertificate {});

/// A CA with what leads to it, its own certificate first.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    above: Vec<CertificateDer<'static>>,
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Authority {
    fn root() -> (Self, String) {
        let key = KeyPair::generate().unwrap();
        let params = ca("House root");
        let pem = params.self_signed(&key).unwrap().pem();
        (Self { issuer: Issuer::new(params, key), above: Vec::new() }, pem)
    }

    /// A CA below this one; every one of them may have the same name.
    fn below(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca("House issuing CA");
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let above = [vec![certificate], self.above.clone()].concat();
        Self { issuer: Issuer::new(params, key), above }
    }

    fn pin(&self) -> Pin {
        Pin(sha256(&self.issuer.key().subject_public_key_info()))
    }

    /// A machine's certificate, with changes.
    fn machine(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        let key = KeyPair::generate().unwrap();
        let chain = self.certificate(name, &key, change);
        Svid { chain, key: key.serialize_der().into() }
    }

    fn certificate(
        &self,
        name: &str,
        key: &impl PublicKeyData,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let leaf = params.signed_by(key, &self.issuer).unwrap().der().clone();
        [vec![leaf], self.above.clone()].concat()
    }
}

/// A PKI of a root and an issuing CA, and a control plane that takes machines of that one CA by their DNS name.
struct House {
    control: Control,
    root: Authority,
    issuing: Authority,
    _roots: tempfile::NamedTempFile,
}

fn house() -> House {
    let (root, pem) = Authority::root();
    let issuing = root.below();
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), pem).unwrap();
    let yaml = format!(
        r#"
attest:
  x509:
    roots: "{}"
    rules:
      - match: {{ x509.issuer: "{pin}", x509.dns: [db-1.corp.example, db-2.corp.example] }}
        id: spiffe://corp.example/machines/{{x509.dns}}
      - match: {{ x509.issuer: "{pin}", x509.serial: "1234" }}
        id: spiffe://corp.example/machines/by-serial
"#,
        roots.path().display(),
        pin = issuing.pin()
    );
    House { control: Control::configured(&yaml), root, issuing, _roots: roots }
}

/// What a caller with this certificate is answered; `None` where there is no connection.
async fn enroll(
    control: &Control,
    machine: &Svid,
    keys: &Keys,
) -> Option<Result<v1::EnrollResponse, tonic::Status>> {
    let mut connection = Connection::open(control.listen, control.pin(), Some(machine)).await.ok()?;
    let request = connection.attested(CREDENTIAL, keys);
    match connection.client.enroll(request).await {
        // In TLS 1.3, a client learns with its first read that it was refused.
        Err(status) if status.code() == Code::Unknown || status.code() == Code::Cancelled => None,
        answer => Some(answer.map(tonic::Response::into_inner)),
    }
}

/// Expects that the handshake fails, for this reason.
async fn turned_away(control: &Control, machine: &Svid, reason: &str) {
    let count = || control.log().matches(&format!("reason={reason}")).count();
    let before = count();
    assert!(enroll(control, machine, &Keys::new()).await.is_none(), "{reason}");
    // The caller may know it before the log does.
    let begun = std::time::Instant::now();
    while count() == before {
        assert!(begun.elapsed() < LONG, "no {reason} in the log: {}", control.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn refused(control: &Control, machine: &Svid, reason: &str) {
    let before = control.refusals("enroll").len();
    let status = enroll(control, machine, &Keys::new()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, REFUSED));
    assert_eq!(control.refusals("enroll")[before..], [reason]);
}

#[tokio::test]
async fn a_machine_gets_the_identity_of_its_name_and_may_come_again() {
    let house = house();
    let machine = house.issuing.machine("db-1.corp.example", |_| {});
    for _ in 0..2 {
        let answer = enroll(&house.control, &machine, &Keys::new()).await.unwrap().unwrap();
        assert_eq!(identity(&answer), "spiffe://corp.example/machines/db-1.corp.example");
    }
    let by_serial =
        house.issuing.machine("x.corp.example", |p| p.serial_number = Some(vec![0x12, 0x34].into()));
    let answer = enroll(&house.control, &by_serial, &Keys::new()).await.unwrap().unwrap();
    assert_eq!(identity(&answer), "spiffe://corp.example/machines/by-serial");
    assert_eq!(house.control.issued("enroll"), 3);
}

#[tokio::test]
async fn such_a_caller_may_enroll_and_nothing_else() {
    let house = house();
    let machine = house.issuing.machine("db-1.corp.example", |_| {});
    let mut connection =
        Connection::open(house.control.listen, house.control.pin(), Some(&machine)).await.unwrap();
    let renew = v1::RenewRequest { csr: Keys::new().csr, ttl_ms: 0 };
    assert_eq!(connection.client.renew(renew).await.unwrap_err().code(), Code::Unauthenticated);
    let watch = connection.client.watch(tokio_stream::empty()).await;
    assert_eq!(watch.unwrap_err().code(), Code::Unauthenticated);
    // Whoever has no certificate of this PKI has nothing to enroll with; and a captured request is for its own connection.
    let captured = connection.attested(CREDENTIAL, &Keys::new());
    let mut anonymous = Connection::open(house.control.listen, house.control.pin(), None).await.unwrap();
    assert!(anonymous.client.enroll(captured.clone()).await.is_err());
    let own = anonymous.attested(CREDENTIAL, &Keys::new());
    assert_eq!(anonymous.client.enroll(own).await.unwrap_err().code(), Code::PermissionDenied);
    let mut again =
        Connection::open(house.control.listen, house.control.pin(), Some(&machine)).await.unwrap();
    assert!(again.client.enroll(captured).await.is_err());
    assert_eq!(house.control.refusals("enroll"), ["proof", "no_certificate", "proof"]);
}

#[tokio::test]
async fn another_ca_of_the_same_root_cannot_speak_for_a_name() {
    let house = house();
    // Same root, same names everywhere, another key.
    refused(&house.control, &house.root.below().machine("db-1.corp.example", |_| {}), "no_rule").await;
    refused(&house.control, &house.root.machine("db-1.corp.example", |_| {}), "no_rule").await;
    refused(&house.control, &house.issuing.below().machine("db-1.corp.example", |_| {}), "no_rule").await;
    // The pinned CA is presented along, and has not issued this.
    let mut beside = house.root.below().machine("db-1.corp.example", |_| {});
    beside.chain.extend(house.issuing.above.clone());
    refused(&house.control, &beside, "no_rule").await;
    // Another root of the same name.
    let other = Authority::root().0.below();
    let stranger = other.machine("db-1.corp.example", |_| {});
    assert!(enroll(&house.control, &stranger, &Keys::new()).await.is_none());
    assert_eq!(house.control.issued("enroll"), 0);
}

#[tokio::test]
async fn only_the_one_field_of_a_rule_counts() {
    let house = house();
    refused(&house.control, &house.issuing.machine("db-3.corp.example", |_| {}), "no_rule").await;
    let common_name =
        |p: &mut CertificateParams| p.distinguished_name.push(DnType::CommonName, "db-1.corp.example");
    refused(&house.control, &house.issuing.machine("x.corp.example", common_name), "no_rule").await;
    // Of two names, which one would it be?
    let two = |p: &mut CertificateParams| {
        p.subject_alt_names.push(SanType::DnsName("db-2.corp.example".try_into().unwrap()));
    };
    refused(&house.control, &house.issuing.machine("db-1.corp.example", two), "no_rule").await;
    let as_uri = |p: &mut CertificateParams| {
        p.subject_alt_names = vec![SanType::URI("db-1.corp.example".try_into().unwrap())];
    };
    refused(&house.control, &house.issuing.machine("x", as_uri), "no_rule").await;
}

#[tokio::test]
async fn a_copied_certificate_is_worth_nothing_without_its_key() {
    let house = house();
    let mut copied = house.issuing.machine("db-1.corp.example", |_| {});
    copied.key = KeyPair::generate().unwrap().serialize_der().into();
    assert!(enroll(&house.control, &copied, &Keys::new()).await.is_none());
    assert_eq!(house.control.issued("enroll"), 0);
    assert_eq!(house.control.refusals("enroll"), Vec::<String>::new());
}

#[tokio::test]
async fn a_foreign_pki_never_speaks_for_a_name_of_the_mesh() {
    let house = house();
    for uri in ["spiffe://corp.example/ns/shop/sa/web", "spiffe://corp.example/postern/control"] {
        let svid = |p: &mut CertificateParams| {
            p.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
            p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            p.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            p.is_ca = IsCa::ExplicitNoCa;
        };
        let machine = house.issuing.machine("db-1.corp.example", svid);
        assert!(enroll(&house.control, &machine, &Keys::new()).await.is_none(), "{uri}");
    }
    for uri in
        ["SPIFFE://corp.example/a", "spiffe://Corp.example/a", "spiffe://corp.example/../a", "spiffe:corp"]
    {
        let odd = |p: &mut CertificateParams| p.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        turned_away(&house.control, &house.issuing.machine("db-1.corp.example", odd), "bad_spiffe_id").await;
    }
    assert_eq!(house.control.issued("enroll"), 0);
}

#[tokio::test]
async fn what_is_not_for_clients_or_has_ended_is_turned_away() {
    let house = house();
    let name = "db-1.corp.example";
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change); 7] = [
        ("bad_certificate", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ("bad_certificate", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
        ("bad_certificate", |p| p.extended_key_usages.clear()),
        ("bad_certificate", |p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        ("bad_certificate", |p| p.key_usages.clear()),
        ("bad_certificate", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("expired", |p| p.not_after = rcgen::date_time_ymd(2025, 1, 1)),
    ];
    for (reason, change) in cases {
        turned_away(&house.control, &house.issuing.machine(name, change), reason).await;
    }
    let early = |p: &mut CertificateParams| p.not_before = rcgen::date_time_ymd(2090, 1, 1);
    turned_away(&house.control, &house.issuing.machine(name, early), "not_yet_valid").await;
    // The good one still gets through.
    enroll(&house.control, &house.issuing.machine(name, |_| {}), &Keys::new()).await.unwrap().unwrap();
}

/// An RSA key of which nobody has the private half: refused before anything is computed with it.
struct Modulus(Vec<u8>);

impl Modulus {
    fn new(bytes: usize) -> Self {
        let number = |tag: &[u8], content: Vec<u8>| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [tag, &[0x82], &length, &content].concat()
        };
        let modulus = number(&[0x02], [vec![0], vec![0xff; bytes]].concat());
        Self(number(&[0x30], [modulus, vec![0x02, 0x03, 1, 0, 1]].concat()))
    }
}

impl PublicKeyData for Modulus {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

#[tokio::test]
async fn what_costs_more_to_verify_than_to_send_is_not_verified() {
    let house = house();
    let name = "db-1.corp.example";
    for bytes in [1024, 513, 128] {
        let chain = house.issuing.certificate(name, &Modulus::new(bytes), |_| {});
        let machine = Svid { chain, key: KeyPair::generate().unwrap().serialize_der().into() };
        turned_away(&house.control, &machine, "bad_certificate").await;
    }
    // Four issuers below the root make five certificates.
    let deep = house.issuing.below().below().below();
    turned_away(&house.control, &deep.machine(name, |_| {}), "bad_certificate").await;
    let padded = |p: &mut CertificateParams| {
        let padding = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0; 16 * 1024]);
        p.custom_extensions.push(padding);
    };
    turned_away(&house.control, &house.issuing.machine(name, padded), "bad_certificate").await;
}

#[tokio::test]
async fn without_a_pki_in_the_configuration_no_such_certificate_is_taken() {
    let control = Control::configured("");
    let (root, _) = Authority::root();
    turned_away(&control, &root.below().machine("db-1.corp.example", |_| {}), "bad_spiffe_id").await;
    super::refused(&control, CREDENTIAL, "attest_off").await;
}
