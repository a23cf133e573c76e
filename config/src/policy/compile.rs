//! Documents into rules that can be asked: every value parsed, HTTP fields resolved for connections without HTTP.

use std::borrow::Cow;

use super::document::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source};
use super::http::{HostPattern, RequestPrincipal, Values};
use super::index::Rules;
use super::key::Key;
use super::pattern::{IpBlock, NamespacePattern, Port, Principal, ServiceAccount, TextPattern};
use super::rule::{Clause, CompiledRule, Group, Test};
use super::{Chain, Chains, Policy, PolicyName, RuleRef};
use crate::id::TrustDomain;

/// The trust domain that Istio's documents call their own wherever they run.
const ANY_OWN: &str = "cluster.local";

/// Whether a rule is asked about connections or about requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Tcp,
    Http,
}

/// What the reading of a rule depends on besides the rule.
#[derive(Clone, Copy)]
struct Context<'a> {
    action: Action,
    layer: Layer,
    /// The policy's namespace.
    namespace: &'a str,
    trust_domain: &'a str,
}

pub(super) fn compile(policies: &[AuthorizationPolicy], trust_domain: TrustDomain) -> Policy {
    let names = policies.iter().map(|policy| PolicyName(policy.full_name())).collect();
    let all = || policies.iter().enumerate();
    let live = chains(all().filter(|(_, policy)| !policy.is_dry_run()), trust_domain.as_str());
    let tries = policies.iter().any(AuthorizationPolicy::is_dry_run);
    let trial = tries.then(|| chains(all(), trust_domain.as_str()));
    Policy { trust_domain, names, live, trial }
}

fn chains<'a>(
    policies: impl Iterator<Item = (usize, &'a AuthorizationPolicy)>,
    trust_domain: &str,
) -> Chains {
    let (mut tcp, mut http) = (Lists::default(), Lists::default());
    let mut restricts = false;
    for (policy, document) in policies {
        let action = document.spec.action;
        restricts |= action == Action::Allow;
        for (layer, lists) in [(Layer::Tcp, &mut tcp), (Layer::Http, &mut http)] {
            let context = Context { action, layer, namespace: &document.metadata.namespace, trust_domain };
            let rules = document.spec.rules.iter().enumerate().filter_map(|(rule, document)| {
                let groups = compile_rule(document, context)?;
                Some(CompiledRule { at: RuleRef { policy, rule }, groups })
            });
            lists[action as usize].extend(rules);
        }
    }
    let has_paths = http.iter().flatten().any(CompiledRule::has_paths);
    Chains { tcp: chain(tcp), http: chain(http), restricts, has_paths }
}

/// The rules of each action, by its number.
type Lists = [Vec<CompiledRule>; 3];

fn chain(lists: Lists) -> Chain {
    // In the order of `Action`.
    let [allow, deny, audit] = lists.map(Rules::new);
    Chain { deny, allow, audit }
}

/// A rule's groups; `None` for an ALLOW rule with an HTTP field, which can never be met without HTTP.
fn compile_rule(rule: &Rule, context: Context<'_>) -> Option<Vec<Group>> {
    if context.layer == Layer::Tcp && context.action == Action::Allow && rule.has_http() {
        return None;
    }
    let from = rule.from.iter().map(|f| source_clauses(&f.source, context)).collect();
    let to = rule.to.iter().map(|t| operation_clauses(&t.operation, context)).collect();
    let when = rule.when.iter().map(|c| vec![condition_clauses(c, context)]);
    let groups = [from, to].into_iter().chain(when).filter(|alternatives: &Vec<_>| !alternatives.is_empty());
    Some(groups.map(|alternatives| Group { alternatives }).collect())
}

impl Rule {
    /// Whether a field of it can only be judged with HTTP.
    pub(super) fn has_http(&self) -> bool {
        self.from.iter().any(|f| f.source.has_http())
            || self.to.iter().any(|t| t.operation.has_http())
            || self.when.iter().any(|c| c.key.is_http())
    }
}

impl Source {
    pub(super) fn has_http(&self) -> bool {
        !self.request_principals.is_empty() || !self.not_request_principals.is_empty()
    }

    /// Whether nothing is left of it without HTTP.
    pub(super) fn is_http_alone(&self) -> bool {
        let rest =
            Self { request_principals: Vec::new(), not_request_principals: Vec::new(), ..self.clone() };
        rest == Self::default()
    }
}

impl Operation {
    fn has_http(&self) -> bool {
        let without =
            Self { ports: self.ports.clone(), not_ports: self.not_ports.clone(), ..Self::default() };
        *self != without
    }

    /// Whether nothing is left of it without HTTP.
    pub(super) fn is_http_alone(&self) -> bool {
        self.ports.is_empty() && self.not_ports.is_empty()
    }
}

/// A policy's rules as they are asked about requests, by position.
pub(super) fn rules_on_http(policy: &AuthorizationPolicy, trust_domain: &str) -> Vec<Vec<Group>> {
    let (action, namespace) = (policy.spec.action, policy.metadata.namespace.as_str());
    let context = Context { action, layer: Layer::Http, namespace, trust_domain };
    policy.spec.rules.iter().filter_map(|rule| compile_rule(rule, context)).collect()
}

/// The clauses of one source or operation: a field that is not given makes none.
#[derive(Default)]
struct Clauses(Vec<Clause>);

impl Clauses {
    fn field<T>(&mut self, name: &'static str, given: [&[T]; 2], test: impl Fn(&T) -> Vec<Test>) {
        for (values, negated) in given.into_iter().zip([false, true]) {
            if !values.is_empty() {
                let tests = values.iter().flat_map(&test).collect();
                self.0.push(Clause { field: Cow::Borrowed(name), negated, tests });
            }
        }
    }
}

