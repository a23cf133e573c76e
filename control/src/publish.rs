//! What every proxy shall know, as numbered generations: built from the store after each change, cut to each workload,
//! pushed by the streams that watch it, and acknowledged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use postern_config::bundle::{BundleError, BundleSet};
use postern_config::id::SpiffeId;
use postern_config::policy::{AuthorizationPolicy, PeerAuthentication};
use postern_config::registry::Declarations;
use postern_config::revocation::Revocations;
use postern_config::wire::v1;
use tokio::sync::{Mutex, watch};

use crate::ca::{Authorities, Ca, CaError, Trials};
use crate::clock::now_ms;
use crate::federation::{self, Delivered};
use crate::revoke;
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

mod announce;
mod proxies;
mod rollout;

pub use announce::{LEASE, Unannounced};
pub use proxies::{Proxies, Watching};
pub use rollout::{Holding, rollout};

/// Why no new generation was built; the last one stays.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The trust domain's own certificates cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The own bundle cannot be built.
    #[error("the trust bundle cannot be built: {0}")]
    Bundle(#[from] BundleError),
}

/// One generation, whole.
#[derive(Debug)]
pub struct World {
    /// Its number; grows with every change and over restarts.
    pub generation: u64,
    /// Bundles as the control plane itself checks its callers by them.
    pub bundles: Arc<BundleSet>,
    /// What is no longer believed.
    pub revocations: Arc<Revocations>,
    /// Bundles and revocations as they were if no key had been tainted: by these, and by nothing else, a workload whose CA was
    /// compromised may ask for its next certificate.
    pub before_taint: Arc<(BundleSet, Revocations)>,
    /// Whose certificates another authority signs for now.
    pub trials: Trials,
    revocation_message: v1::RevocationSet,
    bundle_message: v1::BundleSet,
    /// Foreign bundles, which are not among those that callers are checked by.
    foreign: Arc<[Delivered]>,
    /// What is declared of identities.
    pub declared: Arc<Declarations>,
    policies: Vec<(AuthorizationPolicy, String)>,
    peers: Vec<(PeerAuthentication, String)>,
    services: v1::ServiceSet,
    owners: HashMap<String, SpiffeId>,
}

/// One generation, cut to one workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Sections {
    bundles: v1::BundleSet,
    policies: v1::PolicySet,
    revocations: v1::RevocationSet,
    services: v1::ServiceSet,
}

/// Builds generations and hands them to the streams. A slow stream holds up nobody: it finds the newest one when it is ready.
#[derive(Debug)]
pub struct Publisher {
    store: Store,
    ca: Arc<Ca>,
    metrics: Metrics,
    root_namespace: String,
    worlds: watch::Sender<Arc<World>>,
    building: Mutex<()>,
}

impl Publisher {
    /// Builds the first generation of this process.
    pub async fn start(
        store: Store,
        ca: Arc<Ca>,
        root_namespace: String,
        metrics: Metrics,
    ) -> Result<Self, PublishError> {
        let world = Arc::new(World::load(&store, &ca).await?);
        metrics.generation.set(world.generation);
        let (worlds, _) = watch::channel(world);
        Ok(Self { store, ca, metrics, root_namespace, worlds, building: Mutex::new(()) })
    }

    /// Builds the generation that the store holds now and pushes it; call it after every committed change.
    pub async fn publish(&self) -> Result<u64, PublishError> {
        let _turn = self.building.lock().await;
        let world = Arc::new(World::load(&self.store, &self.ca).await?);
        let generation = world.generation;
        self.metrics.generation.set(generation);
        self.worlds.send_replace(world);
        Ok(generation)
    }

    /// Builds and pushes the store's generation if it is newer than the one that is being pushed: another replica made it.
    pub async fn catch_up(&self) -> Result<(), PublishError> {
        if self.store.counter("generation").await? == self.world().generation {
            return Ok(());
        }
        self.publish().await.map(drop)
    }

    /// The newest generation.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.worlds.borrow())
    }

    /// Wakes with every new generation.
    pub fn subscribe(&self) -> watch::Receiver<Arc<World>> {
        self.worlds.subscribe()
    }

    /// The namespace whose policies apply everywhere.
    pub fn root_namespace(&self) -> &str {
        &self.root_namespace
    }
}

