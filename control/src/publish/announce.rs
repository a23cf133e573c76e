//! Endpoints that proxies announce for themselves, and the leases that end them.
//!
//! A lease has no end while the announcing stream is open, and [`LEASE`] once it is gone: a proxy that restarts, or a control
//! plane that does, loses no endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use postern_config::wire::v1;

use super::{PublishError, Publisher};
use crate::audit::Entry;
use crate::clock::{millis, now_ms};
use crate::store::{Announced, Change, Lineage, StoreError};

/// How long an endpoint outlives the stream that announced it.
pub const LEASE: Duration = Duration::from_secs(30);
/// The most endpoints that one proxy may announce.
const MAX_ANNOUNCEMENTS: usize = 64;

/// An announcement that is not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unannounced {
    /// The service that it was for.
    pub service: String,
    /// A closed word.
    pub reason: &'static str,
}

impl Publisher {
    /// Takes a proxy's announcements, which replace its earlier ones, and publishes if anything changed. Those for services of
    /// another identity are refused one by one and put on record unless `quiet`.
    pub async fn announce(
        &self,
        lineage: &Lineage,
        wanted: &[v1::Announcement],
        quiet: bool,
    ) -> Result<Vec<Unannounced>, PublishError> {
        let mut change = self.store.change_rows().await?;
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for one in wanted.iter().take(MAX_ANNOUNCEMENTS) {
            match judge(&mut change, lineage, one).await? {
                Ok(announced) => taken.push(announced),
                Err(reason) => refused.push(Unannounced { service: one.service.clone(), reason }),
            }
        }
        taken.sort_by(|a, b| (&a.service, &a.address).cmp(&(&b.service, &b.address)));
        taken.dedup();
        let changed = change.announcements_of(&lineage.id).await? != taken;
        // Written even if nothing changed: the rows may be on their last seconds.
        change.replace_announcements(&lineage.id, &taken).await?;
        let records: Vec<Entry> = refused
            .iter()
            .filter(|_| !quiet)
            .map(|r| Entry::refused(lineage.spiffe_id.as_str(), "announce", &*r.service, r.reason))
            .collect();
        for record in &records {
            record.append(&mut change).await?;
        }
        if changed {
            change.advance("generation").await?;
        }
        change.commit().await?;
        records.iter().for_each(Entry::log);
        if changed {
            self.publish().await?;
        }
        Ok(refused)
    }

    /// Starts the last [`LEASE`] of a proxy's announcements: its stream is gone.
    pub async fn release(&self, change: &mut Change, lineage: &str) -> Result<(), StoreError> {
        change.release_announcements(lineage, now_ms() + millis(LEASE)).await
    }

    /// Drops announcements whose lease ended, and publishes if there were any.
    pub async fn sweep(&self, lease: &crate::store::Lease) -> Result<(), PublishError> {
        let now = now_ms();
        if self.store.first_lease_end().await?.is_none_or(|end| end > now) {
            return Ok(());
        }
        let mut change = self.store.change().await?;
        change.fence(lease).await?;
        if change.sweep_announcements(now).await? > 0 {
            change.advance("generation").await?;
        }
        change.commit().await?;
        self.publish().await.map(drop)
    }
}

async fn judge(
    change: &mut Change,
    lineage: &Lineage,
    one: &v1::Announcement,
) -> Result<Result<Announced, &'static str>, StoreError> {
    let address: Option<SocketAddr> = one.address.parse().ok();
    let Some(address) =
        address.filter(|a| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast())
    else {
        return Ok(Err("bad_address"));
    };
    if one.service.len() > 253 {
        return Ok(Err("unknown_service"));
    }
    Ok(match change.service(&one.service).await? {
        None => Err("unknown_service"),
        Some((identity, _)) if identity != lineage.spiffe_id => Err("wrong_identity"),
        Some((_, true)) => Err("fixed_endpoints"),
        Some(_) => Ok(Announced { service: one.service.clone(), address: address.to_string() }),
    })
}
