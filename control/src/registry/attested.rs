//! Enrolling by what a platform says: proof, credential, rules, then one transaction that binds the key and issues.

use std::net::IpAddr;

use postern_config::wire::v1;
use rustls::pki_types::UnixTime;
use serde_json::json;

use super::enroll::{Attempt, check_shape, proven_request};
use super::{Issued, Refusal, Registry, issued_entry};
use crate::attest::{self, Admission, Attested, Challenge, Credential};
use crate::audit::Entry;
use crate::backup::RESTORED_AT;
use crate::clock::now_ms;
use crate::issue::csr::Csr;
use crate::store::{Binding, Bound, Change, Lineage};

impl Registry {
    /// A challenge for a caller's TPM. Whom nobody knows is refused here already, on record like every attempt to enroll.
    pub async fn challenge(
        &self,
        message: &v1::ChallengeRequest,
        remote: IpAddr,
    ) -> Result<(Challenge, v1::ChallengeResponse), Refusal> {
        let made = self.attestors.challenge(message, UnixTime::now()).map_err(Refusal::from);
        if let Err(refusal) = &made {
            self.metrics.issued("enroll", "refused");
            self.refused("enroll", &remote.to_string(), "tpm", refusal).await;
        }
        made
    }

    pub(super) async fn enroll_attested(
        &self,
        attempt: Attempt<'_>,
        credential: Credential<'_>,
    ) -> Result<Issued, Refusal> {
        check_shape(attempt)?;
        // The proof comes first: it costs one signature, and nobody else is asked for who has no key of this connection.
        let csr = proven_request(attempt)?;
        let (attested, rules) = self.attestors.attest(credential, attempt.remote, now_ms()).await?;
        let declared = self.store.declared().await?;
        let admission = attest::admit(rules, &declared, &attested)?;
        csr.check(&admission.spiffe_id)?;
        self.admit(attempt, &attested, admission, &csr).await
    }

    async fn admit(
        &self,
        attempt: Attempt<'_>,
        attested: &Attested,
        admission: Admission,
        csr: &Csr,
    ) -> Result<Issued, Refusal> {
        let key = csr.key.hash();
        let mut lineage = Lineage {
            id: ulid::Ulid::new().to_string(),
            spiffe_id: admission.spiffe_id,
            labels: admission.labels,
            environment: admission.environment,
            instance: attempt.instance.to_owned(),
            max_ttl_ms: admission.max_ttl_ms,
            current_serial: String::new(),
            next_serial: None,
            ended_at: None,
        };
        let actor = attempt.remote.to_string();
        let _turn = self.turn(&key, attempt.patience).await?;
        let mut change = self.store.change_rows().await?;
        let subject = change.subject(&lineage.spiffe_id, now_ms()).await?;
        if subject.is_banned {
            return Err(Refusal::Revoked);
        }
        if let Some(name) = &attested.binding {
            // What was bound between the backup and its restore is forgotten: such a credential may have had its key already.
            let restored = self.store.fact(RESTORED_AT).await?.and_then(|at| at.parse::<i64>().ok());
            if restored.is_some_and(|at| attested.issued_at.is_none_or(|issued| issued * 1000 <= at)) {
                return Err(Refusal::BeforeRestore);
            }
            let not_after = attested.not_after.unwrap_or(i64::MAX / 1000).saturating_mul(1000);
            let binding = Binding { name, spki: &key, lineage: &lineage.id, not_after };
            match change.bind(binding, now_ms()).await? {
                Bound::New { replaced: None } => {}
                Bound::New { replaced: Some(earlier) } => {
                    end(&mut change, &actor, &earlier, &lineage).await?
                }
                Bound::Same(earlier) => {
                    let first = change.certificate_of_key(&earlier, &key).await?.ok_or(Refusal::Bound)?;
                    let begun = change.lineage_of(&first.serial).await?.ok_or(Refusal::Bound)?;
                    if begun.ended_at.is_some() {
                        return Err(Refusal::Revoked);
                    }
                    if first.not_after > now_ms() {
                        // The answer to this very key got lost: here it is again.
                        return Ok(self.again(first));
                    }
                    // Whoever holds the key that was bound has come back after its certificate ended.
                    change.rebind(binding).await?;
                    end(&mut change, &actor, &earlier, &lineage).await?;
                }
                Bound::Taken => return Err(Refusal::Bound),
            }
        }
        let (leaf, issued) = self.begin(&mut change, &mut lineage, subject, csr, attempt.ttl_ms).await?;
        // What was attested beside the identity stays out of the record and of the log: claims may be personal.
        let entry = issued_entry(&actor, "enroll", &lineage, &leaf)
            .with("attested", json!({ "kind": attested.kind, "binding": attested.binding }));
        entry.append(&mut change).await?;
        change.commit().await?;
        entry.log();
        Ok(issued)
    }
}

/// One pod has one live key: what the earlier one began is not renewed any more.
async fn end(change: &mut Change, actor: &str, earlier: &str, by: &Lineage) -> Result<(), Refusal> {
    change.end_lineage(earlier, "superseded", now_ms()).await?;
    let detail = json!({ "lineage": earlier, "replaced_by": by.id });
    Entry::done(actor, "enroll again", by.spiffe_id.as_str(), detail).append(change).await?;
    Ok(())
}
