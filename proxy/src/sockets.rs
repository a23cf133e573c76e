//! Every listening socket of this proxy, bound before anything else so that a taken port shows at once.

use std::sync::Arc;

use postern_config::file::proxy::ProxyConfig;

use crate::discover::Upstream;
use crate::listen::Listener;
use crate::tls::Tls;
use crate::worker::Route;
use crate::{Bound, Error};

/// The sockets of one configuration.
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<Listener>,
    inbound: usize,
    pub(crate) metrics: std::net::TcpListener,
}

impl Sockets {
    pub(crate) fn bind(config: &ProxyConfig, tls: &Tls) -> Result<Self, Error> {
        let bind =
            |address, route| Listener::bind(address, route).map_err(|source| Error::Bind { address, source });
        let mut listeners = Vec::new();
        for inbound in &config.inbound {
            let port = inbound.app.rsplit_once(':').and_then(|(_, p)| p.parse().ok()).unwrap_or_default();
            listeners.push(bind(inbound.listen, Route::Inbound { app: inbound.app.as_str().into(), port })?);
        }
        for outbound in &config.outbound {
            let route = match (&outbound.service, &outbound.connect, &outbound.identity) {
                (_, Some(connect), Some(identity)) => {
                    let upstream =
                        Upstream::new(tls, connect, identity.clone(), std::slice::from_ref(connect))?;
                    Route::Fixed(Arc::new(upstream))
                }
                (service, _, _) => Route::Service(service.as_deref().unwrap_or_default().into()),
            };
            listeners.push(bind(outbound.listen, route)?);
        }
        let address = config.metrics.listen;
        let metrics =
            std::net::TcpListener::bind(address).map_err(|source| Error::Bind { address, source })?;
        metrics.set_nonblocking(true)?;
        Ok(Self { listeners, inbound: config.inbound.len(), metrics })
    }

    pub(crate) fn addresses(&self) -> Result<Bound, Error> {
        let mut inbound = self.listeners.iter().map(Listener::address).collect::<Result<Vec<_>, _>>()?;
        let outbound = inbound.split_off(self.inbound);
        Ok(Bound { inbound, outbound, metrics: self.metrics.local_addr()? })
    }
}