impl World {
    /// The generation's number is read first: content may then be newer than its number, and the next build, under the next
    /// number, only repeats it. The other way round a proxy would acknowledge a generation that it never saw.
    async fn load(store: &Store, ca: &Ca) -> Result<Self, PublishError> {
        let generation = store.counter("generation").await?;
        let sequence = store.counter("bundle").await?;
        let rows = store.authorities().await?;
        let authorities = Authorities::new(&rows)?;
        let trials = Trials::new(store.rotations().await?, &rows);
        let own = authorities.bundle(ca.trust_domain(), sequence)?;
        let own = own.with_jwt_keys(store.jwt_keys().await?.into_iter().map(|published| published.key))?;
        let bundles: BundleSet = [own].into_iter().collect();
        let former: BundleSet = [authorities.bundle_with_tainted(ca.trust_domain())?].into_iter().collect();
        ca.set_authorities(authorities);
        let revocations = revoke::set(&store.revocations(now_ms()).await?)?;
        let named = Revocations { spkis: HashSet::new(), ..revocations.clone() };
        let policies = store.policies().await?.into_iter().map(|p| (p.to_json(), p));
        let policies = policies.map(|(json, policy)| (policy, json)).collect();
        let peers = store.peer_authentications().await?.into_iter().map(|p| (p.to_json(), p));
        let peers = peers.map(|(json, peer)| (peer, json)).collect();
        let mut announced: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for one in store.announced().await? {
            announced.entry(one.service).or_default().push(one.address);
        }
        let mut owners = HashMap::new();
        let mut services = Vec::new();
        for service in store.services().await? {
            let mut endpoints = service.endpoints;
            if endpoints.is_empty() {
                endpoints = announced.remove(&service.name).unwrap_or_default();
            }
            let spiffe_id = service.identity.to_string();
            owners.insert(service.name.clone(), service.identity);
            services.push(v1::Service { name: service.name, spiffe_id, endpoints });
        }
        let bundle_message = v1::BundleSet::from(&bundles);
        let foreign = federation::delivered(store).await?;
        let services = v1::ServiceSet { services };
        let revocation_message = v1::RevocationSet::from(&revocations);
        let (bundles, revocations) = (Arc::new(bundles), Arc::new(revocations));
        Ok(Self {
            generation,
            bundles,
            revocations,
            trials,
            before_taint: Arc::new((former, named)),
            revocation_message,
            bundle_message,
            foreign,
            declared: store.declared().await?,
            policies,
            peers,
            services,
            owners,
        })
    }

    /// What the workload `id` with these labels has to know.
    pub fn sections(
        &self,
        id: &SpiffeId,
        labels: &BTreeMap<String, String>,
        root_namespace: &str,
    ) -> Sections {
        // The document's labels are over those of the credential, and are asked for each time.
        let mut labels = labels.clone();
        labels.extend(self.declared.of(id).map(|own| own.spec.labels.clone()).unwrap_or_default());
        let policies = self.policies.iter().filter(|(p, _)| p.applies_to(id, &labels, root_namespace));
        let peers = self.peers.iter().filter(|(p, _)| p.applies_to(id, &labels, root_namespace));
        Sections {
            bundles: self.bundles_for(id),
            policies: v1::PolicySet {
                documents: policies.map(|(_, json)| json.clone()).collect(),
                peer_authentications: peers.map(|(_, json)| json.clone()).collect(),
                root_namespace: root_namespace.to_owned(),
            },
            revocations: self.revocation_message.clone(),
            services: self.services.clone(),
        }
    }

    /// The own bundle, and those foreign ones that are for this workload.
    fn bundles_for(&self, id: &SpiffeId) -> v1::BundleSet {
        let mut all = self.bundle_message.clone();
        let foreign = self.foreign.iter().filter(|foreign| foreign.is_for(id));
        all.bundles.extend(foreign.map(|foreign| v1::Bundle::from(&foreign.bundle)));
        all
    }

    /// Whose identity the service's endpoints have to prove.
    pub fn owner(&self, service: &str) -> Option<&SpiffeId> {
        self.owners.get(service)
    }

    /// All services with the endpoints that are known now.
    pub fn services(&self) -> &[v1::Service] {
        &self.services.services
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &AuthorizationPolicy> {
        self.policies.iter().map(|(policy, _)| policy)
    }

    /// All peer authentications.
    pub fn peers(&self) -> impl Iterator<Item = &PeerAuthentication> {
        self.peers.iter().map(|(peer, _)| peer)
    }
}

impl Sections {
    /// The message that brings a proxy from `before` to here: whole sections, those alone that differ.
    pub fn since(
        &self,
        before: Option<&Sections>,
        generation: u64,
        server_time_ms: i64,
    ) -> v1::WatchResponse {
        fn changed<T: PartialEq + Clone>(now: &T, before: Option<&T>) -> Option<T> {
            (Some(now) != before).then(|| now.clone())
        }
        v1::WatchResponse {
            generation,
            server_time_ms,
            bundles: changed(&self.bundles, before.map(|b| &b.bundles)),
            policies: changed(&self.policies, before.map(|b| &b.policies)),
            revocations: changed(&self.revocations, before.map(|b| &b.revocations)),
            services: changed(&self.services, before.map(|b| &b.services)),
            ..v1::WatchResponse::default()
        }
    }
}
