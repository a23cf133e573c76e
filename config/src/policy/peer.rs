//! `PeerAuthentication`: whether a port wants mutual TLS, takes plain text beside it, or has none of it.
//!
//! The documents are Istio's. Where none of them says anything, the mode is STRICT (Istio's is PERMISSIVE).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::PolicyError;
use super::document::{ApiVersion, Ignored, Metadata, Selector, in_scope, read_json};
use super::pattern::Port;
use crate::id::SpiffeId;

/// What a port takes. Ordered from the most open to the strictest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MtlsMode {
    /// Plain text alone.
    Disable,
    /// Mutual TLS and plain text.
    Permissive,
    /// Mutual TLS alone.
    #[default]
    Strict,
}

/// One `PeerAuthentication`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// `security.istio.io/v1` or `security.istio.io/v1beta1`.
    pub api_version: ApiVersion,
    /// `PeerAuthentication`.
    pub kind: PeerKind,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says; an empty one inherits.
    #[serde(default)]
    pub spec: PeerSpec,
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    status: Ignored,
}

/// The accepted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PeerKind {
    /// A choice of modes.
    PeerAuthentication,
}

/// A peer authentication's content.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerSpec {
    /// Narrows it to workloads that carry all of these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The mode of every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mtls: Option<Mtls>,
    /// Modes of single ports of the workload; needs a selector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) port_level_mtls: BTreeMap<Port, Mtls>,
}

impl<'de> Deserialize<'de> for PeerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Unread {
            #[serde(default)]
            selector: Option<Selector>,
            #[serde(default)]
            mtls: Option<Mtls>,
            #[serde(default)]
            port_level_mtls: BTreeMap<Port, Mtls>,
        }
        let Unread { selector, mtls, port_level_mtls } = Unread::deserialize(deserializer)?;
        let selects = selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
        if !selects && !port_level_mtls.is_empty() {
            return Err(serde::de::Error::custom(
                "portLevelMtls needs a selector with matchLabels: ports are a workload's",
            ));
        }
        Ok(Self { selector, mtls, port_level_mtls })
    }
}

/// `mode` of the whole workload or of one port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Mtls {
    #[serde(default)]
    pub(super) mode: Mode,
}

/// A mode as written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Mode {
    /// Inherited from the next wider scope.
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

impl Mtls {
    fn set(self) -> Option<MtlsMode> {
        match self.mode {
            Mode::Unset => None,
            Mode::Disable => Some(MtlsMode::Disable),
            Mode::Permissive => Some(MtlsMode::Permissive),
            Mode::Strict => Some(MtlsMode::Strict),
        }
    }
}

/// What the documents of one workload come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MtlsModes {
    base: Option<MtlsMode>,
    ports: BTreeMap<u16, MtlsMode>,
}

impl MtlsModes {
    /// The modes of a workload to which all of `documents` apply: port before workload before namespace before mesh. Where
    /// two documents of the same scope differ, the stricter mode holds.
    pub fn effective(documents: &[PeerAuthentication], root_namespace: &str) -> Self {
        let mut levels = [None; 3];
        let mut ports = BTreeMap::new();
        for document in documents.iter().filter(|d| !d.is_void(root_namespace)) {
            let level = &mut levels[document.scope(root_namespace) as usize];
            *level = (*level).max(document.spec.mtls.and_then(Mtls::set));
            for (port, mode) in &document.spec.port_level_mtls {
                let held: &mut Option<MtlsMode> = ports.entry(port.0).or_default();
                *held = (*held).max(mode.set());
            }
        }
        let ports = ports.into_iter().filter_map(|(port, mode)| Some((port, mode?))).collect();
        Self { base: levels.into_iter().rev().find_map(|level| level), ports }
    }

    /// The mode of a workload's port, where a document sets one.
    pub fn of(&self, port: u16) -> Option<MtlsMode> {
        self.ports.get(&port).copied().or(self.base)
    }
}

/// How far a document reaches; a later scope goes before an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Mesh,
    Namespace,
    Workload,
}

impl PeerAuthentication {
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

    /// Whether it applies to a workload.
    pub fn applies_to(
        &self,
        workload: &SpiffeId,
        labels: &BTreeMap<String, String>,
        root_namespace: &str,
    ) -> bool {
        let selector = self.spec.selector.as_ref();
        !self.is_void(root_namespace) && in_scope(&self.metadata, selector, workload, labels, root_namespace)
    }

    /// Whether it stands in the root namespace and has a selector: Istio gives that no meaning.
    pub fn is_void(&self, root_namespace: &str) -> bool {
        self.metadata.namespace == root_namespace && self.scope("") == Scope::Workload
    }

    /// What to tell whoever wrote one that [`Self::is_void`].
    pub fn void_message(&self) -> String {
        format!(
            "PeerAuthentication {} has a selector and stands in the root namespace, where it selects nothing; \
             put it into the namespace of the workload",
            self.full_name()
        )
    }

    /// The labels that it selects by.
    pub(super) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.spec.selector.as_ref().map(|s| &s.match_labels).filter(|labels| !labels.is_empty())
    }

    fn scope(&self, root_namespace: &str) -> Scope {
        if self.labels().is_some() {
            Scope::Workload
        } else if self.metadata.namespace == root_namespace {
            Scope::Mesh
        } else {
            Scope::Namespace
        }
    }
}
