//! Rules that decide nothing, because an earlier one matches wherever they do, or a DENY rule does.

use super::{MAX_COMPARED, Placed, Setting, Warning};
use crate::policy::compile::rules_on_http;
use crate::policy::document::Action;
use crate::policy::http::{PathPattern, RequestPrincipal};
use crate::policy::pattern::TextPattern;
use crate::policy::rule::{Clause, Group, Test};
use crate::policy::{AuthorizationPolicy, Document};

struct Candidate<'a> {
    placed: &'a Placed,
    policy: &'a AuthorizationPolicy,
    index: usize,
    groups: Vec<Group>,
}

impl Candidate<'_> {
    fn has_http(&self) -> bool {
        self.policy.spec.rules[self.index].has_http()
    }
}

pub(super) fn unreachable(documents: &[Placed], setting: &Setting<'_>, warnings: &mut Vec<Warning>) {
    let mut rules: Vec<Candidate<'_>> = Vec::new();
    for placed in documents {
        let Document::Policy(policy) = &placed.document else { continue };
        if policy.is_dry_run() || policy.spec.action == Action::Audit {
            continue;
        }
        // Aliases of the own trust domain are the same on both sides of a comparison.
        let compiled = rules_on_http(policy, "cluster.local").into_iter().enumerate();
        rules.extend(compiled.map(|(index, groups)| Candidate { placed, policy, index, groups }));
    }
    if rules.len() > MAX_COMPARED {
        let message = format!(
            "{} rules are too many to look for unreachable ones (at most {MAX_COMPARED} are compared)",
            rules.len()
        );
        warnings.extend(documents.first().map(|placed| placed.warning(None, "too_many_rules", message)));
        return;
    }
    for (at, rule) in rules.iter().enumerate() {
        let covers = |(earlier, other): &(usize, &Candidate<'_>)| {
            let (ours, theirs) = (rule.policy.spec.action, other.policy.spec.action);
            let goes_before = match (ours, theirs) {
                (Action::Allow, Action::Deny) => true,
                _ => ours == theirs && *earlier < at,
            };
            // Without HTTP an ALLOW rule with an HTTP field vanishes, and the later one is on its own.
            let stays =
                ours == Action::Deny || theirs == Action::Deny || !other.has_http() || rule.has_http();
            goes_before
                && stays
                && reaches(other.policy, rule.policy, setting)
                && covers(&other.groups, &rule.groups)
        };
        if let Some((_, other)) = rules.iter().enumerate().find(covers) {
            let message = format!(
                "rule {} of {} is never reached: rule {} of {} ({}, line {}) matches wherever it does",
                rule.index,
                rule.policy.full_name(),
                other.index,
                other.policy.full_name(),
                super::word(other.policy.spec.action),
                other.placed.rules.get(other.index).unwrap_or(&other.placed.line),
            );
            warnings.push(rule.placed.warning(Some(rule.index), "unreachable", message));
        }
    }
}

/// Whether `wide` applies to every workload that `narrow` applies to.
fn reaches(wide: &AuthorizationPolicy, narrow: &AuthorizationPolicy, setting: &Setting<'_>) -> bool {
    let labels = |policy: &AuthorizationPolicy| policy.spec.selector.clone().unwrap_or_default().match_labels;
    let (namespace, narrow_labels) = (&wide.metadata.namespace, labels(narrow));
    (namespace == setting.root_namespace || *namespace == narrow.metadata.namespace)
        && labels(wide).iter().all(|(name, value)| narrow_labels.get(name) == Some(value))
}

/// Whether every question that meets all of `narrow` meets all of `wide`.
fn covers(wide: &[Group], narrow: &[Group]) -> bool {
    let implied = |w: &Group| {
        narrow.iter().any(|n| {
            n.alternatives.iter().all(|clauses| w.alternatives.iter().any(|wide| all_implied(wide, clauses)))
        })
    };
    wide.iter().all(implied)
}

fn all_implied(wide: &[Clause], narrow: &[Clause]) -> bool {
    wide.iter().all(|w| narrow.iter().any(|n| implied(w, n)))
}

/// Whether every question that meets `narrow` meets `wide`.
fn implied(wide: &Clause, narrow: &Clause) -> bool {
    if wide.negated != narrow.negated {
        return false;
    }
    // `not` turns the direction round.
    let (wide, narrow) = if wide.negated { (narrow, wide) } else { (wide, narrow) };
    narrow.tests.iter().all(|n| wide.tests.iter().any(|w| test_covers(w, n)))
}

fn test_covers(wide: &Test, narrow: &Test) -> bool {
    use Test as T;
    match (wide, narrow) {
        (T::Principal(w), T::Principal(n))
        | (T::TrustDomain(w), T::TrustDomain(n))
        | (T::Method(w), T::Method(n))
        | (T::Audience(w), T::Audience(n))
        | (T::Presenter(w), T::Presenter(n)) => text_covers(w, n),
        (T::Sni(w), T::Sni(n)) | (T::Host(w), T::Host(n)) => text_covers(&w.pattern, &n.pattern),
        (T::Claim(path, w), T::Claim(other, n)) => path == other && text_covers(w, n),
        (T::Namespace(w), T::Namespace(n)) => w == n || n.exact().is_some_and(|name| w.matches(name)),
        (T::Account { namespace: a, account: b }, T::Account { namespace: c, account: d }) => {
            a == c && b == d
        }
        (T::SourceIp(w), T::SourceIp(n))
        | (T::RemoteIp(w), T::RemoteIp(n))
        | (T::DestinationIp(w), T::DestinationIp(n)) => w.net().contains(&n.net()),
        (T::DestinationPort(w), T::DestinationPort(n)) => w == n,
        (T::Path(w), T::Path(n)) => path_covers(w, n),
        (T::RequestPrincipal(w), T::RequestPrincipal(n)) => principal_covers(w, n),
        (T::Header(name, w), T::Header(other, n)) => {
            let all = n.patterns.iter().all(|n| w.patterns.iter().any(|w| text_covers(w, n)));
            // Every line is more than any line.
            name == other && all && (n.every || !w.every)
        }
        _ => false,
    }
}

fn text_covers(wide: &TextPattern, narrow: &TextPattern) -> bool {
    use TextPattern as P;
    match (wide, narrow) {
        (P::Present, _) => true,
        (wide, P::Exact(text)) => wide.matches(text),
        (P::Prefix(w), P::Prefix(n)) => n.starts_with(w.as_str()),
        (P::Suffix(w), P::Suffix(n)) => n.ends_with(w.as_str()),
        _ => false,
    }
}

fn path_covers(wide: &PathPattern, narrow: &PathPattern) -> bool {
    match (wide, narrow) {
        (PathPattern::Text(w), PathPattern::Text(n)) => text_covers(w, n),
        (PathPattern::Text(TextPattern::Prefix(w)), PathPattern::Template(n)) => {
            n.literal().starts_with(w.as_str())
        }
        (PathPattern::Text(TextPattern::Present), PathPattern::Template(_)) => true,
        (wide, PathPattern::Text(TextPattern::Exact(path))) => wide.matches(path),
        (wide, narrow) => wide == narrow,
    }
}

fn principal_covers(wide: &RequestPrincipal, narrow: &RequestPrincipal) -> bool {
    text_covers(&wide.issuer, &narrow.issuer) && text_covers(&wide.subject, &narrow.subject)
}
