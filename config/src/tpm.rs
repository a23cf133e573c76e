//! What a TPM 2.0 says of its keys: the few structures of the TPM Library specification, part 2, that an enrollment exchanges, each
//! read whole or not at all. Pure.
//!
//! An enrollment takes one kind of attestation key (P-256, ECDSA, SHA-256) and the two endorsement keys that every TPM for PCs
//! has (TCG EK Credential Profile, templates L-1 and L-2), so each has one encoding and there is little to read wrongly.

#[cfg(test)]
mod tests;

/// Where an endorsement key's certificate lies in a TPM's NV memory, by its [`EkKind`] (TCG EK Credential Profile 2.2.1.4).
pub const EK_CERTIFICATES: [u32; 2] = [0x01c0_0002, 0x01c0_000a];
/// Where an endorsement key is often kept, by its [`EkKind`] (TCG TPM v2.0 Provisioning Guidance 7.8).
pub const EK_HANDLES: [u32; 2] = [0x8101_0001, 0x8101_0002];
/// No EK certificate that is taken is larger, bytes.
pub const MAX_CERTIFICATE: usize = 8 * 1024;

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
const CURVE_P256: u16 = 0x0003;

const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const ADMIN_WITH_POLICY: u32 = 1 << 7;
const NO_DA: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const EK_ATTRIBUTES: u32 =
    FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT;
/// PolicySecret(endorsement): whoever may use the endorsement hierarchy may use its key.
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// A key that is born in this TPM, never leaves it, and signs nothing but what the TPM itself has made.
const AK_ATTRIBUTES: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN;

/// Begins everything that a restricted key signs (TPM_GENERATED_VALUE).
const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const QUOTE: u16 = 0x8018;

const RSA_SPKI: [u8; 33] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
    0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00,
];
const RSA_EXPONENT: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];
const P256_SPKI: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

/// Why something a TPM is said to have made is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// Too short, too long, or a length that does not fit.
    #[error("{0} cannot be read")]
    Malformed(&'static str),
    /// Not one of the two endorsement keys.
    #[error("the endorsement key is not of the default RSA 2048 or P-256 template")]
    Endorsement,
    /// Not the kind of attestation key that is taken.
    #[error("the attestation key is not P-256 with ECDSA and SHA-256")]
    Kind,
    /// A key that is not bound to its TPM, or would sign whatever it is given.
    #[error("the attestation key is not {0}")]
    Attribute(&'static str),
    /// Not a quote that a TPM made.
    #[error("what was signed is no quote of a TPM")]
    NotAQuote,
}

impl TpmError {
    /// The closed word for logs and audit records.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(_) => "tpm_malformed",
            Self::Endorsement => "tpm_ek_template",
            Self::Kind => "tpm_ak_kind",
            Self::Attribute(_) => "tpm_ak_attributes",
            Self::NotAQuote => "tpm_not_a_quote",
        }
    }
}

/// Reads big-endian fields, each within what is left.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    left: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Over all of `bytes`; `what` names them in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { left: bytes, what }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], TpmError> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(TpmError::Malformed(self.what))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TpmError> {
        self.bytes(N)?.try_into().map_err(|_| TpmError::Malformed(self.what))
    }

    /// UINT16.
    pub fn u16(&mut self) -> Result<u16, TpmError> {
        self.array().map(u16::from_be_bytes)
    }

    /// UINT32.
    pub fn u32(&mut self) -> Result<u32, TpmError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A TPM2B of at most `most` bytes.
    pub fn sized(&mut self, most: usize) -> Result<&'a [u8], TpmError> {
        match usize::from(self.u16()?) {
            length if length <= most => self.bytes(length),
            _ => Err(TpmError::Malformed(self.what)),
        }
    }

    /// Whatever is left.
    pub fn rest(self) -> &'a [u8] {
        self.left
    }

    /// Refuses what stands behind the last field.
    pub fn end(self) -> Result<(), TpmError> {
        if self.left.is_empty() { Ok(()) } else { Err(TpmError::Malformed(self.what)) }
    }
}

/// Appends a TPM2B; nothing that this crate writes comes near its limit of 64 KiB.
pub fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes[..usize::from(length)]);
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u16]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
}

/// Which of the two endorsement keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EkKind {
    /// RSA 2048: template L-1.
    Rsa,
    /// P-256: template L-2.
    Ecc,
}

/// An endorsement key's public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endorsement {
    /// The modulus of RSA 2048; its exponent is 65537.
    Rsa(Box<[u8; 256]>),
    /// A point of P-256.
    Ecc(Point),
}

