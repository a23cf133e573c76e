//! Every listening socket of this proxy, bound before anything else so that a taken port shows at once.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_config::file::proxy::{Protocol, ProxyConfig};

use crate::discover::Upstream;
use crate::gateway::Front;
use crate::http::sniff;
use crate::inbound::App;
use crate::listen::Listener;
use crate::tls::Tls;
use crate::worker::Route;
use crate::{Bound, Error};

/// The sockets of one configuration.
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<Listener>,
    inbound: usize,
    outbound: usize,
    pub(crate) metrics: std::net::TcpListener,
}

impl Sockets {
    pub(crate) fn bind(
        config: &ProxyConfig,
        fronts: &[(SocketAddr, Arc<Front>)],
        tls: &Tls,
    ) -> Result<Self, Error> {
        let bind =
            |address, route| Listener::bind(address, route).map_err(|source| Error::Bind { address, source });
        let mut listeners = Vec::new();
        for inbound in &config.inbound {
            let port = inbound.app.rsplit_once(':').and_then(|(_, p)| p.parse().ok()).unwrap_or_default();
            let app =
                App { address: inbound.app.as_str().into(), port, protocol: settle(inbound.protocol, port) };
            listeners.push(bind(inbound.listen, Route::Inbound(app))?);
        }
        for outbound in &config.outbound {
            let protocol = settle(outbound.protocol, outbound.listen.port());
            let route = match (&outbound.service, &outbound.connect, &outbound.identity) {
                (_, Some(connect), Some(identity)) => {
                    let upstream =
                        Upstream::new(tls, connect, identity.clone(), std::slice::from_ref(connect))?;
                    Route::Fixed(Arc::new(upstream), protocol)
                }
                (service, _, _) => Route::Service(service.as_deref().unwrap_or_default().into(), protocol),
            };
            listeners.push(bind(outbound.listen, route)?);
        }
        for (address, front) in fronts {
            listeners.push(bind(*address, Route::Gateway(Arc::clone(front)))?);
        }
        let address = config.metrics.listen;
        let metrics =
            std::net::TcpListener::bind(address).map_err(|source| Error::Bind { address, source })?;
        metrics.set_nonblocking(true)?;
        Ok(Self { listeners, inbound: config.inbound.len(), outbound: config.outbound.len(), metrics })
    }

    pub(crate) fn addresses(&self) -> Result<Bound, Error> {
        let mut inbound = self.listeners.iter().map(Listener::address).collect::<Result<Vec<_>, _>>()?;
        let mut outbound = inbound.split_off(self.inbound);
        let gateway = outbound.split_off(self.outbound);
        Ok(Bound { inbound, outbound, gateway, metrics: self.metrics.local_addr()? })
    }
}

/// `auto` on a port whose protocol lets the server speak first: waiting for a client's first byte would only delay it.
fn settle(protocol: Protocol, port: u16) -> Protocol {
    if protocol == Protocol::Auto && sniff::SERVER_FIRST.contains(&port) { Protocol::Tcp } else { protocol }
}
