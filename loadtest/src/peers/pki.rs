//! A CA of the rig's own: P-256 leaves that the root signs itself, for servers and for any number of clients.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::mesh::Directory;

/// The name that every server's certificate carries.
pub const SERVER: &str = "server.rig.test";
/// The trust domain of clients' certificates.
pub(super) const TRUST_DOMAIN: &str = "rig.test";

/// The CA, with the files that servers read.
pub struct Pki {
    root: CertifiedIssuer<'static, KeyPair>,
    dir: Directory,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// The leaf alone: its issuer is the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pki")
    }
}

impl Pki {
    /// A fresh one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named("rig root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pki = Self { root, dir: Directory::new()? };
        std::fs::write(pki.ca_file(), pki.root.pem())?;
        for name in ["server", "client"] {
            let key = KeyPair::generate()?;
            let leaf = pki.leaf(name, &key)?;
            let pem = leaf.pem();
            std::fs::write(pki.path(&format!("{name}.crt")), &pem)?;
            std::fs::write(pki.path(&format!("{name}.key")), key.serialize_pem())?;
            // HAProxy wants both in one.
            std::fs::write(pki.path(&format!("{name}.pem")), pem + &key.serialize_pem())?;
        }
        Ok(pki)
    }

    /// A client's certificate that nobody has seen before. The key is the same for all where one is given: what a server
    /// has to do does not depend on it, and making one costs more than signing.
    pub fn client(&self, number: u64, key: &KeyPair) -> Result<Identity> {
        let leaf = self.leaf(&format!("client-{number}"), key)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Identity { chain: vec![leaf.der().clone()], key: key.into() })
    }

    /// Writes so many leaves of clients into one PEM file, and the key of them all into another.
    pub fn clients(&self, count: u64) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let leaves: Result<String> =
            (0..count).map(|i| Ok(self.leaf(&format!("client-{i}"), &key)?.pem())).collect();
        let (leaves_file, key_file) =
            (self.path(&format!("clients-{count}.pem")), self.path(&format!("clients-{count}.key")));
        std::fs::write(&leaves_file, leaves?)?;
        std::fs::write(&key_file, key.serialize_pem())?;
        Ok((leaves_file, key_file))
    }

    /// The root, in DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.root.der()
    }

    /// The root's PEM file.
    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A file of `server` or `client`: `.crt`, `.key`, or both in `.pem`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn leaf(&self, name: &str, key: &KeyPair) -> Result<rcgen::Certificate> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::ExplicitNoCa;
        let uri = format!("spiffe://{TRUST_DOMAIN}/{name}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?), SanType::DnsName(SERVER.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.root)?)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}
