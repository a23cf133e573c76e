//! `x-forwarded-client-cert`: tells the app who called, in the grammar and by the modes of Envoy.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue};
use postern_config::file::http::Http;
use postern_config::http::xfcc::{self, Caller, Mode, outgoing};
use postern_config::id::SpiffeId;
use postern_config::svid::Names;

use super::headers::XFCC;

/// Elements that a worker keeps; more callers than these at a time have theirs written anew.
const KEPT: usize = 256;

/// The elements of callers that came before, by the SHA-256 of their leaf: to write one costs more than a request.
#[derive(Debug, Default)]
pub struct Elements(RefCell<HashMap<[u8; 32], Element>>);

#[derive(Debug)]
struct Element {
    /// Of this proxy, when it was written.
    own: Option<SpiffeId>,
    text: Rc<str>,
}

impl Elements {
    fn of(
        &self,
        own: Option<&SpiffeId>,
        hash: [u8; 32],
        write: impl FnOnce() -> Option<String>,
    ) -> Option<Rc<str>> {
        let mut kept = self.0.borrow_mut();
        if let Some(element) = kept.get(&hash).filter(|element| element.own.as_ref() == own) {
            return Some(Rc::clone(&element.text));
        }
        let text = Rc::from(write()?);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(hash, Element { own: own.cloned(), text: Rc::clone(&text) });
        Some(text)
    }
}

/// A caller's leaf: its SHA-256, and what reads its names.
pub type Shown<'a> = ([u8; 32], &'a dyn Fn() -> Option<Names>);

/// What an app is told of one connection's caller.
#[derive(Debug, Default)]
pub struct Introduction {
    http: Option<Arc<Http>>,
    /// The caller's own element; none for a caller without a certificate.
    element: Option<Rc<str>>,
    /// What requests that bring no such header get, once one has come.
    usual: OnceCell<Option<HeaderValue>>,
}

impl Introduction {
    /// An introduction by the configured mode. `own` is this proxy's identity; the leaf's names are asked for where the mode
    /// needs them and `elements` has none of it.
    pub fn new(
        http: &Arc<Http>,
        elements: &Elements,
        own: Option<&SpiffeId>,
        leaf: Option<Shown<'_>>,
    ) -> Self {
        let mode = http.xfcc.mode;
        let write = |hash, names: &dyn Fn() -> Option<Names>| {
            let leaf = if needs_element(mode) { names()? } else { Names::default() };
            let by: Vec<&str> = own.iter().map(|id| id.as_str()).collect();
            let uris: Vec<&str> = leaf.uris.iter().map(String::as_str).collect();
            let dns: Vec<&str> = leaf.dns.iter().map(String::as_str).collect();
            let element = xfcc::Element {
                by: &by,
                hash,
                subject: &leaf.subject,
                uris: &uris,
                dns: &dns,
                ..xfcc::Element::default()
            };
            Some(element.to_text())
        };
        let element = leaf.and_then(|(hash, names)| elements.of(own, hash, || write(hash, names)));
        Self { http: Some(Arc::clone(http)), element, usual: OnceCell::new() }
    }

    /// Sets or removes the header for a request of the caller, who is `id`.
    pub fn apply(&self, headers: &mut HeaderMap, id: Option<&SpiffeId>) {
        let Some(xfcc) = self.http.as_ref().map(|http| &http.xfcc) else {
            headers.remove(XFCC);
            return;
        };
        let caller = self.element.as_deref().map(|element| Caller { id, element });
        let value_after = |incoming: &[&str]| {
            let value = outgoing(xfcc.mode, xfcc.append_if.as_deref(), caller, incoming);
            value.and_then(|text| HeaderValue::from_str(&text).ok())
        };
        let value = if headers.contains_key(XFCC) {
            let incoming: Option<Vec<&str>> =
                headers.get_all(XFCC).iter().map(|line| line.to_str().ok()).collect();
            value_after(&incoming.unwrap_or_default())
        } else {
            self.usual.get_or_init(|| value_after(&[])).clone()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_written_once_for_a_leaf_and_an_identity_of_ours() {
        let elements = Elements::default();
        let [one, other]: [SpiffeId; 2] =
            ["spiffe://example.org/one", "spiffe://example.org/other"].map(|id| id.parse().unwrap());
        let of = |own: &SpiffeId, hash, text: Option<&str>| {
            elements.of(Some(own), hash, || text.map(str::to_owned)).map(|text| text.to_string())
        };
        assert_eq!(of(&one, [1; 32], None), None, "a leaf that cannot be read");
        assert_eq!(of(&one, [1; 32], Some("a")).as_deref(), Some("a"));
        assert_eq!(of(&one, [1; 32], Some("not asked")).as_deref(), Some("a"));
        assert_eq!(of(&one, [2; 32], Some("b")).as_deref(), Some("b"));
        assert_eq!(of(&other, [1; 32], Some("c")).as_deref(), Some("c"), "our own identity stands in it");
        for hash in 0..=u8::MAX {
            of(&one, [hash; 32], Some("x"));
        }
        assert!(elements.0.borrow().len() <= KEPT);
    }
}
