//! What is allowed to be written and is probably not meant: rules that become others without HTTP, prefixes that reach too
//! far, rules that nothing reaches.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

use super::document::{Action, AuthorizationPolicy, Operation, Rule, Source};
use super::http::PathPattern;
use super::pattern::TextPattern;
use super::{Document, PeerAuthentication, PolicyError};
use crate::http::path::{self, Rules};

mod cover;

/// Ports on which hardly anybody speaks HTTP: databases, caches, brokers, mail, shells.
const TCP_PORTS: [u16; 14] = [21, 22, 25, 110, 143, 389, 1433, 1521, 3306, 4222, 5432, 6379, 9092, 27017];
/// From so many rules on, nobody waits for all pairs of them to be compared.
const MAX_COMPARED: usize = 2000;

/// A document with its place in the file that it was read from.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The document.
    pub document: Document,
    /// Which of the files, by the caller's own count.
    pub file: usize,
    /// Its first line, from 1.
    pub line: u64,
    rules: Vec<u64>,
}

/// Something that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Which of the files.
    pub file: usize,
    /// The line of the rule, or of the document where it is about the whole.
    pub line: u64,
    /// A closed word: `http_on_tcp`, `widened_on_tcp`, `no_boundary`, `never_matches`, `port_in_host`, `unreachable`,
    /// `denies_all`, `denies_nothing`, `root_selector`, `conflict`, `too_many_rules`.
    pub kind: &'static str,
    /// What happens, and what to write instead.
    pub message: String,
}

/// What the linter knows of the mesh.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// The namespace whose documents reach every workload.
    pub root_namespace: &'a str,
    /// Ports that speak no HTTP, besides the well-known ones.
    pub tcp_ports: &'a [u16],
}

/// As much of a document as has lines that warnings name.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Places {
    kind: Option<Spanned<IgnoredAny>>,
    spec: Option<SpecPlaces>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecPlaces {
    rules: Option<Vec<Spanned<IgnoredAny>>>,
}

impl Placed {
    /// Reads every document of a YAML text, like [`read_stream`](super::read_stream).
    pub fn read(text: &str, file: usize) -> Result<Vec<Self>, PolicyError> {
        let placed = |(document, piece): (Document, crate::file::Piece<'_>)| {
            let places = piece.parse::<Places>().unwrap_or_default();
            let line = |place: &Spanned<IgnoredAny>| piece.lines_before() + place.referenced.line().max(1);
            let rules = places.spec.and_then(|spec| spec.rules).unwrap_or_default();
            Self {
                document,
                file,
                line: places.kind.as_ref().map_or(piece.lines_before() + 1, line),
                rules: rules.iter().map(line).collect(),
            }
        };
        Ok(super::stream::read(text)?.into_iter().map(placed).collect())
    }
}

/// Everything that is probably not meant, by file and line.
pub fn lint(documents: &[Placed], setting: &Setting<'_>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for placed in documents {
        let mut findings = Findings { placed, rule: None, warnings: &mut warnings };
        match &placed.document {
            Document::Policy(policy) => findings.policy(policy, setting),
            Document::Peer(peer) => findings.peer(peer, setting),
        }
    }
    conflicts(documents, setting, &mut warnings);
    cover::unreachable(documents, setting, &mut warnings);
    warnings.sort_by_key(|warning| (warning.file, warning.line));
    warnings.dedup();
    warnings
}

/// The findings of one document, put down under the rule that is being looked at.
struct Findings<'a> {
    placed: &'a Placed,
    rule: Option<usize>,
    warnings: &'a mut Vec<Warning>,
}

impl Placed {
    fn warning(&self, rule: Option<usize>, kind: &'static str, message: String) -> Warning {
        let line = rule.and_then(|rule| self.rules.get(rule)).copied().unwrap_or(self.line);
        Warning { file: self.file, line, kind, message }
    }
}

