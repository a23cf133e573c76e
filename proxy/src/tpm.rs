//! This machine's TPM 2.0, as far as an enrollment needs it: who it is, a challenge opened, a statement over a request.
//!
//! Spoken by hand, nine commands over the kernel's resource manager: the C library for it would come into every image, and a
//! statically linked proxy could not load it. All of it blocks, for seconds on some chips; nothing of it belongs on a worker.

use std::path::Path;

use postern_config::file::attest::{EkChoice, Tpm as Config};
use postern_config::tpm::{
    AttestationKey, EK_CERTIFICATES, EK_HANDLES, EkKind, Endorsement, MAX_CERTIFICATE, Reader, TpmError,
    put_sized, quote_message,
};
use postern_config::wire::v1;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::tls::sha256;

mod device;
#[cfg(test)]
mod tests;

use device::{Auth, Code, Device};

const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
const ENDORSEMENT: u32 = 0x4000_000b;

/// TPMA_NV_OWNERREAD and TPMA_NV_AUTHREAD.
const OWNER_READ: u32 = 1 << 17;
const AUTH_READ: u32 = 1 << 18;
/// Every TPM gives so much of its NV memory at once, bytes.
const NV_CHUNK: usize = 512;

/// Why the TPM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is not there, or does not talk.
    #[error("{0}: {1}")]
    Device(String, std::io::Error),
    /// It refuses a command.
    #[error(
        "it refuses {0} with response code {1:#x}; with an authorization set on its hierarchies, it cannot be used"
    )]
    Refused(&'static str, u32),
    /// Its answer, or one of its keys.
    #[error(transparent)]
    Answer(#[from] TpmError),
    /// The certificate in the configuration.
    #[error("{0}")]
    Certificate(String),
}

/// A TPM with the two keys of one enrollment loaded. What it holds is given back when this is dropped.
pub struct Tpm {
    device: Device,
    endorsement: (u32, Endorsement),
    certificate: Vec<u8>,
    attestation: (u32, Vec<u8>),
}

impl Tpm {
    /// Finds the endorsement key with its certificate, and makes an attestation key for this enrollment alone.
    pub fn open(config: &Config) -> Result<Self, Fault> {
        let mut device = Device::open(&config.device)?;
        let kind = match config.ek {
            EkChoice::Rsa => EkKind::Rsa,
            EkChoice::Ecc => EkKind::Ecc,
        };
        let certificate = match &config.certificate_file {
            Some(path) => read_certificate(path)?,
            None => nv_certificate(&mut device, EK_CERTIFICATES[kind as usize])?.unwrap_or_default(),
        };
        let endorsement = endorsement(&mut device, kind)?;
        let attestation = create_primary(&mut device, &AttestationKey::template(&rand::random()))?;
        Ok(Self { device, endorsement, certificate, attestation })
    }

    /// The endorsement key as the control plane's configuration names it: SHA-256 over its SubjectPublicKeyInfo.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.endorsement.1.spki())
    }

    /// Whether there is a certificate of the endorsement key.
    pub fn is_certified(&self) -> bool {
        !self.certificate.is_empty()
    }

    /// Who this is: what the control plane makes a challenge for.
    pub fn asks(&self) -> v1::ChallengeRequest {
        v1::ChallengeRequest {
            ek_public: self.endorsement.1.marshal(),
            ek_certificate: self.certificate.clone(),
            ak_public: self.attestation.1.clone(),
        }
    }

    /// Opens the challenge, and has the TPM state that secret, connection and request belong together.
    pub fn answer(
        mut self,
        challenge: &v1::ChallengeResponse,
        proof_message: &[u8],
    ) -> Result<v1::Tpm, Fault> {
        let secret = self.activate(challenge)?;
        let mut parameters = Vec::with_capacity(64);
        put_sized(&mut parameters, &sha256(&quote_message(&secret, proof_message)));
        parameters.extend_from_slice(&[0, 0x10]); // the key's own scheme
        parameters.extend_from_slice(&0_u32.to_be_bytes()); // no PCR
        let answer = self.device.call(Code::QUOTE, &[self.attestation.0], &[Auth::EMPTY], &parameters)?;
        let mut reader = answer.parameters("the quote")?;
        let quote = reader.sized(1024)?.to_vec();
        Ok(v1::Tpm { secret, quote, signature: reader.rest().to_vec() })
    }

    fn activate(&mut self, challenge: &v1::ChallengeResponse) -> Result<Vec<u8>, Fault> {
        let session = policy_session(&mut self.device)?;
        // The endorsement key's own policy: whoever may use its hierarchy.
        let anything = [0; 2 + 2 + 2 + 4];
        self.device.call(Code::POLICY_SECRET, &[ENDORSEMENT, session], &[Auth::EMPTY], &anything)?;
        let mut parameters = Vec::with_capacity(400);
        put_sized(&mut parameters, &challenge.credential_blob);
        put_sized(&mut parameters, &challenge.encrypted_secret);
        let handles = [self.attestation.0, self.endorsement.0];
        let auths = [Auth::EMPTY, Auth(session)];
        let answer = self.device.call(Code::ACTIVATE_CREDENTIAL, &handles, &auths, &parameters)?;
        Ok(answer.parameters("the challenge's secret")?.sized(64)?.to_vec())
    }
}

