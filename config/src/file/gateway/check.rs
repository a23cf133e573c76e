//! What the types of a gateway's configuration do not say: which fields need each other, and which exclude each other.

use std::collections::HashMap;

use super::{
    ClientCertificateMode, EdgeProtocol, Gateway, Host, HostName, HttpRoute, MinTls, PathMatch, Plain,
};
use crate::file::acme::{self, AcmeChallenge};
use crate::file::proxy::ConfigError;
use crate::file::{Span, jwt};
use crate::service::{check_name, is_host_port};

/// What a browser asks of a host that wants to be built in.
const PRELOAD_MIN: Span = Span::from_secs(365 * 86_400);

fn error(at: &str, why: impl Into<String>) -> ConfigError {
    ConfigError { at: at.to_owned(), why: why.into() }
}

impl Gateway {
    /// Checks what the types alone do not say. Reads no file.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.listeners.is_empty() {
            return Err(error("gateway.listeners", "is empty: where shall the outside connect?"));
        }
        if self.hosts.is_empty() {
            return Err(error("gateway.hosts", "is empty: every connection would be refused"));
        }
        jwt::check("gateway.jwt", &self.jwt)?;
        acme::check("gateway.acme", &self.acme)?;
        let mut names: HashMap<&HostName, usize> = HashMap::new();
        for (i, host) in self.hosts.iter().enumerate() {
            let at = format!("gateway.hosts[{i}]");
            if host.names.is_empty() {
                return Err(error(&at, "`names` is empty"));
            }
            for name in &host.names {
                if let Some(earlier) = names.insert(name, i) {
                    return Err(error(&at, format!("{name} is taken by gateway.hosts[{earlier}]")));
                }
            }
            host.check(&at)?;
            host.jwt.check(&format!("{at}.jwt"), &self.jwt)?;
            self.check_reached(host, &at)?;
            self.check_acme(host, &at)?;
        }
        self.check_listeners(&names)
    }

    /// A host that no listener serves is a mistake that would only show when somebody calls.
    fn check_reached(&self, host: &Host, at: &str) -> Result<(), ConfigError> {
        let any = |wanted: &[EdgeProtocol]| self.listeners.iter().any(|l| wanted.contains(&l.protocol));
        let (reached, wanted) = if host.passthrough.is_some() {
            (any(&[EdgeProtocol::Tls, EdgeProtocol::Https]), "`tls` or `https`")
        } else if host.certificate.is_some() {
            (any(&[EdgeProtocol::Https]), "`https`")
        } else {
            (any(&[EdgeProtocol::Http]), "`http`")
        };
        match reached {
            true => Ok(()),
            false => Err(error(at, format!("is reached nowhere: it needs a listener of protocol {wanted}"))),
        }
    }

    /// What is ordered must be orderable, and the issuer must find its challenge answered.
    fn check_acme(&self, host: &Host, at: &str) -> Result<(), ConfigError> {
        let Some(name) = host.certificate.as_ref().and_then(|c| c.acme.as_ref()) else { return Ok(()) };
        let Some(issuer) = self.acme.iter().find(|issuer| issuer.name == *name) else {
            return Err(error(at, format!("no issuer is called {name:?}; see `gateway.acme`")));
        };
        if let Some(bad) = host.names.iter().find(|n| !acme::is_orderable(n.as_str())) {
            return Err(error(
                at,
                format!("{bad} cannot be proven by `{name}`: its challenges are for single names"),
            ));
        }
        let http = self.listeners.iter().any(|l| l.protocol == EdgeProtocol::Http);
        match issuer.challenge {
            AcmeChallenge::Http01 | AcmeChallenge::Both if !http => Err(error(
                at,
                format!(
                    "`{name}` answers http-01: it needs a listener of protocol `http`, reached at port 80"
                ),
            )),
            _ => Ok(()),
        }
    }

    fn check_listeners(&self, names: &HashMap<&HostName, usize>) -> Result<(), ConfigError> {
        for (i, listener) in self.listeners.iter().enumerate() {
            let at = format!("gateway.listeners[{i}]");
            if listener.proxy_protocol.as_ref().is_some_and(|p| p.trusted.is_empty()) {
                return Err(error(
                    &at,
                    "`proxy_protocol.trusted` is empty: name the load balancers' networks",
                ));
            }
            let Some(default) = &listener.default_host else { continue };
            if listener.protocol == EdgeProtocol::Http {
                return Err(error(&at, "`default_host` is for clients without SNI; plain HTTP has none"));
            }
            let Some(host) = names.get(default).and_then(|h| self.hosts.get(*h)) else {
                return Err(error(&at, format!("`default_host` {default} is not among the hosts' names")));
            };
            if default.wildcard().is_some() {
                return Err(error(&at, "`default_host` is one name, not a wildcard"));
            }
            if listener.protocol == EdgeProtocol::Tls && host.passthrough.is_none() {
                return Err(error(&at, format!("`default_host` {default} is not passed through")));
            }
        }
        Ok(())
    }
}

