//! Every listening socket of this proxy, bound before anything else so that a taken port shows at once.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_config::file::http::Http;
use postern_config::file::proxy::{Mtls, Protocol, ProxyConfig};
use postern_config::policy::MtlsMode;

use crate::discover::Upstream;
use crate::gateway::Front;
use crate::http::sniff;
use crate::inbound::App;
use crate::listen::Listener;
use crate::outbound::{Destination, Exit};
use crate::tls::Tls;
use crate::upstream::rate::RateLimit;
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
            let mut app = App::new(&inbound.app, inbound.protocol, &config.http.circuit);
            app.protocol = settle(app.protocol, app.port);
            app.rate = rate_limit(&config.http);
            if inbound.mtls == Mtls::Permissive {
                app.mtls = MtlsMode::Permissive;
            }
            listeners.push(bind(inbound.listen, Route::Inbound(app))?);
        }
        for outbound in &config.outbound {
            let to = match (&outbound.service, &outbound.connect, &outbound.identity) {
                (_, Some(connect), Some(identity)) => {
                    let (endpoints, circuit) = (std::slice::from_ref(connect), &config.http.circuit);
                    let upstream = Upstream::new(tls, connect, identity.clone(), endpoints, circuit)?;
                    Destination::Fixed(Arc::new(upstream))
                }
                (service, _, _) => Destination::Service(service.as_deref().unwrap_or_default().into()),
            };
            let protocol = settle(outbound.protocol, outbound.listen.port());
            let exit = Exit { to, protocol, rate: rate_limit(&config.http) };
            listeners.push(bind(outbound.listen, Route::Outbound(exit))?);
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

/// One listener's own.
fn rate_limit(http: &Http) -> Option<Arc<RateLimit>> {
    let limit = http.rate_limit?;
    let burst = limit.burst.unwrap_or(limit.requests_per_second);
    Some(Arc::new(RateLimit::new(limit.requests_per_second, burst)))
}

/// `auto` on a port whose protocol lets the server speak first: waiting for a client's first byte would only delay it.
fn settle(protocol: Protocol, port: u16) -> Protocol {
    if protocol == Protocol::Auto && sniff::SERVER_FIRST.contains(&port) { Protocol::Tcp } else { protocol }
}
