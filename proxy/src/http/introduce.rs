//! `x-forwarded-client-cert`: tells the app who called, in the grammar and by the modes of Envoy.

use ::http::{HeaderMap, HeaderValue};
use postern_config::http::xfcc::{self, Element, Leaf, Mode};
use postern_config::id::SpiffeId;

use super::headers::XFCC;

/// What an app is told of one connection's caller.
#[derive(Debug, Default)]
pub struct Introduction {
    mode: Mode,
    /// The caller's own element; none for a caller without a certificate.
    element: Option<String>,
}

impl Introduction {
    /// An introduction by `mode`. `own` is this proxy's identity, `leaf` the caller's certificate in DER with its SHA-256;
    /// read once per connection, and only where the mode needs it.
    pub fn new(mode: Mode, own: Option<&SpiffeId>, leaf: Option<(&[u8], [u8; 32])>) -> Self {
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
        Self { mode, element }
    }

    /// Sets or removes the header.
    pub fn apply(&self, headers: &mut HeaderMap, id: Option<&SpiffeId>) {
        let caller = self.element.as_deref().map(|element| xfcc::Caller { id, element });
        let value = {
            let incoming: Option<Vec<&str>> =
                headers.get_all(XFCC).iter().map(|line| line.to_str().ok()).collect();
            let outgoing = xfcc::outgoing(self.mode, None, caller, &incoming.unwrap_or_default());
            outgoing.and_then(|text| HeaderValue::from_str(&text).ok())
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
