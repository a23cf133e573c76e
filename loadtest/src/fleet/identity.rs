//! One identity from a control plane, for somebody who shows it elsewhere: the load rig as a caller of the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use postern_config::bundle::BundleSet;
use postern_config::enroll::JoinString;
use postern_config::wire::v1;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::trust::Expected;
use super::wire::{Connection, NewKey};

/// A certificate with its key, and whom to believe.
#[derive(Debug)]
pub struct Obtained {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key; its `Debug` shows nothing of it.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// The roots of the trust domain.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Redeems a join string at `address`; a `ttl` of zero takes the server's.
pub fn obtain(address: SocketAddr, join: &JoinString, ttl: Duration) -> Result<Obtained> {
    let broken = |fault| anyhow!("{address} gives no identity: {fault:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let pinned = Expected::Pinned { trust_domain: join.trust_domain.clone(), pins: join.pins.clone() };
    let enrolled = runtime.block_on(async {
        let mut connection = Connection::open(address, pinned, None).await.map_err(broken)?;
        let key = NewKey::generate().map_err(broken)?;
        connection.enroll(join, &key, ttl, "load-rig".to_owned()).await.map_err(broken)
    })?;
    let bundles = BundleSet::try_from(&v1::BundleSet { bundles: vec![enrolled.bundle] })?;
    let roots =
        bundles.iter().flat_map(|b| b.anchors()).map(|a| CertificateDer::from(a.der().to_vec())).collect();
    Ok(Obtained { chain: enrolled.credentials.chain, key: enrolled.credentials.key, roots })
}
