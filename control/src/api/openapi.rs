//! `/openapi.json`: the operators' API described for machines, from the types that the handlers themselves read and write.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use postern_config::registry;
use postern_config::service::Service;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::Plane;
use super::model::*;
use super::roles;
use crate::federation::Wanted;
use crate::store::Record;

/// Where it is served.
const PATH: &str = "/openapi.json";

/// The route.
pub(super) fn routes() -> Router<Arc<Plane>> {
    Router::new().route("/openapi.json", get(show))
}

async fn show() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

type Part = fn(&mut SchemaGenerator) -> Schema;

/// One operation: what goes in by its query and its body, and what comes out.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    query: &'static [Parameter],
    body: Option<Part>,
    answer: Part,
}

/// A name in the query, whether it has to be there, and its schema.
type Parameter = (&'static str, bool, Part);

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn reads(path: &'static str, summary: &'static str, answer: Part) -> Operation {
    Operation { method: "GET", path, summary, query: &[], body: None, answer }
}

const fn removes(path: &'static str, summary: &'static str, answer: Part) -> Operation {
    Operation { method: "DELETE", path, summary, query: &[], body: None, answer }
}

const fn posts(path: &'static str, summary: &'static str, body: Part, answer: Part) -> Operation {
    Operation { method: "POST", path, summary, query: &[], body: Some(body), answer }
}

const fn calls(path: &'static str, summary: &'static str, answer: Part) -> Operation {
    Operation { method: "POST", path, summary, query: &[], body: None, answer }
}

impl Operation {
    const fn asking(self, query: &'static [Parameter]) -> Self {
        Self { query, ..self }
    }
}

/// Every route of [`roles::TABLE`]; a test says so.
fn operations() -> [Operation; roles::TABLE.len()] {
    const KINDS: &[Parameter] = &[("kind", false, kinds)];
    const LAST: &[Parameter] = &[("last", false, of::<u32>)];
    const SINCE: &[Parameter] = &[("since", false, of::<i64>)];
    const RECORDS: &[Parameter] =
        &[("chain", true, of::<String>), ("after", false, of::<u64>), ("page_size", false, pages)];
    const CHECKPOINTS: &[Parameter] = &[("after", false, of::<String>), ("page_size", false, pages)];
    [
        reads(PATH, "This description", of::<Map<String, Value>>),
        reads("/v1/status", "The state of the mesh", of::<Status>),
        posts("/v1/tokens", "Make a join string", of::<CreateToken>, of::<CreatedToken>),
        reads("/v1/identities", "Live enrollments", of::<Vec<Identity>>),
        posts(
            "/v1/identities/remove",
            "Take an identity out of service",
            of::<RemoveIdentity>,
            of::<RevokedView>,
        ),
        reads("/v1/declarations", "Declared identities", of::<Vec<registry::Identity>>),
        posts("/v1/declarations", "Declare identities", of::<Vec<registry::Identity>>, of::<Applied>),
        removes("/v1/declarations/{name}", "Withdraw a declaration", of::<Applied>),
        reads("/v1/services", "Services and their endpoints", of::<Vec<ServiceView>>),
        posts("/v1/services", "Create or replace services", of::<Vec<Service>>, of::<Applied>),
        removes("/v1/services/{name}", "Remove a service", of::<Applied>),
        reads("/v1/policies", "Policies and peer authentications", of::<Vec<Map<String, Value>>>),
        posts("/v1/policies", "Create or replace policies", of::<ApplyPolicies>, of::<Applied>),
        removes("/v1/policies/{namespace}/{name}", "Remove a policy", of::<Applied>).asking(KINDS),
        calls("/v1/ca/rotate", "Let a new issuing CA of this replica take over", of::<IssuingView>),
        posts("/v1/ca/approve", "Let a waiting replica have an issuing CA", of::<Approve>, of::<Approved>),
        reads("/v1/ca/authorities", "Roots and issuing CAs", of::<Vec<AuthorityView>>),
        reads("/v1/ca/rotation", "The root's rotation that is under way", of::<Option<RotationView>>),
        posts("/v1/ca/rotation", "Begin a rotation", of::<BeginRotation>, of::<RotationView>),
        reads("/v1/ca/rotations", "The last rotations, newest first", of::<Vec<RotationView>>),
        posts("/v1/ca/taint", "Cut an issuing CA off", of::<TaintIssuing>, of::<TaintedView>),
        reads("/v1/jwt/keys", "Keys for JWT-SVIDs", of::<Vec<JwtKeyView>>),
        calls("/v1/jwt/rotate", "Publish this replica's next key for JWT-SVIDs now", of::<Vec<JwtKeyView>>),
        posts("/v1/jwt/taint", "Take a key for JWT-SVIDs back", of::<TaintIssuing>, of::<TaintedView>),
        reads("/v1/federation", "Foreign trust domains", of::<Vec<FederationView>>),
        posts("/v1/federation", "Federate with a trust domain", of::<Wanted>, of::<Refreshed>),
        removes("/v1/federation/{trust_domain}", "End a federation", of::<Applied>),
        calls("/v1/federation/{trust_domain}/refresh", "Fetch a foreign bundle now", of::<Refreshed>),
        reads("/v1/revocations", "What is revoked and banned", of::<RevocationsView>),
        posts("/v1/revocations", "Revoke an identity or a certificate", of::<Revoke>, of::<RevokedView>),
        posts(
            "/v1/revocations/lift",
            "Let a revoked identity have certificates again",
            of::<Lift>,
            of::<Lift>,
        ),
        reads("/v1/generations/{generation}/progress", "Who has a generation", of::<Vec<Progress>>),
        reads("/v1/audit", "The newest audit records", of::<Vec<Record>>).asking(LAST),
        reads("/v1/audit/chains", "The chains of the audit record", of::<Vec<ChainView>>).asking(SINCE),
        reads("/v1/audit/records", "A chain's records, in pages", of::<Vec<Record>>).asking(RECORDS),
        reads("/v1/audit/checkpoints", "Signed checkpoints, in pages", of::<Checkpoints>).asking(CHECKPOINTS),
        posts("/v1/snapshots", "Copy the store", of::<TakeSnapshot>, of::<SnapshotMade>),
    ]
}

fn kinds(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "string", "enum": ["AuthorizationPolicy", "PeerAuthentication"] })
}

