//! What policies mean on connections and on requests, against Istio's semantics (spec: authorization §1, §6).

use super::{AuthorizationPolicy, Connection, Document, Policy, PolicyError, Verdict, read_stream};
use crate::id::SpiffeId;

mod documents;
mod explain;
mod fields;
mod hostile;
mod lint;
mod order;
mod peers;
mod reference;
mod requests;

const PAY: &str = "spiffe://corp.example/ns/shop/sa/pay";
const PARTNER: &str = "spiffe://partner.example/ns/shop/sa/pay";

/// A policy `shop/<name>` with this `spec`, indented by two.
fn document(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:{spec}\n"
    )
}

fn read(documents: &[String]) -> Vec<AuthorizationPolicy> {
    policies(&documents.join("---\n")).unwrap()
}

/// The authorization policies of a text.
fn policies(text: &str) -> Result<Vec<AuthorizationPolicy>, PolicyError> {
    let policy = |document| match document {
        Document::Policy(policy) => Some(policy),
        Document::Peer(_) => None,
    };
    Ok(read_stream(text)?.into_iter().filter_map(policy).collect())
}

/// The policies `p0`, `p1`, … with these specs, compiled for corp.example.
fn compiled(specs: &[&str]) -> Policy {
    let documents: Vec<String> =
        specs.iter().enumerate().map(|(i, s)| document(&format!("p{i}"), s)).collect();
    Policy::compile(&read(&documents), "corp.example".parse().unwrap())
}

/// A connection to port 8080 of 10.0.0.2, from 10.0.0.1 unless a test says otherwise.
struct From {
    id: SpiffeId,
    ip: &'static str,
    port: u16,
    sni: Option<&'static str>,
}

fn from(id: &str) -> From {
    From { id: id.parse().unwrap(), ip: "10.0.0.1", port: 8080, sni: None }
}

impl From {
    fn verdict(&self, policy: &Policy) -> Verdict {
        policy.decide(&Connection {
            peer: Some(&self.id),
            admits_anonymous: false,
            source_ip: self.ip.parse().unwrap(),
            remote_ip: self.ip.parse().unwrap(),
            destination_ip: "10.0.0.2".parse().unwrap(),
            destination_port: self.port,
            sni: self.sni,
        })
    }
}

/// Whether `spec` alone admits the connection.
fn admits(spec: &str, from: &From) -> bool {
    from.verdict(&compiled(&[spec])).allow
}

/// Whether one ALLOW rule with this `source` admits the connection.
fn source_admits(source: &str, from: &From) -> bool {
    admits(&format!("\n  rules:\n  - from:\n    - source: {source}"), from)
}
