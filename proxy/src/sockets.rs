//! Every listening socket of this proxy, there before anything else, so that a taken port shows at once. What was bound for this
//! process already is used, everything else is bound.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use postern_config::file::http::Http;
use postern_config::file::proxy::{Mtls, Protocol, ProxyConfig};
use postern_config::policy::MtlsMode;

use crate::discover::Upstream;
use crate::gateway::Front;
use crate::handover::{Offer, Offers};
use crate::http::sniff;
use crate::inbound::App;
use crate::inherit::{Inherited, Role};
use crate::listen::{self, Listener};
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
    pub(crate) metrics: TcpListener,
    /// The operators' read-only port.
    pub(crate) admin: Option<TcpListener>,
    /// Upstreams that the configuration names.
    pub(crate) fixed: Vec<Arc<Upstream>>,
}

impl Sockets {
    /// Claims from `inherited` what fits, and binds the rest.
    pub(crate) fn bind(
        config: &ProxyConfig,
        fronts: &[(SocketAddr, Arc<Front>)],
        tls: &Tls,
        inherited: &mut Inherited,
    ) -> Result<Self, Error> {
        let mut bind = |role, address| match inherited.claim(role, address) {
            Some(socket) => Ok(socket),
            None => listen::bind(address).map_err(|source| Error::Bind { address, source }),
        };
        let mut listeners = Vec::new();
        for inbound in &config.inbound {
            let mut app = App::new(&inbound.app, inbound.protocol, &config.http.circuit);
            app.protocol = settle(app.protocol, app.port);
            app.rate = rate_limit(&config.http);
            if inbound.mtls == Mtls::Permissive {
                app.mtls = MtlsMode::Permissive;
            }
            listeners.push(Listener::new(bind(Role::Inbound, inbound.listen)?, Route::Inbound(app)));
        }
        let mut fixed = Vec::new();
        for outbound in &config.outbound {
            let to = match (&outbound.service, &outbound.connect, &outbound.identity) {
                (_, Some(connect), Some(identity)) => {
                    let (endpoints, circuit) = (std::slice::from_ref(connect), &config.http.circuit);
                    let upstream = Upstream::new(tls, connect, identity.clone(), endpoints, circuit)?;
                    let upstream = Arc::new(upstream);
                    fixed.push(Arc::clone(&upstream));
                    Destination::Fixed(upstream)
                }
                (service, _, _) => Destination::Service(service.as_deref().unwrap_or_default().into()),
            };
            let protocol = settle(outbound.protocol, outbound.listen.port());
            let exit = Exit { to, protocol, rate: rate_limit(&config.http) };
            listeners.push(Listener::new(bind(Role::Outbound, outbound.listen)?, Route::Outbound(exit)));
        }
        for (address, front) in fronts {
            listeners.push(Listener::new(bind(Role::Gateway, *address)?, Route::Gateway(Arc::clone(front))));
        }
        let metrics = bind(Role::Metrics, config.metrics.listen)?;
        let admin = config.admin.listen.map(|address| bind(Role::Admin, address)).transpose()?;
        let (inbound, outbound) = (config.inbound.len(), config.outbound.len());
        Ok(Self { listeners, inbound, outbound, metrics, admin, fixed })
    }

    /// What the addresses became.
    pub(crate) fn addresses(&self) -> Result<Bound, Error> {
        let mut inbound = self.listeners.iter().map(Listener::address).collect::<Result<Vec<_>, _>>()?;
        let mut outbound = inbound.split_off(self.inbound);
        let gateway = outbound.split_off(self.outbound);
        let admin = self.admin.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(Bound { inbound, outbound, gateway, metrics: self.metrics.local_addr()?, admin })
    }

    /// Second handles of all of them, for a successor.
    pub(crate) fn offers(&self) -> Result<Offers, Error> {
        let of_listener = |listener: &Listener| {
            let role = match listener.route() {
                Route::Inbound(_) => Role::Inbound,
                Route::Outbound(_) => Role::Outbound,
                Route::Gateway(_) => Role::Gateway,
            };
            Ok(Offer { role, socket: listener.duplicate()? })
        };
        let mut offers =
            self.listeners.iter().map(of_listener).collect::<Result<Vec<_>, std::io::Error>>()?;
        offers.push(Offer { role: Role::Metrics, socket: self.metrics.try_clone()? });
        if let Some(admin) = &self.admin {
            offers.push(Offer { role: Role::Admin, socket: admin.try_clone()? });
        }
        Ok(Offers::new(offers))
    }
}

impl Bound {
    /// Every address.
    pub fn all(&self) -> Vec<SocketAddr> {
        let listeners = self.inbound.iter().chain(&self.outbound).chain(&self.gateway);
        listeners.chain([&self.metrics]).chain(&self.admin).copied().collect()
    }
}

/// One listener's own.
pub(crate) fn rate_limit(http: &Http) -> Option<Arc<RateLimit>> {
    let limit = http.rate_limit?;
    let burst = limit.burst.unwrap_or(limit.requests_per_second);
    Some(Arc::new(RateLimit::new(limit.requests_per_second, burst)))
}

/// `auto` on a port whose protocol lets the server speak first: waiting for a client's first byte would only delay it.
fn settle(protocol: Protocol, port: u16) -> Protocol {
    if protocol == Protocol::Auto && sniff::SERVER_FIRST.contains(&port) { Protocol::Tcp } else { protocol }
}
