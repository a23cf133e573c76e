//! `AuthorizationPolicy` as it stands in a file: Istio's fields, strictly read, with line and column in every error.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::http::{HostPattern, PathPattern, RequestPrincipal};
use super::key::Key;
use super::pattern::{IpBlock, NamespacePattern, Port, Principal, ServiceAccount, TextPattern};
use crate::file::YamlError;
use crate::id::SpiffeId;

/// How deep JSON may nest; a document needs ten, and the YAML reader stops at this too.
const MAX_DEPTH: usize = 64;
/// The longest name in bytes, as in Kubernetes.
const MAX_NAME: usize = 253;
/// The annotation that makes a policy count as absent while it is tried out.
const DRY_RUN: &str = "istio.io/dry-run";

/// Why a policy document is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not readable as a policy; says where.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// JSON from the control plane that is not a policy.
    #[error("policy document: {0}")]
    Json(#[from] serde_json::Error),
    /// The same kind and name twice in one input.
    #[error("{0} {1} stands twice in the input")]
    Twice(&'static str, String),
}

/// One `AuthorizationPolicy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// `security.istio.io/v1` or `security.istio.io/v1beta1`.
    pub api_version: ApiVersion,
    /// `AuthorizationPolicy`.
    pub kind: Kind,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says; an empty one denies everything.
    #[serde(default)]
    pub spec: Spec,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    status: Ignored,
}

/// The accepted API versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The stable version.
    #[serde(rename = "security.istio.io/v1")]
    V1,
    /// The same fields under their older name.
    #[serde(rename = "security.istio.io/v1beta1")]
    V1Beta1,
}

/// The accepted kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// A policy that allows or denies.
    AuthorizationPolicy,
}

/// A Kubernetes object's metadata, as far as it matters here. What an API server adds is read and dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique within the namespace.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Policies of the root namespace apply to every workload, others to those of their own namespace.
    #[serde(default = "default_namespace", deserialize_with = "name")]
    pub namespace: String,
    /// Kept, without meaning here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `istio.io/dry-run: "true"` makes the policy count as absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    creation_timestamp: Ignored,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    generation: Ignored,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    resource_version: Ignored,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    uid: Ignored,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    managed_fields: Ignored,
}

impl Metadata {
    /// `<namespace>/<name>`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A name as Kubernetes has them (RFC 1123): it stands in paths, labels and logs.
fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        return Err(serde::de::Error::custom(format_args!(
            "a name has 1 to {MAX_NAME} letters, digits, `-`, `.` and `_`"
        )));
    }
    Ok(name)
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// A field that is read and forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// What a policy does where one of its rules matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Allows, and denies what no ALLOW rule matches.
    #[default]
    Allow,
    /// Denies, before any ALLOW.
    Deny,
    /// Marks the connection in the log.
    Audit,
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "ALLOW" => Ok(Self::Allow),
            "DENY" => Ok(Self::Deny),
            "AUDIT" => Ok(Self::Audit),
            "CUSTOM" => Err(serde::de::Error::custom(
                "action CUSTOM is not supported: there is no provider to delegate to",
            )),
            other => Err(serde::de::Error::custom(format_args!(
                "unknown action {other:?}; use ALLOW, DENY or AUDIT"
            ))),
        }
    }
}

/// A policy's content.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Narrows the policy to workloads that carry all of these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// ALLOW where it is left out.
    #[serde(default)]
    pub action: Action,
    /// Any of these; none at all never matches, one empty rule always does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rules: Vec<Rule>,
}

/// Labels that a workload must carry; they come from its registration, never from itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// All of these.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// All of `from`, `to` and `when`; each is met by any of its entries, an absent one always.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) from: Vec<From>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) to: Vec<To>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) when: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(deserialize_with = "not_empty")]
    pub(super) source: Source,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct To {
    #[serde(deserialize_with = "not_empty")]
    pub(super) operation: Operation,
}

/// An empty `source` or `operation` looks like "nobody" and would mean "everybody".
fn not_empty<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default + PartialEq,
{
    let value = T::deserialize(deserializer)?;
    if value == T::default() {
        return Err(serde::de::Error::custom("it is empty; leave it out to match everything"));
    }
    Ok(value)
}

macro_rules! lists {
    ($(#[doc = $doc:literal])+ $name:ident { $($field:ident: $type:ty,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct $name {
            $(#[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub(super) $field: Vec<$type>,)+
        }
    };
}

lists! {
    /// Who: every given field must hold, each by any of its values; `not…` by none.
    Source {
        principals: Principal,
        not_principals: Principal,
        request_principals: RequestPrincipal,
        not_request_principals: RequestPrincipal,
        namespaces: NamespacePattern,
        not_namespaces: NamespacePattern,
        service_accounts: ServiceAccount,
        not_service_accounts: ServiceAccount,
        ip_blocks: IpBlock,
        not_ip_blocks: IpBlock,
        remote_ip_blocks: IpBlock,
        not_remote_ip_blocks: IpBlock,
    }
}

lists! {
    /// What: only `ports` can be judged on a connection without HTTP.
    Operation {
        hosts: HostPattern,
        not_hosts: HostPattern,
        ports: Port,
        not_ports: Port,
        methods: TextPattern,
        not_methods: TextPattern,
        paths: PathPattern,
        not_paths: PathPattern,
    }
}

/// One `when` entry; its values are read by the kind of its key.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Condition {
    pub(super) key: Key,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) values: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) not_values: Vec<String>,
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Unread {
            key: Key,
            #[serde(default)]
            values: Vec<String>,
            #[serde(default)]
            not_values: Vec<String>,
        }
        let Unread { key, values, not_values } = Unread::deserialize(deserializer)?;
        let condition = Self { key, values, not_values };
        super::compile::check_condition(&condition).map_err(serde::de::Error::custom)?;
        Ok(condition)
    }
}

impl AuthorizationPolicy {
    /// Reads one JSON document, as [`Self::to_json`] writes it.
    pub fn from_json(text: &str) -> Result<Self, PolicyError> {
        read_json(text)
    }

    /// One JSON document.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `<namespace>/<name>`.
    pub fn full_name(&self) -> String {
        self.metadata.full_name()
    }

    /// Whether it only tries itself out.
    pub fn is_dry_run(&self) -> bool {
        self.metadata.annotations.get(DRY_RUN).is_some_and(|v| v == "true")
    }

    /// Whether it applies to a workload: by namespace, or everywhere from the root namespace, and by labels.
    pub fn applies_to(
        &self,
        workload: &SpiffeId,
        labels: &BTreeMap<String, String>,
        root_namespace: &str,
    ) -> bool {
        in_scope(&self.metadata, self.spec.selector.as_ref(), workload, labels, root_namespace)
    }
}

/// Whether a document is meant for a workload: by namespace, or everywhere from the root namespace, and by labels.
pub(super) fn in_scope(
    metadata: &Metadata,
    selector: Option<&Selector>,
    workload: &SpiffeId,
    labels: &BTreeMap<String, String>,
    root_namespace: &str,
) -> bool {
    let namespace = &metadata.namespace;
    let reaches = namespace == root_namespace || workload.namespace() == Some(namespace);
    reaches && selector.iter().flat_map(|s| &s.match_labels).all(|(k, v)| labels.get(k) == Some(v))
}

/// Reads JSON that nests no deeper than a document does, the parts that are skipped included.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, PolicyError> {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            let why = format!("nested deeper than {MAX_DEPTH}");
            return Err(PolicyError::Json(serde::de::Error::custom(why)));
        }
    }
    Ok(serde_json::from_str(text)?)
}
