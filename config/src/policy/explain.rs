//! Why a decision fell as it did, and which rule came closest to allowing it.

use std::fmt;

use super::index::Rules;
use super::pattern::TextPattern;
use super::rule::{Clause, CompiledRule, Question, Test};
use super::{Policy, RuleRef, Verdict};

/// How many of a field's values an explanation names.
const SHOWN: usize = 3;
/// How many rules are looked at for the nearest one, twice at most.
const LOOKED_AT: usize = 64;

/// What a verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// This ALLOW rule matched.
    AllowedBy(RuleRef),
    /// This DENY rule matched.
    DeniedBy(RuleRef),
    /// ALLOW policies apply and none of their rules matched.
    NoRuleAllows {
        /// The rule with the fewest unmet fields, and the first of those.
        nearest: Option<Miss>,
    },
    /// No ALLOW policy applies: identities of the own trust domain are admitted.
    NoPolicy,
    /// No ALLOW policy applies, and the peer is of another trust domain.
    ForeignTrustDomain,
    /// No ALLOW policy applies, and this place takes peers without an identity.
    AnonymousAdmitted,
    /// No ALLOW policy applies, the peer has no identity, and this place wants one.
    Anonymous,
}

/// A rule that did not match, and the first field that kept it from matching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The rule.
    pub rule: RuleRef,
    /// What it wants, such as `principal corp.example/ns/shop/sa/checkout`.
    pub wants: String,
}

impl Because {
    /// The rule that decided, if one did.
    pub fn rule(&self) -> Option<RuleRef> {
        match self {
            Self::AllowedBy(rule) | Self::DeniedBy(rule) => Some(*rule),
            _ => None,
        }
    }
}

/// The ALLOW rule with the fewest unmet clauses; the earlier one of equals. Of many rules only those are looked at that share
/// something with the question, and the first ones: a denial must not cost what a scan costs.
pub(super) fn nearest(rules: &Rules, question: &Question<'_>) -> Option<Miss> {
    let related = if rules.len() > LOOKED_AT { rules.candidates(question, LOOKED_AT) } else { Vec::new() };
    let looked_at = related.into_iter().chain(rules.iter().take(LOOKED_AT));
    let missed = looked_at.filter_map(|rule| {
        let (count, first) = unmet(rule, question)?;
        Some((count, rule.at, first))
    });
    let (_, rule, first) = missed.min_by_key(|(count, at, _)| (*count, at.policy, at.rule))?;
    Some(Miss { rule, wants: first.wants() })
}

/// How many clauses keep a rule from matching, of each group's alternative with the fewest, and the first of them.
fn unmet<'a>(rule: &'a CompiledRule, question: &Question<'_>) -> Option<(usize, &'a Clause)> {
    let (mut total, mut first) = (0, None);
    for group in &rule.groups {
        let counted = group.alternatives.iter().map(|clauses| {
            let mut unmet = clauses.iter().filter(|clause| !clause.matches(question));
            let first = unmet.next();
            (unmet.count() + usize::from(first.is_some()), first)
        });
        let (count, clause) = counted.min_by_key(|(count, _)| *count)?;
        total += count;
        first = first.or(clause);
    }
    first.map(|first| (total, first))
}

impl Clause {
    fn wants(&self) -> String {
        let values: Vec<String> = self.tests.iter().take(SHOWN).map(Test::to_string).collect();
        let more = if self.tests.len() > SHOWN { ", …" } else { "" };
        let not = if self.negated { "not " } else { "" };
        format!("{not}{} {}{more}", self.field, values.join(" or "))
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(p) | Self::TrustDomain(p) | Self::Method(p) => f.write_str(&p.text()),
            Self::Audience(p) | Self::Presenter(p) | Self::Claim(_, p) => f.write_str(&p.text()),
            Self::Namespace(n) => f.write_str(&n.text()),
            Self::Account { namespace, account } => write!(f, "{namespace}/{account}"),
            Self::SourceIp(block) | Self::RemoteIp(block) | Self::DestinationIp(block) => {
                f.write_str(&block.text())
            }
            Self::DestinationPort(port) => f.write_str(&port.text()),
            Self::Sni(host) | Self::Host(host) => f.write_str(&host.text()),
            Self::Path(path) => f.write_str(&path.text()),
            Self::RequestPrincipal(principal) => f.write_str(&principal.text()),
            Self::Header(_, values) => {
                let patterns: Vec<String> =
                    values.patterns.iter().take(SHOWN).map(TextPattern::text).collect();
                let more = if values.patterns.len() > SHOWN { ", …" } else { "" };
                write!(f, "{}{more}", patterns.join(" or "))
            }
        }
    }
}

impl Policy {
    /// A verdict in one sentence, for logs and operators.
    pub fn explain(&self, verdict: &Verdict) -> String {
        self.explain_because(&verdict.because)
    }

    /// The same for a reason alone, such as a [`Trial`](super::Trial)'s.
    pub fn explain_because(&self, because: &Because) -> String {
        let rule = |at: &RuleRef| match self.names.get(at.policy) {
            Some(name) => format!("{name} rule {}", at.rule),
            None => format!("rule {}", at.rule),
        };
        match because {
            Because::AllowedBy(at) => format!("allowed by {}", rule(at)),
            Because::DeniedBy(at) => format!("denied by {}", rule(at)),
            Because::NoRuleAllows { nearest: Some(miss) } => {
                format!("no ALLOW rule matches. Nearest: {} wants {}", rule(&miss.rule), miss.wants)
            }
            Because::NoRuleAllows { nearest: None } => "no ALLOW rule matches".to_owned(),
            Because::NoPolicy => {
                "no policy applies; any identity of the own trust domain may connect".to_owned()
            }
            Because::ForeignTrustDomain => {
                "the peer is of another trust domain and no policy names it".to_owned()
            }
            Because::AnonymousAdmitted => {
                "no policy applies; a peer without an identity is taken here".to_owned()
            }
            Because::Anonymous => "the peer has no identity and no policy admits it".to_owned(),
        }
    }
}