impl Findings<'_> {
    fn add(&mut self, kind: &'static str, message: String) {
        self.warnings.push(self.placed.warning(self.rule, kind, message));
    }

    fn policy(&mut self, policy: &AuthorizationPolicy, setting: &Setting<'_>) {
        let action = policy.spec.action;
        match (action, policy.spec.rules.is_empty()) {
            (Action::Allow, true) => self.add(
                "denies_all",
                "an ALLOW policy without rules allows nothing, and what no other ALLOW policy allows is denied; \
                 `rules: [{}]` would allow everything"
                    .to_owned(),
            ),
            (Action::Deny, true) => {
                self.add("denies_nothing", "a DENY policy without rules denies nothing".to_owned());
            }
            _ => {}
        }
        let selects = policy.spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
        if selects && policy.metadata.namespace == setting.root_namespace {
            let message = "in the root namespace a selector selects workloads of every namespace";
            self.add("root_selector", message.to_owned());
        }
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            self.rule = Some(index);
            self.without_http(rule, action, setting);
            rule.from.iter().for_each(|from| self.source(&from.source));
            rule.to.iter().for_each(|to| self.operation(&to.operation));
        }
    }

    fn peer(&mut self, peer: &PeerAuthentication, setting: &Setting<'_>) {
        if peer.is_void(setting.root_namespace) {
            self.add("root_selector", peer.void_message());
        }
    }

    /// What the rule becomes where there is no HTTP (spec: authorization §1, TCP chains).
    fn without_http(&mut self, rule: &Rule, action: Action, setting: &Setting<'_>) {
        if !rule.has_http() {
            return;
        }
        let is_tcp = |port: &u16| TCP_PORTS.contains(port) || setting.tcp_ports.contains(port);
        let ports = rule.to.iter().flat_map(|to| &to.operation.ports).map(|port| port.0);
        let tcp: Vec<u16> = ports.filter(is_tcp).collect();
        let confined = !rule.to.is_empty() && rule.to.iter().all(|to| !to.operation.ports.is_empty());
        let fields = http_fields(rule).join(", ");
        for port in &tcp {
            self.add("http_on_tcp", match action {
                Action::Allow => format!(
                    "port {port} speaks no HTTP: there this ALLOW rule never matches, because it asks for {fields}"
                ),
                _ => format!(
                    "port {port} speaks no HTTP: there this {} rule is read without {fields}, and {}",
                    word(action),
                    reach(rule, action)
                ),
            });
        }
        if action != Action::Allow && !confined && tcp.is_empty() {
            self.add(
                "widened_on_tcp",
                format!(
                    "on ports that speak no HTTP this {} rule is read without {fields}, and {}; `ports` confines it",
                    word(action),
                    reach(rule, action)
                ),
            );
        }
    }

    fn source(&mut self, source: &Source) {
        for principal in source.principals.iter().chain(&source.not_principals) {
            match &principal.0 {
                TextPattern::Prefix(start) if !start.ends_with('/') => self.add(
                    "no_boundary",
                    format!(
                        "principal `{start}*` fits {start}-evil too; end it at a `/`, or use `namespaces`"
                    ),
                ),
                TextPattern::Suffix(end) if !end.starts_with('/') => self.add(
                    "no_boundary",
                    format!("principal `*{end}` fits evil-{end} too; begin it at a `/`, such as `*/{end}`"),
                ),
                _ => {}
            }
        }
        for principal in source.request_principals.iter().chain(&source.not_request_principals) {
            if let TextPattern::Exact(issuer) = &principal.issuer
                && issuer.ends_with(":/")
            {
                let text = principal.text();
                let message = format!(
                    "request principal `{text}` is divided at its last `/`, into the issuer `{issuer}`"
                );
                self.add("never_matches", message);
            }
        }
    }

    fn operation(&mut self, operation: &Operation) {
        for method in operation.methods.iter().chain(&operation.not_methods) {
            if method.text().bytes().any(|b| b.is_ascii_lowercase()) {
                let message = format!("method `{}` never matches: methods are in capitals", method.text());
                self.add("never_matches", message);
            }
        }
        for host in operation.hosts.iter().chain(&operation.not_hosts) {
            let text = host.text();
            match &host.pattern {
                TextPattern::Suffix(end) if !end.starts_with('.') => self.add(
                    "no_boundary",
                    format!("host `*{end}` fits evil{end} too; write `{end}` and `*.{end}`"),
                ),
                _ => {}
            }
            if text.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()) {
                let message = format!("host `{text}`: hosts are compared without their port; use `ports`");
                self.add("port_in_host", message);
            }
        }
        for path in operation.paths.iter().chain(&operation.not_paths) {
            let PathPattern::Text(pattern) = path else { continue };
            if let Some(why) = never_a_path(pattern) {
                self.add("never_matches", format!("path `{}` never matches: {why}", pattern.text()));
            } else if let TextPattern::Prefix(start) = pattern
                && !start.ends_with('/')
            {
                let message =
                    format!("path `{start}*` fits {start}-other too; write `{start}` and `{start}/*`");
                self.add("no_boundary", message);
            }
        }
    }
}

