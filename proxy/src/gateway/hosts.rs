//! The names that a gateway answers for, and what each of them gets.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use postern_config::file::gateway::{self as config, Hsts, Plain, Redirect};

use super::route::Routes;
use crate::jwt::Rule;
use crate::tls::edge;

/// One host: a name or several, with everything that is answered under them.
#[derive(Debug)]
pub struct Host {
    /// Its first name: the label of its metrics and log lines.
    pub label: Arc<str>,
    /// What becomes of TLS for it.
    pub way: Way,
    /// What requests in plain text get.
    pub plain: Plain,
    /// How they are redirected.
    pub redirect: Redirect,
    /// `Strict-Transport-Security`.
    pub hsts: Option<HeaderValue>,
    /// Which JWTs are taken.
    pub jwt: Rule,
    /// Where requests go.
    pub routes: Routes,
}

/// What becomes of TLS for a host.
#[derive(Debug)]
pub enum Way {
    /// It ends here; the config is replaced when its files change.
    Terminate(ArcSwap<edge::Server>),
    /// It goes on to a service of the mesh.
    Service(Arc<str>),
    /// It goes on to `host:port`.
    Address(Arc<str>),
    /// There is none: plain text alone.
    Plain,
}

impl Host {
    /// A host of the configuration; `server` is its TLS, where that ends here.
    pub fn new(host: &config::Host, server: Option<edge::Server>, jwt: Rule) -> Self {
        let way = match (server, &host.passthrough) {
            (Some(server), _) => Way::Terminate(ArcSwap::from_pointee(server)),
            (None, Some(config::Passthrough { service: Some(service), .. })) => {
                Way::Service(service.as_str().into())
            }
            (None, Some(config::Passthrough { address: Some(address), .. })) => {
                Way::Address(address.as_str().into())
            }
            (None, _) => Way::Plain,
        };
        Self {
            label: host.names.first().map_or("", |n| n.as_str()).into(),
            way,
            plain: host.plain,
            redirect: host.redirect.clone(),
            hsts: host.hsts.as_ref().and_then(hsts),
            jwt,
            routes: Routes::new(&host.routes),
        }
    }
}

/// RFC 6797 §6.1.
fn hsts(hsts: &Hsts) -> Option<HeaderValue> {
    let mut text = format!("max-age={}", hsts.max_age.as_duration().as_secs());
    if hsts.include_subdomains {
        text.push_str("; includeSubDomains");
    }
    if hsts.preload {
        text.push_str("; preload");
    }
    HeaderValue::try_from(text).ok()
}

/// Hosts by name.
#[derive(Debug)]
pub struct Hosts<T = Arc<Host>> {
    exact: HashMap<Box<str>, T>,
    /// By what stands behind `*.`.
    wildcard: HashMap<Box<str>, T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T> Hosts<T> {
    /// Adds one under a name.
    pub fn insert(&mut self, name: &config::HostName, host: T) {
        match name.wildcard() {
            Some(rest) => self.wildcard.insert(rest.into(), host),
            None => self.exact.insert(name.as_str().into(), host),
        };
    }

    /// The host of a name in lower case: its own, or the one whose star stands for exactly its first label.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.exact.get(name).or_else(|| {
            let (label, rest) = name.split_once('.')?;
            self.wildcard.get(rest).filter(|_| !label.is_empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_exactly_one_label_and_a_name_of_its_own_goes_first() {
        let mut hosts = Hosts::default();
        for name in ["*.example.com", "shop.example.com", "*.b.example.com"] {
            hosts.insert(&name.parse().unwrap(), name);
        }
        for (asked, expected) in [
            ("a.example.com", Some("*.example.com")),
            ("shop.example.com", Some("shop.example.com")),
            ("b.example.com", Some("*.example.com")),
            ("x.b.example.com", Some("*.b.example.com")),
            ("x.a.example.com", None),
            ("example.com", None),
            (".example.com", None),
            ("*.example.com", Some("*.example.com")),
            ("com", None),
            ("", None),
        ] {
            assert_eq!(hosts.find(asked).copied(), expected, "{asked}");
        }
    }
}
