//! The JSON Schemas that editors use are those of the types.
//!
//! `UPDATE_SCHEMAS=1 cargo test -p postern-config --test schemas` rewrites them.

use std::path::Path;

use postern_config::file::control::ControlConfig;
use postern_config::file::proxy::ProxyConfig;
use postern_config::policy::{AuthorizationPolicy, PeerAuthentication};
use postern_config::service::Service;
use schemars::{Schema, schema_for};
use serde_json::Value;

fn schemas() -> [(&'static str, Schema); 5] {
    [
        ("proxy", schema_for!(ProxyConfig)),
        ("control", schema_for!(ControlConfig)),
        ("policy", schema_for!(AuthorizationPolicy)),
        ("peer-authentication", schema_for!(PeerAuthentication)),
        ("service", schema_for!(Service)),
    ]
}

#[test]
fn schemas_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    for (name, schema) in schemas() {
        let path = folder.join(format!("{name}.schema.json"));
        let current = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == current,
            "{name}.schema.json is not current: UPDATE_SCHEMAS=1 cargo test -p postern-config --test schemas"
        );
    }
}

/// Every object that a file may hold refuses unknown fields, and every field says what it is for.
#[test]
fn schemas_are_strict_and_documented() {
    fn walk(at: &str, schema: &Value, found: &mut Vec<String>) {
        let Some(object) = schema.as_object() else { return };
        if let Some(Value::Object(fields)) = object.get("properties") {
            if object.get("additionalProperties") != Some(&Value::Bool(false)) {
                found.push(format!("{at} takes unknown fields"));
            }
            for (name, field) in fields {
                // Istio documents the fields of policies.
                if field.get("description").is_none() && !at.starts_with("policy") && !at.starts_with("peer")
                {
                    found.push(format!("{at}.{name} is not described"));
                }
            }
        }
        for (name, part) in object {
            match part {
                Value::Object(_) => walk(&format!("{at}.{name}"), part, found),
                Value::Array(parts) => parts.iter().for_each(|p| walk(&format!("{at}.{name}"), p, found)),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    for (name, schema) in schemas() {
        walk(name, schema.as_value(), &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}
