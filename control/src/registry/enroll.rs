//! Enrolling: sizes, credential, request, proof, then one transaction that spends the credential and issues. Here with a join
//! token; [`super::attested`] has the other kinds.

use std::net::IpAddr;
use std::time::Duration;

use postern_config::enroll::{EXPORTER_LEN, NONCE_LEN, proof_message};

use super::{Issued, Refusal, Registry, TokenFault, is_worth_a_retry, issued_entry};
use crate::attest::Credential;
use crate::clock::now_ms;
use crate::digest::sha256;
use crate::issue::Leaf;
use crate::issue::csr::Csr;
use crate::store::{Change, Lineage, Subject, Token};

/// The longest name that a proxy may give itself, in bytes.
const MAX_INSTANCE: usize = 128;

/// One attempt to enroll, as it came over one TLS connection.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    /// What proves the identity.
    pub proof_of_identity: Proof<'a>,
    /// PKCS#10, DER.
    pub csr: &'a [u8],
    /// Fresh bytes of the caller's.
    pub nonce: &'a [u8],
    /// The new key's signature over this connection's exporter, nonce and request.
    pub proof: &'a [u8],
    /// Wanted lifetime, milliseconds; 0 for the default.
    pub ttl_ms: u64,
    /// How long the caller waits in line.
    pub patience: Duration,
    /// What the proxy calls itself.
    pub instance: &'a str,
    /// This connection's exporter.
    pub exporter: [u8; EXPORTER_LEN],
    /// Where the connection comes from.
    pub remote: IpAddr,
}

/// What proves the identity.
#[derive(Clone, Copy)]
pub enum Proof<'a> {
    /// A join token.
    Token {
        /// Its public name.
        id: &'a str,
        /// Its secret, 32 bytes.
        secret: &'a [u8],
    },
    /// What a platform says.
    Attested(Credential<'a>),
}

impl Registry {
    /// Redeems a credential. A second attempt with the same key gets the same certificate, with another key nothing.
    pub async fn enroll(&self, attempt: Attempt<'_>) -> Result<Issued, Refusal> {
        let subject: String = match attempt.proof_of_identity {
            Proof::Token { id, .. } => id.chars().take(64).collect(),
            Proof::Attested(credential) => credential.kind().to_owned(),
        };
        let mut result = self.try_enroll(attempt).await;
        if is_worth_a_retry(&result) {
            result = self.try_enroll(attempt).await;
        }
        self.settle("enroll", &attempt.remote.to_string(), &subject, &result).await;
        result
    }

    async fn try_enroll(&self, attempt: Attempt<'_>) -> Result<Issued, Refusal> {
        match attempt.proof_of_identity {
            Proof::Token { id, secret } => self.enroll_by_token(attempt, id, secret).await,
            Proof::Attested(credential) => self.enroll_attested(attempt, credential).await,
        }
    }

    async fn enroll_by_token(
        &self,
        attempt: Attempt<'_>,
        id: &str,
        secret: &[u8],
    ) -> Result<Issued, Refusal> {
        check_token_shape(id, secret)?;
        check_shape(attempt)?;
        // The secret comes first: without it a caller costs one indexed read and one hash.
        let token = self.store.token(id).await?.ok_or(Refusal::Token(TokenFault::Unknown))?;
        check_secret(&token, secret)?;
        if !self.limits.attempt(&token.id, now_ms()) {
            return Err(Refusal::TooMany);
        }
        if token.cidr.is_some_and(|cidr| !cidr.contains(&attempt.remote.to_canonical())) {
            return Err(Refusal::Token(TokenFault::Address));
        }
        let csr = proven_request(attempt)?;
        csr.check(&token.spiffe_id)?;
        self.redeem(attempt, token, &csr).await
    }

