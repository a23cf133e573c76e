//! How far the live proxies have come with a generation, on whichever replica their streams are.

use postern_config::id::SpiffeId;

use super::Proxies;
use crate::clock::now_ms;
use crate::replica;
use crate::store::{Store, StoreError};

/// One live enrollment's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Its identity.
    pub id: SpiffeId,
    /// What its proxy calls itself.
    pub instance: String,
    /// The enrollment.
    pub lineage: String,
    /// Whether its stream is open on some replica.
    pub is_connected: bool,
    /// When it said that the generation, or a later one, is in force; milliseconds since 1970.
    pub acked_at: Option<i64>,
    /// When it was last heard of, milliseconds since 1970.
    pub last_seen: i64,
    /// Why it refused the generation; empty if it did not.
    pub error: String,
    /// The replica that holds its stream; empty if none does.
    pub replica: String,
}

/// Every enrollment with a valid certificate that was not ended. What a proxy on another replica said is known as soon as that
/// replica has saved it.
pub async fn rollout(store: &Store, proxies: &Proxies, generation: u64) -> Result<Vec<Holding>, StoreError> {
    let now = now_ms();
    let alive: Vec<String> =
        store.replicas().await?.into_iter().filter(|r| replica::is_alive(r, now)).map(|r| r.id).collect();
    let live = store.live_lineages(now).await?.into_iter().filter(|live| live.lineage.ended_at.is_none());
    let holding = live.map(|live| {
        let (held, acked_at, error, last_seen, replica, is_connected) = match proxies.said(&live.lineage.id) {
            Some(said) => (said.generation, said.acked_at, said.error, said.last_seen, said.replica, true),
            None => {
                let is_connected = alive.contains(&live.replica);
                (live.generation, live.acked_at, live.error, live.last_seen, live.replica, is_connected)
            }
        };
        Holding {
            id: live.lineage.spiffe_id,
            instance: live.lineage.instance,
            lineage: live.lineage.id,
            is_connected,
            acked_at: (held >= generation && error.is_empty()).then_some(acked_at),
            last_seen,
            error,
            replica,
        }
    });
    Ok(holding.collect())
}