/// The endorsement key: where it is kept, or derived anew from the same seed.
fn endorsement(device: &mut Device, kind: EkKind) -> Result<(u32, Endorsement), Fault> {
    let handle = EK_HANDLES[kind as usize];
    if let Ok(answer) = device.call(Code::READ_PUBLIC, &[handle], &[], &[]) {
        let kept = Endorsement::parse(answer.parameters("the endorsement key")?.sized(1024)?);
        // Something else may lie there.
        if let Ok(kept) = kept
            && kept.kind() == kind
        {
            return Ok((handle, kept));
        }
    }
    let (handle, area) = create_primary(device, &Endorsement::template(kind))?;
    Ok((handle, Endorsement::parse(&area)?))
}

/// TPM2_CreatePrimary in the endorsement hierarchy: its handle and its public area.
fn create_primary(device: &mut Device, template: &[u8]) -> Result<(u32, Vec<u8>), Fault> {
    let mut parameters = Vec::with_capacity(400);
    put_sized(&mut parameters, &[0; 4]); // no authorization, no data
    put_sized(&mut parameters, template);
    parameters.extend_from_slice(&[0; 2 + 4]); // nothing from outside, no PCR
    let answer = device.call(Code::CREATE_PRIMARY, &[ENDORSEMENT], &[Auth::EMPTY], &parameters)?;
    Ok((answer.handle()?, answer.parameters("a new key")?.sized(1024)?.to_vec()))
}

fn policy_session(device: &mut Device) -> Result<u32, Fault> {
    let mut parameters = Vec::with_capacity(48);
    put_sized(&mut parameters, &rand::random::<[u8; 32]>());
    parameters.extend_from_slice(&[0, 0]); // no salt
    parameters.push(1); // TPM_SE_POLICY
    parameters.extend_from_slice(&[0, 0x10, 0, 0x0b]); // no encryption of parameters, SHA-256
    device.call(Code::START_AUTH_SESSION, &[NULL, NULL], &[], &parameters)?.handle()
}

/// A certificate in NV memory; `None` where there is none.
fn nv_certificate(device: &mut Device, index: u32) -> Result<Option<Vec<u8>>, Fault> {
    let Ok(answer) = device.call(Code::NV_READ_PUBLIC, &[index], &[], &[]) else { return Ok(None) };
    let what = "the certificate in NV memory";
    let mut public = Reader::new(answer.parameters(what)?.sized(256)?, what);
    let (_index, _name_algorithm, attributes) = (public.u32()?, public.u16()?, public.u32()?);
    public.sized(64)?;
    let size = usize::from(public.u16()?);
    if size > MAX_CERTIFICATE {
        return Err(TpmError::Malformed(what).into());
    }
    let reader = match (attributes & AUTH_READ != 0, attributes & OWNER_READ != 0) {
        (true, _) => index,
        (_, true) => OWNER,
        _ => return Ok(None),
    };
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        let count = NV_CHUNK.min(size - out.len()) as u16;
        let parameters = [count.to_be_bytes(), (out.len() as u16).to_be_bytes()].concat();
        let answer = device.call(Code::NV_READ, &[reader, index], &[Auth::EMPTY], &parameters)?;
        match answer.parameters(what)?.sized(NV_CHUNK)? {
            [] => return Err(TpmError::Malformed(what).into()),
            more => out.extend_from_slice(more),
        }
    }
    Ok(Some(trimmed(out)))
}

/// Makers fill what the certificate leaves of its place.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    if let [0x30, 0x82, high, low, ..] = bytes[..] {
        bytes.truncate(4 + usize::from(u16::from_be_bytes([high, low])));
    }
    bytes
}

fn read_certificate(path: &Path) -> Result<Vec<u8>, Fault> {
    let wrong = |why: String| Fault::Certificate(format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    if bytes.first() == Some(&0x30) {
        return Ok(bytes);
    }
    CertificateDer::from_pem_slice(&bytes).map(|der| der.to_vec()).map_err(|e| wrong(e.to_string()))
}