impl Host {
    fn check(&self, at: &str) -> Result<(), ConfigError> {
        let fail = |why: &str| Err(error(at, why));
        self.check_client_certificate(at)?;
        if let Some(passthrough) = &self.passthrough {
            if self.certificate.is_some()
                || !self.routes.is_empty()
                || self.hsts.is_some()
                || !self.jwt.is_default()
                || self.min_tls == MinTls::V12
                || self.client_certificate.mode != ClientCertificateMode::None
            {
                return fail(
                    "what is passed through is not decrypted: `certificate`, `client_certificate`, `min_tls`, `hsts`, `jwt` and `routes` belong to the host behind it",
                );
            }
            return match (&passthrough.service, &passthrough.address) {
                (Some(name), None) => check_name(name).map_err(|e| error(at, e.to_string())),
                (None, Some(address)) if is_host_port(address) => Ok(()),
                (None, Some(_)) => fail("`passthrough.address` is not `host:port`"),
                _ => fail("give `passthrough` either `service` or `address`"),
            };
        }
        match &self.certificate {
            Some(c) => match (&c.chain, &c.key, c.identity) {
                (None, None, false) if c.acme.is_some() => {}
                _ if c.acme.is_some() => {
                    return fail("`certificate.acme` stands alone: its files lie in the issuer's `storage`");
                }
                (Some(_), Some(_), false) | (None, None, true) => {}
                (Some(_), None, false) => return fail("`certificate.chain` needs `certificate.key`"),
                (None, Some(_), false) => return fail("`certificate.key` needs `certificate.chain`"),
                _ => return fail("give `certificate` `chain` and `key`, `acme`, or `identity: true`"),
            },
            None if self.plain == Plain::Refuse => {
                return fail("without `certificate` and with `plain: refuse` nobody could reach it");
            }
            None if self.hsts.is_some() || self.min_tls == MinTls::V12 => {
                return fail("`hsts` and `min_tls` need a `certificate`");
            }
            None => {}
        }
        if self.routes.is_empty() && (self.certificate.is_some() || self.plain == Plain::Serve) {
            return fail("`routes` is empty: every request would be answered 404");
        }
        if !matches!(self.redirect.code, 301 | 308) || self.redirect.port == 0 {
            return fail("`redirect` takes `code` 301 or 308, and a `port` from 1");
        }
        if let Some(hsts) = &self.hsts
            && hsts.preload
            && (!hsts.include_subdomains || hsts.max_age < PRELOAD_MIN)
        {
            return fail("`hsts.preload` needs `include_subdomains: true` and a `max_age` of at least 365d");
        }
        self.routes.iter().enumerate().try_for_each(|(i, r)| r.check(&format!("{at}.routes[{i}]")))
    }

    fn check_client_certificate(&self, at: &str) -> Result<(), ConfigError> {
        let fail = |why: &str| Err(error(at, why));
        let asked = self.client_certificate.mode != ClientCertificateMode::None;
        if asked && self.client_certificate.ca.is_empty() {
            return fail(
                "`client_certificate` needs `ca`: the CAs that are believed; the system's never are",
            );
        }
        let files = self.client_certificate.ca.len() + self.client_certificate.crl.len();
        if !asked && files > 0 {
            return fail("`client_certificate` has files and no `mode`: say `optional` or `required`");
        }
        if asked && self.certificate.is_none() {
            return fail("`client_certificate` needs a `certificate`: clients present theirs over TLS");
        }
        if asked && self.plain == Plain::Serve {
            return fail("`plain: serve` would lead around `client_certificate`");
        }
        Ok(())
    }
}

impl HttpRoute {
    fn check(&self, at: &str) -> Result<(), ConfigError> {
        let fail = |why: String| Err(error(at, why));
        check_name(&self.service).map_err(|e| error(at, e.to_string()))?;
        match &self.path {
            PathMatch { exact: Some(_), prefix: Some(_) } => {
                return fail("give `path` either `exact` or `prefix`".to_owned());
            }
            PathMatch { exact: Some(path), .. } | PathMatch { prefix: Some(path), .. } => {
                check_path(path).map_err(|why| error(at, why))?;
            }
            PathMatch { exact: None, prefix: None } => {}
        }
        if let Some(rewrite) = &self.rewrite_prefix {
            if self.path.exact.is_some() {
                return fail("`rewrite_prefix` needs a `path.prefix`, not `exact`".to_owned());
            }
            check_path(rewrite).map_err(|why| error(at, why))?;
        }
        if let Some(method) = &self.method
            && (method.is_empty()
                || method.len() > 32
                || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'))
        {
            return fail(format!("`method` {method:?} is not a method; write it in capitals, such as GET"));
        }
        for (name, value) in &self.headers {
            let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.is_empty() || !name.bytes().all(token) {
                return fail(format!(
                    "header {name:?}: write names in lower case, with letters, digits and `-`"
                ));
            }
            if name == "host" {
                return fail(
                    "header `host`: a host's routes see its own requests alone; use `names`".to_owned(),
                );
            }
            if value.is_empty() || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) || value.trim() != value
            {
                return fail(format!(
                    "header `{name}`: its value is printable ASCII without blanks around it"
                ));
            }
        }
        match self.timeout {
            Some(timeout) if timeout == Span::from_secs(0) => {
                fail("`timeout` 0s would end every request".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Requests are matched by their normalised path, so a path that normalisation changes would match nothing.
fn check_path(path: &str) -> Result<(), String> {
    let unreserved =
        |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'\\' | b'"' | b'<' | b'>');
    let bad = |why: &str| Err(format!("path {:?}: {why}", path.chars().take(80).collect::<String>()));
    if !path.starts_with('/') {
        return bad("begins with `/`");
    }
    if path.len() > 1024 || !path.bytes().all(unreserved) {
        return bad("is printable ASCII without query, fragment, `%` and `\\`, at most 1024 bytes");
    }
    if path.contains("//") || path.split('/').any(|s| matches!(s, "." | "..")) {
        return bad("requests are normalised before they are matched: no `//`, `.` or `..`");
    }
    Ok(())
}
