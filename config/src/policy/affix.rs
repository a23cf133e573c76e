//! All beginnings of a text that are among a set, found without trying each.

use std::cmp::Ordering;

/// Values by text. Filled by [`Self::push`], made ready by [`Self::close`]; texts are given as bytes, backwards for endings.
#[derive(Debug)]
pub(super) struct Affixes<T>(Vec<Entry<T>>);

#[derive(Debug)]
struct Entry<T> {
    text: Box<[u8]>,
    /// The longest other entry that this one begins with.
    parent: Option<usize>,
    value: T,
}

impl<T> Default for Affixes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Affixes<T> {
    /// Adds a text that is not in it yet.
    pub(super) fn push(&mut self, text: impl Iterator<Item = u8>, value: T) {
        self.0.push(Entry { text: text.collect(), parent: None, value });
    }

    /// Sorts what was added. Sorted, the texts that begin with another one follow it directly.
    pub(super) fn close(&mut self) {
        self.0.sort_by(|a, b| a.text.cmp(&b.text));
        for at in 1..self.0.len() {
            let mut parent = Some(at - 1);
            while let Some(p) = parent.filter(|p| !self.0[at].text.starts_with(&self.0[*p].text)) {
                parent = self.0[p].parent;
            }
            self.0[at].parent = parent;
        }
    }

    /// The values of every entry that `text` begins with, the longest first.
    pub(super) fn starts(&self, text: impl Iterator<Item = u8> + Clone) -> impl Iterator<Item = &T> {
        let order = |entry: &Entry<T>| entry.text.iter().copied().cmp(text.clone());
        // Whatever `text` begins with stands before it in the order, and everything between the two begins with it as well:
        // so the nearest entry before `text` leads to all of them over its parents.
        let after = self.0.partition_point(|entry| order(entry) != Ordering::Greater);
        let mut at = after.checked_sub(1);
        while let Some(here) = at.filter(|at| !begins(text.clone(), &self.0[*at].text)) {
            at = self.0[here].parent;
        }
        std::iter::successors(at, |at| self.0[*at].parent).map(|at| &self.0[at].value)
    }
}

fn begins(mut text: impl Iterator<Item = u8>, with: &[u8]) -> bool {
    with.iter().all(|byte| text.next() == Some(*byte))
}