    async fn redeem(&self, attempt: Attempt<'_>, token: Token, csr: &Csr) -> Result<Issued, Refusal> {
        let key = csr.key.hash();
        let mut lineage = Lineage {
            id: ulid::Ulid::new().to_string(),
            spiffe_id: token.spiffe_id,
            labels: token.labels,
            environment: token.environment,
            instance: attempt.instance.to_owned(),
            max_ttl_ms: token.max_ttl_ms,
            current_serial: String::new(),
            next_serial: None,
            ended_at: None,
        };
        let _turn = self.turn(&key, attempt.patience).await?;
        let mut change = self.store.change_rows().await?;
        let subject = change.subject(&lineage.spiffe_id, now_ms()).await?;
        if subject.is_banned {
            return Err(Refusal::Revoked);
        }
        if !change.spend_token(&token.id, &key, &lineage.id, now_ms()).await? {
            let token = change.token(&token.id).await?.ok_or(Refusal::Token(TokenFault::Unknown))?;
            let lineage = match token.redeemed_spki {
                None => return Err(Refusal::Token(TokenFault::Expired)),
                Some(redeemed) if redeemed != key => return Err(Refusal::Token(TokenFault::Used)),
                Some(_) => token.lineage.unwrap_or_default(),
            };
            // The answer to this very key got lost: here it is again.
            let earlier = change.certificate_of_key(&lineage, &key).await?.filter(|c| c.not_after > now_ms());
            let earlier = earlier.ok_or(Refusal::Token(TokenFault::Used))?;
            // What was taken out of service or revoked meanwhile would be refused by everybody.
            match change.lineage_of(&earlier.serial).await? {
                Some(lineage) if lineage.ended_at.is_none() => {}
                _ => return Err(Refusal::Revoked),
            }
            return Ok(self.again(earlier));
        }
        let (leaf, issued) = self.begin(&mut change, &mut lineage, subject, csr, attempt.ttl_ms).await?;
        let entry =
            issued_entry(&attempt.remote.to_string(), "enroll", &lineage, &leaf).about_token(&token.id);
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        Ok(issued)
    }

    /// Records a lineage and signs its first certificate; the caller commits.
    pub(super) async fn begin(
        &self,
        change: &mut Change,
        lineage: &mut Lineage,
        subject: Subject,
        csr: &Csr,
        ttl_ms: u64,
    ) -> Result<(Leaf, Issued), Refusal> {
        // The lineage's row comes first, since the certificate refers to it.
        change.add_lineage(lineage, now_ms()).await?;
        let (leaf, issued) = self.sign(change, lineage, subject, &csr.key, ttl_ms).await?;
        lineage.current_serial.clone_from(&leaf.serial);
        change.set_serials(&lineage.id, &leaf.serial, None, now_ms()).await?;
        Ok((leaf, issued))
    }
}

/// The request, whose key has signed this very connection.
pub(super) fn proven_request(attempt: Attempt<'_>) -> Result<Csr, Refusal> {
    let csr = Csr::parse(attempt.csr)?;
    match csr.key.verify(&proof_message(&attempt.exporter, attempt.nonce, attempt.csr), attempt.proof) {
        true => Ok(csr),
        false => Err(Refusal::Proof),
    }
}

fn check_token_shape(id: &str, secret: &[u8]) -> Result<(), Refusal> {
    if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Refusal::Malformed("token_id"));
    }
    if secret.len() != 32 {
        return Err(Refusal::Malformed("token_secret"));
    }
    Ok(())
}

/// What is asked of every attempt, whatever its credential.
pub(super) fn check_shape(attempt: Attempt<'_>) -> Result<(), Refusal> {
    if !NONCE_LEN.contains(&attempt.nonce.len()) {
        return Err(Refusal::Malformed("nonce"));
    }
    if attempt.instance.len() > MAX_INSTANCE || attempt.instance.chars().any(char::is_control) {
        return Err(Refusal::Malformed("instance"));
    }
    if attempt.csr.is_empty() || attempt.proof.is_empty() {
        return Err(Refusal::Malformed("csr or proof is missing"));
    }
    Ok(())
}

/// The secret has 256 random bits, so one hash is enough at rest; the comparison takes the same time for every secret.
fn check_secret(token: &Token, secret: &[u8]) -> Result<(), Refusal> {
    aws_lc_rs::constant_time::verify_slices_are_equal(&sha256(secret), &token.secret_hash)
        .map_err(|_| Refusal::Token(TokenFault::WrongSecret))
}
