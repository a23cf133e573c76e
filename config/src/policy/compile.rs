//! Documents into rules that can be asked: every value parsed, HTTP fields resolved for connections without HTTP.

use std::borrow::Cow;

use super::document::{Action, AuthorizationPolicy, Condition, Key, Operation, Rule, Source};
use super::pattern::{IpBlock, NamespacePattern, Port, ServiceAccount, TextPattern};
use super::{Connection, Policy, PolicyName, RuleRef};
use crate::id::TrustDomain;

/// One rule: every group must be met, each by one of its alternatives.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) at: RuleRef,
    pub(super) groups: Vec<Group>,
}

/// A rule's `from`, `to`, or one `when`: met when all clauses of one alternative hold.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) alternatives: Vec<Vec<Clause>>,
}

/// One field: met when one of the tests holds, or none where it is negated.
#[derive(Debug)]
pub(super) struct Clause {
    /// The field's name in the document, for explanations.
    pub(super) field: Cow<'static, str>,
    pub(super) negated: bool,
    pub(super) tests: Vec<Test>,
}

/// A single value's test.
#[derive(Debug)]
pub(super) enum Test {
    Principal(TextPattern),
    Namespace(NamespacePattern),
    Account { namespace: String, account: String },
    TrustDomain(TextPattern),
    SourceIp(IpBlock),
    DestinationIp(IpBlock),
    DestinationPort(Port),
    Sni(TextPattern),
}

impl CompiledRule {
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        self.groups.iter().all(|group| group.matches(connection))
    }
}

impl Group {
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        self.alternatives.iter().any(|clauses| clauses.iter().all(|clause| clause.matches(connection)))
    }
}

impl Clause {
    pub(super) fn matches(&self, connection: &Connection<'_>) -> bool {
        self.tests.iter().any(|test| test.matches(connection)) != self.negated
    }
}

impl Test {
    fn matches(&self, connection: &Connection<'_>) -> bool {
        let peer = connection.peer;
        match self {
            Self::Principal(pattern) => pattern.matches(peer.principal()),
            Self::Namespace(pattern) => peer.namespace().is_some_and(|n| pattern.matches(n)),
            Self::Account { namespace, account } => {
                peer.namespace() == Some(namespace) && peer.service_account() == Some(account)
            }
            Self::TrustDomain(pattern) => pattern.matches(peer.trust_domain_str()),
            Self::SourceIp(block) => block.contains(connection.source_ip),
            Self::DestinationIp(block) => block.contains(connection.destination_ip),
            Self::DestinationPort(port) => port.0 == connection.destination_port,
            Self::Sni(pattern) => connection.sni.is_some_and(|sni| pattern.matches(sni)),
        }
    }
}

pub(super) fn compile(policies: &[AuthorizationPolicy], trust_domain: TrustDomain) -> Policy {
    let mut compiled = Policy {
        trust_domain,
        names: Vec::new(),
        deny: Vec::new(),
        allow: Vec::new(),
        audit: Vec::new(),
        restricts: false,
    };
    for policy in policies.iter().filter(|p| !p.is_dry_run()) {
        let at = compiled.names.len();
        compiled.names.push(PolicyName(policy.full_name()));
        let action = policy.spec.action;
        compiled.restricts |= action == Action::Allow;
        let rules = policy.spec.rules.iter().enumerate().filter_map(|(rule, document)| {
            let groups = compile_rule(document, action, &policy.metadata.namespace)?;
            Some(CompiledRule { at: RuleRef { policy: at, rule }, groups })
        });
        match action {
            Action::Allow => compiled.allow.extend(rules),
            Action::Deny => compiled.deny.extend(rules),
            Action::Audit => compiled.audit.extend(rules),
        }
    }
    compiled
}

/// A rule's groups; `None` for an ALLOW rule with an HTTP field, which can never be met without HTTP.
fn compile_rule(rule: &Rule, action: Action, own_namespace: &str) -> Option<Vec<Group>> {
    let http = rule.from.iter().any(|f| source_has_http(&f.source))
        || rule.to.iter().any(|t| operation_has_http(&t.operation))
        || rule.when.iter().any(|c| matches!(c.key, Key::Http(_)));
    if http && action == Action::Allow {
        return None;
    }
    let from = rule.from.iter().map(|f| source_clauses(&f.source, own_namespace)).collect();
    let to = rule.to.iter().map(|t| operation_clauses(&t.operation)).collect();
    let when = rule.when.iter().map(|c| vec![condition_clauses(c, own_namespace)]);
    let groups = [from, to].into_iter().chain(when).filter(|alternatives: &Vec<_>| !alternatives.is_empty());
    Some(groups.map(|alternatives| Group { alternatives }).collect())
}