/// A point of P-256, each coordinate whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Big-endian.
    pub x: [u8; 32],
    /// Big-endian.
    pub y: [u8; 32],
}

impl Point {
    /// Uncompressed, as X9.62 writes it.
    pub fn uncompressed(&self) -> [u8; 65] {
        let mut out = [4; 65];
        out[1..33].copy_from_slice(&self.x);
        out[33..].copy_from_slice(&self.y);
        out
    }

    /// TPMS_ECC_POINT.
    pub fn marshal(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(68);
        put_sized(&mut out, &self.x);
        put_sized(&mut out, &self.y);
        out
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, TpmError> {
        Ok(Self { x: coordinate(reader)?, y: coordinate(reader)? })
    }
}

/// A number of P-256, which TPMs may write without its leading zeros.
fn coordinate(reader: &mut Reader<'_>) -> Result<[u8; 32], TpmError> {
    let bytes = reader.sized(32)?;
    if bytes.is_empty() {
        return Err(TpmError::Malformed(reader.what));
    }
    let mut out = [0; 32];
    out[32 - bytes.len()..].copy_from_slice(bytes);
    Ok(out)
}

impl Endorsement {
    /// The public area from which a TPM derives its endorsement key: always the same one.
    pub fn template(kind: EkKind) -> Vec<u8> {
        match kind {
            EkKind::Rsa => Self::Rsa(Box::new([0; 256])).marshal(),
            EkKind::Ecc => Self::Ecc(Point { x: [0; 32], y: [0; 32] }).marshal(),
        }
    }

    /// Which of the two it is.
    pub fn kind(&self) -> EkKind {
        match self {
            Self::Rsa(_) => EkKind::Rsa,
            Self::Ecc(_) => EkKind::Ecc,
        }
    }

    /// Reads a TPMT_PUBLIC; everything in it but the key itself is as in the template.
    pub fn parse(area: &[u8]) -> Result<Self, TpmError> {
        let mut reader = Reader::new(area, "the endorsement key");
        let kind = match reader.u16()? {
            ALG_RSA => EkKind::Rsa,
            ALG_ECC => EkKind::Ecc,
            _ => return Err(TpmError::Endorsement),
        };
        let head = Self::head(kind);
        if reader.bytes(head.len() - 2)? != &head[2..] {
            return Err(TpmError::Endorsement);
        }
        let key = match kind {
            EkKind::Rsa => {
                let modulus: [u8; 256] =
                    reader.sized(256)?.try_into().map_err(|_| TpmError::Malformed("the endorsement key"))?;
                // A modulus of fewer bits, or an even one, is none.
                if modulus[0] < 0x80 || modulus[255] & 1 == 0 {
                    return Err(TpmError::Malformed("the endorsement key"));
                }
                Self::Rsa(Box::new(modulus))
            }
            EkKind::Ecc => Self::Ecc(Point::read(&mut reader)?),
        };
        reader.end()?;
        Ok(key)
    }

    /// TPMT_PUBLIC.
    pub fn marshal(&self) -> Vec<u8> {
        match self {
            Self::Rsa(modulus) => {
                let mut out = Self::head(EkKind::Rsa);
                put_sized(&mut out, modulus.as_slice());
                out
            }
            Self::Ecc(point) => [Self::head(EkKind::Ecc), point.marshal()].concat(),
        }
    }

    /// SubjectPublicKeyInfo, DER: as it stands in the key's certificate, and what its hash is taken over.
    pub fn spki(&self) -> Vec<u8> {
        match self {
            Self::Rsa(modulus) => [RSA_SPKI.as_slice(), modulus.as_slice(), &RSA_EXPONENT].concat(),
            Self::Ecc(point) => [P256_SPKI.as_slice(), &point.x, &point.y].concat(),
        }
    }

    /// Everything before `unique`.
    fn head(kind: EkKind) -> Vec<u8> {
        let mut out = Vec::with_capacity(320);
        put_numbers(&mut out, &[if kind == EkKind::Rsa { ALG_RSA } else { ALG_ECC }, ALG_SHA256]);
        out.extend_from_slice(&EK_ATTRIBUTES.to_be_bytes());
        put_sized(&mut out, &EK_POLICY);
        put_numbers(&mut out, &[ALG_AES, 128, ALG_CFB, ALG_NULL]);
        match kind {
            // The exponent 0 stands for 65537.
            EkKind::Rsa => put_numbers(&mut out, &[2048, 0, 0]),
            EkKind::Ecc => put_numbers(&mut out, &[CURVE_P256, ALG_NULL]),
        }
        out
    }
}

/// An attestation key's public half, whose attributes say that it signs nothing but what its TPM has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationKey {
    area: Vec<u8>,
    point: Point,
}

