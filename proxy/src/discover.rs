//! Upstream services: who must answer, with which TLS config, at which addresses.

use std::collections::HashMap;
use std::sync::Arc;

use postern_config::file::http;
use postern_config::id::SpiffeId;
use postern_config::service::Service;

use crate::tls::{Connector, Tls};
use crate::upstream::circuit::Circuit;

pub mod balance;

/// One upstream service, ready for connections.
#[derive(Debug)]
pub struct Upstream {
    /// Its name, for the log.
    pub name: Arc<str>,
    /// The identity that every endpoint must prove.
    pub expected: SpiffeId,
    /// The TLS config that demands exactly that identity.
    pub connector: Connector,
    /// Where it listens, each `host:port`; may be empty.
    pub endpoints: Vec<Arc<str>>,
    /// How much it is asked to do at once.
    pub circuit: Arc<Circuit>,
}

impl Upstream {
    /// An upstream with its TLS config; built once per service, not per connection.
    pub fn new(
        tls: &Tls,
        name: &str,
        expected: SpiffeId,
        endpoints: &[String],
        circuit: &http::Circuit,
    ) -> Result<Self, crate::Error> {
        let connector = tls.connector(expected.clone()).map_err(|e| crate::Error::Tls(e.to_string()))?;
        let endpoints = endpoints.iter().map(|e| Arc::from(e.as_str())).collect();
        Ok(Self { name: name.into(), expected, connector, endpoints, circuit: Circuit::new(circuit) })
    }
}

/// Every service that the control plane has told of.
#[derive(Debug, Default)]
pub struct Services {
    by_name: HashMap<Arc<str>, Arc<Upstream>>,
    /// What each of them is asked to do at once.
    circuit: http::Circuit,
}

impl Services {
    /// None yet; those to come have these limits.
    pub fn none(circuit: http::Circuit) -> Self {
        Self { by_name: HashMap::new(), circuit }
    }

    /// The upstreams of these services; TLS configs and limits of unchanged identities are taken over from `earlier`.
    pub fn new(services: &[Service], tls: &Tls, earlier: &Self) -> Result<Self, crate::Error> {
        let upstream = |service: &Service| {
            let known = earlier.of(&service.name).filter(|u| u.expected == service.identity);
            let upstream = match known {
                Some(known) => Upstream {
                    name: Arc::clone(&known.name),
                    expected: service.identity.clone(),
                    connector: known.connector.clone(),
                    endpoints: service.endpoints.iter().map(|e| Arc::from(e.as_str())).collect(),
                    circuit: Arc::clone(&known.circuit),
                },
                None => {
                    let expected = service.identity.clone();
                    Upstream::new(tls, &service.name, expected, &service.endpoints, &earlier.circuit)?
                }
            };
            Ok::<_, crate::Error>((Arc::clone(&upstream.name), Arc::new(upstream)))
        };
        let by_name = services.iter().map(upstream).collect::<Result<_, _>>()?;
        Ok(Self { by_name, circuit: earlier.circuit.clone() })
    }

    /// Every service, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.by_name.values()
    }

    /// The service of this name.
    pub fn of(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.by_name.values()
    }
}