/// Why no path that was normalised can fit a pattern.
fn never_a_path(pattern: &TextPattern) -> Option<&'static str> {
    let normal = |path: &str| path::normalise(path, Rules::Strict).is_ok_and(|n| n == path);
    match pattern {
        TextPattern::Exact(text) | TextPattern::Prefix(text) if text.contains(['?', '#']) => {
            Some("query and fragment are no part of a path")
        }
        TextPattern::Exact(text) | TextPattern::Prefix(text) if !text.starts_with('/') => {
            Some("a path begins with `/`")
        }
        TextPattern::Exact(text) if !normal(text) => Some("paths are normalised first"),
        // What follows a prefix can be anything, half of an escape included.
        TextPattern::Prefix(text) if text.contains("//") || text.contains("/../") || text.contains("/./") => {
            Some("paths are normalised first")
        }
        _ => None,
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
    }
}

/// What a DENY or AUDIT rule does with its HTTP fields gone.
fn reach(rule: &Rule, action: Action) -> String {
    let verb = if action == Action::Deny { "denies" } else { "marks" };
    let left = !rule.from.iter().all(|f| f.source.is_http_alone())
        || !rule.to.iter().all(|t| t.operation.is_http_alone())
        || !rule.when.iter().all(|c| c.key.is_http());
    let which = if left { "every connection that its other fields fit" } else { "every connection" };
    format!("{verb} {which}")
}

/// The names of the fields that need HTTP.
fn http_fields(rule: &Rule) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut note = |name: &str, given: bool| {
        if given && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    };
    for operation in rule.to.iter().map(|to| &to.operation) {
        note("methods", !operation.methods.is_empty() || !operation.not_methods.is_empty());
        note("paths", !operation.paths.is_empty() || !operation.not_paths.is_empty());
        note("hosts", !operation.hosts.is_empty() || !operation.not_hosts.is_empty());
    }
    note("requestPrincipals", rule.from.iter().any(|from| from.source.has_http()));
    rule.when.iter().for_each(|condition| note(&condition.key.name(), condition.key.is_http()));
    names
}

/// Peer authentications of one scope: no order is defined between them, so the stricter one holds.
fn conflicts(documents: &[Placed], setting: &Setting<'_>, warnings: &mut Vec<Warning>) {
    let peers: Vec<(&Placed, &PeerAuthentication)> = documents
        .iter()
        .filter_map(|placed| match &placed.document {
            Document::Peer(peer) if !peer.is_void(setting.root_namespace) => Some((placed, peer)),
            _ => None,
        })
        .collect();
    for (index, (placed, peer)) in peers.iter().enumerate() {
        let earlier = peers[..index].iter().find(|(_, earlier)| {
            earlier.metadata.namespace == peer.metadata.namespace
                && earlier.labels() == peer.labels()
                && earlier.spec.mtls != peer.spec.mtls
        });
        if let Some((_, earlier)) = earlier {
            let message = format!(
                "{} and {} are for the same workloads; where they differ, the stricter mode holds",
                earlier.full_name(),
                peer.full_name()
            );
            warnings.push(placed.warning(None, "conflict", message));
        }
    }
}
