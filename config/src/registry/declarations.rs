//! All declarations together: which document binds an identity, and whom each of them admits.

use std::collections::HashMap;

use super::Identity;
use crate::attest::{self, NotAdmitted, Rule, Selectors, Template};
use crate::file::control::OperatorRole;
use crate::id::SpiffeId;

/// Declarations, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Declarations {
    all: Vec<Identity>,
    whole: HashMap<SpiffeId, usize>,
    templates: Vec<(Template, usize)>,
    rules: Vec<Rule>,
}

impl Declarations {
    /// These, in any order.
    pub fn new(all: Vec<Identity>) -> Self {
        let mut own = Self { rules: all.iter().filter_map(Identity::rule).collect(), ..Self::default() };
        for (at, one) in all.iter().enumerate() {
            let pattern = one.pattern();
            match pattern.whole() {
                Some(id) => drop(own.whole.insert(id, at)),
                None => own.templates.push((pattern, at)),
            }
        }
        Self { all, ..own }
    }

    /// Every document.
    pub fn all(&self) -> &[Identity] {
        &self.all
    }

    /// The document that binds this identity: its own, or the template that fits it most closely.
    pub fn of(&self, id: &SpiffeId) -> Option<&Identity> {
        if let Some(at) = self.whole.get(id) {
            return self.all.get(*at);
        }
        let fitting = self.templates.iter().filter(|(pattern, _)| pattern.covers(id));
        fitting.filter_map(|(_, at)| self.all.get(*at)).max_by(closer)
    }

    /// What the identity may do as an operator by its own document, at `now` (milliseconds since 1970).
    pub fn role(&self, id: &SpiffeId, now: i64) -> Option<OperatorRole> {
        let own = self.all.get(*self.whole.get(id)?)?;
        own.spec.role.filter(|_| !own.has_ended(now))
    }
}

/// Which of these documents binds the identity.
pub fn closest(candidates: Vec<Identity>, id: &SpiffeId) -> Option<Identity> {
    let all = Declarations::new(candidates);
    all.of(id).cloned()
}

/// A template with more selectors fits more closely; among equals the name decides, so that every replica says the same.
fn closer(one: &&Identity, other: &&Identity) -> std::cmp::Ordering {
    let rank = |document: &Identity| {
        let weight = document.rule().map(|rule| rule.weight());
        (weight, std::cmp::Reverse(document.metadata.name.clone()))
    };
    rank(one).cmp(&rank(other))
}

/// Whom the rules of an attestor and all declarations of its environment make of what was attested there. The closest wins, wherever
/// it stands; those that fit equally well must agree.
pub fn admit<'a>(
    rules: &'a [Rule],
    declared: &'a Declarations,
    environment: Option<&str>,
    attested: &Selectors,
) -> Result<(&'a Rule, SpiffeId), NotAdmitted> {
    let here = declared.rules.iter().filter(|rule| rule.environment.as_deref() == environment);
    let (rule, id) = attest::admit(rules.iter().chain(here), attested)?;
    let is_operator = declared.whole.get(&id).is_some_and(|at| declared.all[*at].spec.role.is_some());
    if is_operator && rule.id.whole().is_none() {
        return Err(NotAdmitted::Operator(id));
    }
    Ok((rule, id))
}