impl AttestationKey {
    /// The public area to create one from; another `seed` gives another key.
    pub fn template(seed: &[u8; 32]) -> Vec<u8> {
        let attributes = AK_ATTRIBUTES | USER_WITH_AUTH | NO_DA;
        [Self::head(attributes), Point { x: *seed, y: [0; 32] }.marshal()].concat()
    }

    /// Reads a TPMT_PUBLIC and refuses every key that could leave its TPM or sign what it is given.
    pub fn parse(area: &[u8]) -> Result<Self, TpmError> {
        let mut reader = Reader::new(area, "the attestation key");
        if (reader.u16()?, reader.u16()?) != (ALG_ECC, ALG_SHA256) {
            return Err(TpmError::Kind);
        }
        let attributes = reader.u32()?;
        let wanted = [
            (FIXED_TPM, "fixedTPM"),
            (FIXED_PARENT, "fixedParent"),
            (SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
            (RESTRICTED, "restricted"),
            (SIGN, "sign"),
        ];
        if let Some((_, name)) = wanted.into_iter().find(|(bit, _)| attributes & bit == 0) {
            return Err(TpmError::Attribute(name));
        }
        if attributes & DECRYPT != 0 {
            return Err(TpmError::Attribute("for signatures alone"));
        }
        reader.sized(32)?;
        let parameters = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        if parameters != [ALG_NULL, ALG_ECDSA, ALG_SHA256, CURVE_P256, ALG_NULL] {
            return Err(TpmError::Kind);
        }
        let point = Point::read(&mut reader)?;
        reader.end()?;
        Ok(Self { area: area.to_vec(), point })
    }

    /// Its name: what a credential is made for, and what the TPM compares.
    pub fn name(&self, sha256: fn(&[u8]) -> [u8; 32]) -> [u8; 34] {
        let mut name = [0; 34];
        name[..2].copy_from_slice(&ALG_SHA256.to_be_bytes());
        name[2..].copy_from_slice(&sha256(&self.area));
        name
    }

    /// Its point.
    pub fn point(&self) -> &Point {
        &self.point
    }

    fn head(attributes: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        put_numbers(&mut out, &[ALG_ECC, ALG_SHA256]);
        out.extend_from_slice(&attributes.to_be_bytes());
        put_sized(&mut out, &[]);
        put_numbers(&mut out, &[ALG_NULL, ALG_ECDSA, ALG_SHA256, CURVE_P256, ALG_NULL]);
        out
    }
}

/// The `extraData` of a quote (TPMS_ATTEST) over no PCR: what the caller of TPM2_Quote wanted signed.
pub fn quoted(attest: &[u8]) -> Result<&[u8], TpmError> {
    let mut reader = Reader::new(attest, "the quote");
    if reader.u32()? != GENERATED || reader.u16()? != QUOTE {
        return Err(TpmError::NotAQuote);
    }
    reader.sized(66)?; // the signer's qualified name
    let extra = reader.sized(64)?;
    reader.bytes(8 + 4 + 4 + 1 + 8)?; // clock, resets, restarts, whether the clock is safe, firmware
    if reader.u32()? != 0 {
        return Err(TpmError::NotAQuote);
    }
    reader.sized(64)?; // the digest over no PCR
    reader.end()?;
    Ok(extra)
}

/// A TPMT_SIGNATURE by ECDSA over P-256 with SHA-256, as `r` and `s` of 32 bytes each.
pub fn signature(bytes: &[u8]) -> Result<[u8; 64], TpmError> {
    let mut reader = Reader::new(bytes, "the signature");
    if (reader.u16()?, reader.u16()?) != (ALG_ECDSA, ALG_SHA256) {
        return Err(TpmError::Kind);
    }
    let (r, s) = (coordinate(&mut reader)?, coordinate(&mut reader)?);
    reader.end()?;
    let mut out = [0; 64];
    out[..32].copy_from_slice(&r);
    out[32..].copy_from_slice(&s);
    Ok(out)
}

/// What a quote's `extraData` is the SHA-256 of: a domain separator, the challenge's secret, and what the certificate request's key
/// signs as well ([`crate::enroll::proof_message`]: this connection's exporter, the nonce, the request).
pub fn quote_message(secret: &[u8], proof_message: &[u8]) -> Vec<u8> {
    let mut message = b"postern-tpm-v1\0".to_vec();
    for part in [secret, proof_message] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}