fn pages(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "integer", "minimum": 1, "maximum": super::records::MAX_PAGE })
}

/// The whole description, OpenAPI 3.1.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for operation in operations() {
        let described = describe(&operation, &mut generator);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.to_ascii_lowercase()] = described;
    }
    let refused = of::<Refused>(&mut generator);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Postern control plane, operators' API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Over mutual TLS for identities with a role, and over the Unix socket for local root.",
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": { "Refused": {
                "description": "Refused, or failed; nothing was changed",
                "content": { "application/json": { "schema": refused } },
            } },
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let Operation { method, path, summary, query, body, answer } = operation;
    let in_path = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let mut parameters: Vec<Value> = in_path
        .map(|name| {
            let schema = if name == "generation" { of::<u64>(generator) } else { of::<String>(generator) };
            json!({ "name": name, "in": "path", "required": true, "schema": schema })
        })
        .collect();
    parameters.extend(query.iter().map(
        |(name, required, schema)| json!({ "name": name, "in": "query", "required": required, "schema": schema(generator) }),
    ));
    let role = roles::TABLE.iter().find(|(m, p, _)| m == method && p == path).map(|(_, _, role)| *role);
    let mut described = json!({
        "summary": summary,
        "x-postern-role": role,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "Done",
                "content": { "application/json": { "schema": answer(generator) } },
            },
            "default": { "$ref": "#/components/responses/Refused" },
        },
    });
    if let Some(body) = body {
        described["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": body(generator) } } });
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let described: Vec<_> = operations().iter().map(|o| (o.method, o.path)).collect();
        for (method, path, _) in roles::TABLE {
            assert!(described.contains(&(method, path)), "{method} {path} is not described");
        }
        let document = document();
        assert_eq!(document["paths"]["/v1/tokens"]["post"]["x-postern-role"], "operator");
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference} leads nowhere");
        }
    }
}
