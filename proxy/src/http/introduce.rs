//! `x-forwarded-client-cert`: tells the app who called, in the grammar and by the modes of Envoy.

use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue};
use postern_config::file::http::Http;
use postern_config::http::xfcc::{Caller, Element, Leaf, Mode, outgoing};
use postern_config::id::SpiffeId;

use super::headers::XFCC;

/// What an app is told of one connection's caller.
#[derive(Debug, Default)]
pub struct Introduction {
    http: Option<Arc<Http>>,
    /// The caller's own element; none for a caller without a certificate.
    element: Option<String>,
}

impl Introduction {
    /// An introduction by the configured mode. `own` is this proxy's identity, `leaf` the caller's certificate in DER with its SHA-256;
    /// read once per connection, and only where the mode needs it.
    pub fn new(http: &Arc<Http>, own: Option<&SpiffeId>, leaf: Option<(&[u8], [u8; 32])>) -> Self {
        let mode = http.xfcc.mode;
        let element = leaf.and_then(|(der, hash)| {
            let leaf = if needs_element(mode) { Leaf::of(der)? } else { Leaf::default() };
            let by: Vec<&str> = own.iter().map(|id| id.as_str()).collect();
            let uris: Vec<&str> = leaf.uris.iter().map(String::as_str).collect();
            let dns: Vec<&str> = leaf.dns.iter().map(String::as_str).collect();
            let element = Element {
                by: &by,
                hash,
                subject: &leaf.subject,
                uris: &uris,
                dns: &dns,
                ..Element::default()
            };
            Some(element.to_text())
        });
        Self { http: Some(Arc::clone(http)), element }
    }

    /// Sets or removes the header.
    pub fn apply(&self, headers: &mut HeaderMap, id: Option<&SpiffeId>) {
        let Some(xfcc) = self.http.as_ref().map(|http| &http.xfcc) else {
            headers.remove(XFCC);
            return;
        };
        let caller = self.element.as_deref().map(|element| Caller { id, element });
        let value = {
            let incoming: Option<Vec<&str>> =
                headers.get_all(XFCC).iter().map(|line| line.to_str().ok()).collect();
            let value = outgoing(xfcc.mode, xfcc.append_if.as_deref(), caller, &incoming.unwrap_or_default());
            value.and_then(|text| HeaderValue::from_str(&text).ok())
        };
        match value {
            Some(value) => drop(headers.insert(XFCC, value)),
            None => drop(headers.remove(XFCC)),
        }
    }
}

fn needs_element(mode: Mode) -> bool {
    matches!(mode, Mode::AppendForward | Mode::SanitizeSet)
}
