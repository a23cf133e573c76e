//! Circuit breaking: an upstream is asked to do so much at once and no more; the rest is refused while it is still cheap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use postern_config::file::http;

/// What an upstream is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// An open connection to it.
    Connection,
    /// A request that waits for a connection.
    PendingRequest,
    /// A request under way.
    Request,
}

impl Resource {
    /// Each of them, for metrics.
    pub const ALL: [Self; 3] = [Self::Connection, Self::PendingRequest, Self::Request];

    /// The field of `http.circuit` that bounds it; also the label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connections",
            Self::PendingRequest => "pending_requests",
            Self::Request => "requests",
        }
    }
}

/// The limit is reached: 503, at once, and nothing is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the upstream's limit of {most} is reached (http.circuit.{})", resource.as_str())]
pub struct Full {
    /// Of what.
    pub resource: Resource,
    /// How many there may be.
    pub most: usize,
}

/// One upstream's limits and what is in use of them, over all workers: atomics, no lock.
#[derive(Debug)]
pub struct Circuit {
    gauges: [Gauge; 3],
}

#[derive(Debug)]
struct Gauge {
    most: usize,
    used: AtomicUsize,
    refused: AtomicU64,
}

/// How one limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The limit.
    pub most: usize,
    /// In use now.
    pub used: usize,
    /// How often it was refused since the start.
    pub refused: u64,
}

impl Circuit {
    /// The limits of one upstream.
    pub fn new(limits: &http::Circuit) -> Arc<Self> {
        let gauge = |most| Gauge { most, used: AtomicUsize::new(0), refused: AtomicU64::new(0) };
        let most = |resource| match resource {
            Resource::Connection => limits.connections,
            Resource::PendingRequest => limits.pending_requests,
            Resource::Request => limits.requests,
        };
        Arc::new(Self { gauges: Resource::ALL.map(|resource| gauge(most(resource))) })
    }

    /// Takes one of `resource`, until the permit is dropped.
    pub fn take(self: &Arc<Self>, resource: Resource) -> Result<Permit, Full> {
        let gauge = self.gauge(resource);
        let one_more = |used: usize| (used < gauge.most).then_some(used + 1);
        // Only the number matters; nothing else is published by it.
        if gauge.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            gauge.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Full { resource, most: gauge.most });
        }
        Ok(Permit { circuit: Arc::clone(self), resource })
    }

    /// How the limit on `resource` stands, for metrics.
    pub fn usage(&self, resource: Resource) -> Usage {
        let gauge = self.gauge(resource);
        Usage {
            most: gauge.most,
            used: gauge.used.load(Ordering::Relaxed),
            refused: gauge.refused.load(Ordering::Relaxed),
        }
    }

    fn gauge(&self, resource: Resource) -> &Gauge {
        &self.gauges[resource as usize]
    }
}

/// One connection, waiting request or request; given back when it is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives it back"]
pub struct Permit {
    circuit: Arc<Circuit>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.circuit.gauge(self.resource).used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit() -> Arc<Circuit> {
        Circuit::new(&http::Circuit { connections: 1, pending_requests: 2, requests: 3 })
    }

    #[test]
    fn each_limit_is_its_own_and_comes_back() {
        let circuit = circuit();
        for (resource, most) in
            [(Resource::Connection, 1), (Resource::PendingRequest, 2), (Resource::Request, 3)]
        {
            let mut held: Vec<_> = (0..most).map(|_| circuit.take(resource).unwrap()).collect();
            assert_eq!(circuit.take(resource).unwrap_err(), Full { resource, most });
            assert_eq!(circuit.usage(resource), Usage { most, used: most, refused: 1 });
            held.pop();
            held.push(circuit.take(resource).unwrap());
            drop(held);
            assert_eq!(circuit.usage(resource), Usage { most, used: 0, refused: 1 });
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        let circuit = circuit();
        let _held = circuit.take(Resource::Connection).unwrap();
        assert_eq!(
            circuit.take(Resource::Connection).unwrap_err().to_string(),
            "the upstream's limit of 1 is reached (http.circuit.connections)"
        );
    }

    #[test]
    fn workers_share_it() {
        let circuit = circuit();
        let most = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let held = circuit.take(Resource::Request);
                        most.fetch_max(circuit.usage(Resource::Request).used, Ordering::Relaxed);
                        drop(held);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
        assert_eq!(circuit.usage(Resource::Request).used, 0);
    }
}
