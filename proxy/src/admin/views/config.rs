//! The configuration as it is in force. It names files that hold secrets and holds none, with one exception: the user part of
//! a URL, which is taken out wherever a URL stands.

use serde_json::{Value, json};

use super::super::State;

/// The configuration; without the peers that it names unless an operator asks.
pub(in super::super) fn config(state: &State, operator: bool) -> Value {
    let mut config = serde_json::to_value(&*state.config).unwrap_or_default();
    redact(&mut config);
    if !operator && let Some(outbound) = config["outbound"].as_array_mut() {
        for listener in outbound.iter_mut().filter_map(Value::as_object_mut) {
            listener.remove("connect");
            listener.remove("identity");
        }
    }
    let bound = &state.bound;
    let bound = json!({
        "inbound": bound.inbound, "outbound": bound.outbound, "gateway": bound.gateway, "metrics": bound.metrics, "admin": bound.admin,
    });
    json!({ "config": config, "bound": bound })
}

/// Takes credentials out of every URL.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(redacted) = without_credentials(text) {
                *text = redacted;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::Object(fields) => fields.values_mut().for_each(redact),
        _ => {}
    }
}

/// `scheme://user:password@host/path?query` with `***` for what lies before the `@`, and for the query, where tokens stand.
fn without_credentials(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?***"));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(_, host)| ("***@", host));
    Some(format!("{scheme}://{user}{host}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use postern_config::file::proxy::ProxyConfig;

    use super::*;

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        let mut config = ProxyConfig::default();
        for (given, shown) in [
            ("http://collector:4317", "http://collector:4317"),
            ("http://me:hunter2@collector:4317/v1", "http://***@collector:4317/v1"),
            ("https://a@b:p@c/x?token=hunter2", "https://***@c/x?***"),
        ] {
            config.otlp.endpoint = Some(given.to_owned());
            let mut value = serde_json::to_value(&config).unwrap();
            redact(&mut value);
            assert_eq!(value["otlp"]["endpoint"], shown);
        }
    }

    /// By construction: a field that holds a secret itself must not be added to the file, or must not serialize.
    #[test]
    fn no_field_of_the_file_is_called_like_a_secret() {
        fn names(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::Object(properties)) = fields.get("properties") {
                        found.extend(properties.keys().cloned());
                    }
                    fields.values().for_each(|v| names(v, found));
                }
                Value::Array(values) => values.iter().for_each(|v| names(v, found)),
                _ => {}
            }
        }
        let schema: Value =
            serde_json::from_str(include_str!("../../../../config/schema/proxy.schema.json")).unwrap();
        let mut found = Vec::new();
        names(&schema, &mut found);
        assert!(found.contains(&"join_file".to_owned()), "the schema was read");
        for name in found {
            let suspect = ["secret", "password", "token", "credential", "private"];
            // What names a file is a path, and a path is no secret.
            assert!(
                name.ends_with("_file") || !suspect.iter().any(|word| name.contains(word)),
                "`{name}` would be shown by GET /config"
            );
        }
    }
}