fn source_clauses(source: &Source, context: Context<'_>) -> Vec<Clause> {
    let mut clauses = Clauses::default();
    clauses.field("principal", [&source.principals, &source.not_principals], |p: &Principal| {
        principal_tests(p, context.trust_domain)
    });
    clauses.field("namespace", [&source.namespaces, &source.not_namespaces], |n: &NamespacePattern| {
        vec![Test::Namespace(n.clone())]
    });
    clauses.field("service account", [&source.service_accounts, &source.not_service_accounts], |a| {
        vec![account_test(a, context.namespace)]
    });
    clauses.field("source address", [&source.ip_blocks, &source.not_ip_blocks], |b: &IpBlock| {
        vec![Test::SourceIp(*b)]
    });
    clauses.field(
        "remote address",
        [&source.remote_ip_blocks, &source.not_remote_ip_blocks],
        |b: &IpBlock| vec![Test::RemoteIp(*b)],
    );
    if context.layer == Layer::Http {
        let given: [&[RequestPrincipal]; 2] = [&source.request_principals, &source.not_request_principals];
        clauses.field("request principal", given, |p| vec![Test::RequestPrincipal(p.clone())]);
    }
    clauses.0
}

fn operation_clauses(operation: &Operation, context: Context<'_>) -> Vec<Clause> {
    let mut clauses = Clauses::default();
    clauses
        .field("port", [&operation.ports, &operation.not_ports], |p: &Port| vec![Test::DestinationPort(*p)]);
    if context.layer == Layer::Http {
        clauses.field("host", [&operation.hosts, &operation.not_hosts], |h: &HostPattern| {
            vec![Test::Host(h.clone())]
        });
        clauses.field("method", [&operation.methods, &operation.not_methods], |m: &TextPattern| {
            vec![Test::Method(m.clone())]
        });
        clauses.field("path", [&operation.paths, &operation.not_paths], |p: &super::http::PathPattern| {
            vec![Test::Path(p.clone())]
        });
    }
    clauses.0
}

/// A principal of `cluster.local` means the own trust domain too (spec: authorization §1, trust-domain aliases).
fn principal_tests(principal: &Principal, own: &str) -> Vec<Test> {
    let mut tests = vec![Test::Principal(principal.0.clone())];
    let text = principal.text();
    if let Some((ANY_OWN, path)) = text.split_once('/')
        && path.split('/').count() == 4
        && let Ok(alias) = TextPattern::parse(&format!("{own}/{path}"))
    {
        tests.push(Test::Principal(alias));
    }
    tests
}

fn account_test(account: &ServiceAccount, own_namespace: &str) -> Test {
    let namespace = account.namespace.clone().unwrap_or_else(|| own_namespace.to_owned());
    Test::Account { namespace, account: account.account.clone() }
}

/// Whether a condition's values can be read; asked when the document is read.
pub(super) fn check_condition(condition: &Condition) -> Result<(), String> {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        return Err("a `when` entry needs `values` or `notValues`".to_owned());
    }
    let context = Context { action: Action::Allow, layer: Layer::Http, namespace: "", trust_domain: ANY_OWN };
    [&condition.values, &condition.not_values]
        .into_iter()
        .try_for_each(|values| tests_of(&condition.key, values, false, context).map(|_| ()))
}

fn condition_clauses(condition: &Condition, context: Context<'_>) -> Vec<Clause> {
    if context.layer == Layer::Tcp && condition.key.is_http() {
        return Vec::new();
    }
    [(false, &condition.values), (true, &condition.not_values)]
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(negated, values)| {
            // `check_condition` has read every value before.
            let tests = tests_of(&condition.key, values, negated, context).unwrap_or_default();
            Clause { field: condition.key.name().into(), negated, tests }
        })
        .collect()
}

/// The tests of values under a key.
fn tests_of(key: &Key, values: &[String], negated: bool, context: Context<'_>) -> Result<Vec<Test>, String> {
    if let Key::Header(name) = key {
        let patterns = values.iter().map(|v| TextPattern::parse(v)).collect::<Result<_, _>>()?;
        let every = (context.action == Action::Allow) != negated;
        return Ok(vec![Test::Header(name.clone(), Values { patterns, every })]);
    }
    let mut tests = Vec::new();
    for value in values {
        tests.push(match key {
            Key::SourceIp => Test::SourceIp(IpBlock::parse(value)?),
            Key::RemoteIp => Test::RemoteIp(IpBlock::parse(value)?),
            Key::DestinationIp => Test::DestinationIp(IpBlock::parse(value)?),
            Key::DestinationPort => Test::DestinationPort(Port::parse(value)?),
            Key::SourceNamespace => Test::Namespace(NamespacePattern::parse(value)?),
            Key::SourceTrustDomain => Test::TrustDomain(TextPattern::parse(value)?),
            Key::Sni => Test::Sni(HostPattern::parse(value)?),
            Key::SourceServiceAccount => account_test(&ServiceAccount::parse(value)?, context.namespace),
            Key::RequestPrincipal => Test::RequestPrincipal(RequestPrincipal::parse(value)?),
            Key::Audiences => Test::Audience(TextPattern::parse(value)?),
            Key::Presenter => Test::Presenter(TextPattern::parse(value)?),
            Key::Claim(path) => Test::Claim(path.clone(), TextPattern::parse(value)?),
            Key::SourcePrincipal => {
                tests.extend(principal_tests(&Principal::parse(value)?, context.trust_domain));
                continue;
            }
            Key::Header(_) => continue,
        });
    }
    Ok(tests)
}