fn source_has_http(source: &Source) -> bool {
    !source.request_principals.is_empty() || !source.not_request_principals.is_empty()
}

fn operation_has_http(operation: &Operation) -> bool {
    let fields = [
        &operation.hosts,
        &operation.not_hosts,
        &operation.methods,
        &operation.not_methods,
        &operation.paths,
        &operation.not_paths,
    ];
    fields.iter().any(|f| !f.is_empty())
}

fn source_clauses(source: &Source, own_namespace: &str) -> Vec<Clause> {
    let account = |a: &ServiceAccount| Test::Account {
        namespace: a.namespace.clone().unwrap_or_else(|| own_namespace.to_owned()),
        account: a.account.clone(),
    };
    let mut clauses = Vec::new();
    let mut add = |field: &'static str, negated, tests: Vec<Test>| {
        if !tests.is_empty() {
            clauses.push(Clause { field: Cow::Borrowed(field), negated, tests });
        }
    };
    let principals =
        |list: &[super::pattern::Principal]| list.iter().map(|p| Test::Principal(p.0.clone())).collect();
    let namespaces = |list: &[NamespacePattern]| list.iter().cloned().map(Test::Namespace).collect();
    let accounts = |list: &[ServiceAccount]| list.iter().map(account).collect();
    let blocks = |list: &[IpBlock]| list.iter().copied().map(Test::SourceIp).collect();
    add("principal", false, principals(&source.principals));
    add("principal", true, principals(&source.not_principals));
    add("namespace", false, namespaces(&source.namespaces));
    add("namespace", true, namespaces(&source.not_namespaces));
    add("service account", false, accounts(&source.service_accounts));
    add("service account", true, accounts(&source.not_service_accounts));
    add("source address", false, blocks(&source.ip_blocks));
    add("source address", true, blocks(&source.not_ip_blocks));
    // Without a trusted hop in front, the remote end is the source.
    add("remote address", false, blocks(&source.remote_ip_blocks));
    add("remote address", true, blocks(&source.not_remote_ip_blocks));
    clauses
}

fn operation_clauses(operation: &Operation) -> Vec<Clause> {
    let ports = |list: &[Port]| -> Vec<Test> { list.iter().copied().map(Test::DestinationPort).collect() };
    [(false, ports(&operation.ports)), (true, ports(&operation.not_ports))]
        .into_iter()
        .filter(|(_, tests)| !tests.is_empty())
        .map(|(negated, tests)| Clause { field: "port".into(), negated, tests })
        .collect()
}

/// Whether a condition's values can be read; asked when the document is read.
pub(super) fn check_condition(condition: &Condition) -> Result<(), String> {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        return Err("a `when` entry needs `values` or `notValues`".to_owned());
    }
    let mut values = condition.values.iter().chain(&condition.not_values);
    values.try_for_each(|value| test_of(&condition.key, value, "").map(|_| ()))
}

fn condition_clauses(condition: &Condition, own_namespace: &str) -> Vec<Clause> {
    let tests = |values: &[String]| -> Vec<Test> {
        // `check_condition` has read every value before; an HTTP key yields no test.
        values.iter().filter_map(|v| test_of(&condition.key, v, own_namespace).ok().flatten()).collect()
    };
    [(false, tests(&condition.values)), (true, tests(&condition.not_values))]
        .into_iter()
        .filter(|(_, tests)| !tests.is_empty())
        .map(|(negated, tests)| Clause { field: condition.key.name().to_owned().into(), negated, tests })
        .collect()
}

/// The test of one value under a key; `None` where only HTTP could answer.
fn test_of(key: &Key, value: &str, own_namespace: &str) -> Result<Option<Test>, String> {
    fn parsed<T: serde::de::DeserializeOwned>(value: &str) -> Result<T, String> {
        serde_json::from_value(value.into()).map_err(|e| e.to_string())
    }
    Ok(Some(match key {
        Key::SourceIp | Key::RemoteIp => Test::SourceIp(IpBlock::parse(value)?),
        Key::DestinationIp => Test::DestinationIp(IpBlock::parse(value)?),
        Key::DestinationPort => Test::DestinationPort(Port::parse(value)?),
        Key::SourceNamespace => Test::Namespace(parsed(value)?),
        Key::SourcePrincipal => Test::Principal(parsed::<super::pattern::Principal>(value)?.0),
        Key::SourceTrustDomain => Test::TrustDomain(parsed(value)?),
        Key::Sni => Test::Sni(parsed(value)?),
        Key::SourceServiceAccount => {
            let account: ServiceAccount = parsed(value)?;
            let namespace = account.namespace.unwrap_or_else(|| own_namespace.to_owned());
            Test::Account { namespace, account: account.account }
        }
        Key::Http(_) => return Ok(None),
    }))
}
