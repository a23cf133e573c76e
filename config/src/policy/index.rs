//! Rules found by what they ask for, instead of one after the other: a decision looks at the few rules that name this
//! caller, this path or this host, and at those that name nothing which could be looked up.
//!
//! Every rule is filed under the values of one of its fields, the one that it shares with the fewest other rules; a drawer
//! that is still full is divided again by another field. Whatever is not filed is scanned. The answer is always that of
//! a scan in the order of the documents: the tests hold the two against each other.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::affix::Affixes;
use super::http::PathPattern;
use super::pattern::{IpBlock, TextPattern};
use super::rule::{Clause, CompiledRule, Group, Question, Test};

/// So many rules are scanned faster than they are looked up.
const FEW: usize = 8;
/// How often a drawer is divided again: caller, path and method, and one more.
const DEPTH: usize = 4;
/// How many places a rule may take on average in divided drawers; a rule of a hundred callers and a hundred paths would
/// take ten thousand.
const PLACES: usize = 32;

/// The rules of one action, in the order of the documents.
#[derive(Debug, Default)]
pub(super) struct Rules {
    rules: Vec<CompiledRule>,
    root: Node,
}

/// Numbers of rules, ascending in each list.
#[derive(Debug)]
enum Node {
    Scan(Vec<u32>),
    Branch(Box<Branch>),
}

/// A set of rules, filed.
#[derive(Debug, Default)]
struct Branch {
    texts: Vec<(Text, Texts)>,
    blocks: Vec<(Address, Blocks)>,
    ports: HashMap<u16, Node>,
    /// What is filed nowhere.
    rest: Vec<u32>,
}

#[derive(Debug, Default)]
struct Texts {
    exact: HashMap<Box<str>, Node>,
    prefixes: Affixes<Node>,
    suffixes: Affixes<Node>,
}

#[derive(Debug, Default)]
struct Blocks {
    lengths: Vec<(bool, u8)>,
    nets: HashMap<IpNet, Node>,
}

/// A text that a question has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Text {
    Principal,
    Account,
    Namespace,
    TrustDomain,
    Sni,
    Host,
    Path,
    Method,
    Subject,
    Issuer,
}

/// An address that a question has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Address {
    Source,
    Remote,
    Destination,
}

/// Where a rule can be filed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Exact(Text, Box<str>),
    Prefix(Text, Box<str>),
    Suffix(Text, Box<str>),
    Block(Address, IpNet),
    Port(u16),
}

impl Default for Node {
    fn default() -> Self {
        Self::Scan(Vec::new())
    }
}

impl Rules {
    pub(super) fn new(rules: Vec<CompiledRule>) -> Self {
        let all: Vec<u32> = (0..).take(rules.len()).collect();
        let mut places = PLACES * rules.len();
        let root = build(&rules, all, DEPTH, &mut places);
        Self { rules, root }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &CompiledRule> {
        self.rules.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// The first rule, in the order of the documents, that matches.
    pub(super) fn first_match(&self, question: &Question<'_>) -> Option<&CompiledRule> {
        let mut best: Option<u32> = None;
        self.root.lists(question, &mut |list| {
            let earlier = list.iter().take_while(|number| best.is_none_or(|best| **number < best));
            let found = earlier.copied().find(|n| self.rules[*n as usize].matches(question));
            best = found.or(best);
        });
        best.map(|number| &self.rules[number as usize])
    }

    /// At most `limit` rules that could match, as far as the index knows.
    pub(super) fn candidates(&self, question: &Question<'_>, limit: usize) -> Vec<&CompiledRule> {
        let mut numbers: Vec<u32> = Vec::new();
        self.root.lists(question, &mut |list| {
            let room = limit.saturating_sub(numbers.len());
            numbers.extend(list.iter().take(room));
        });
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| &self.rules[number as usize]).collect()
    }
}

impl Node {
    /// Shows every list that may hold a rule which matches; the lists that are scanned in any case come last.
    fn lists<'a>(&'a self, question: &Question<'_>, show: &mut impl FnMut(&'a [u32])) {
        let branch = match self {
            Self::Scan(list) => return show(list),
            Self::Branch(branch) => branch,
        };
        for (kind, texts) in &branch.texts {
            let Some(value) = kind.of(question) else { continue };
            if let Some(node) = texts.exact.get(value) {
                node.lists(question, show);
            }
            texts.prefixes.starts(value.bytes()).for_each(|node| node.lists(question, show));
            texts.suffixes.starts(value.bytes().rev()).for_each(|node| node.lists(question, show));
        }
        for (kind, blocks) in &branch.blocks {
            let ip = kind.of(question).to_canonical();
            for (_, length) in blocks.lengths.iter().filter(|(v4, _)| *v4 == ip.is_ipv4()) {
                let net = IpNet::new(ip, *length).map(|net| net.trunc());
                if let Some(node) = net.ok().and_then(|net| blocks.nets.get(&net)) {
                    node.lists(question, show);
                }
            }
        }
        if let Some(node) = branch.ports.get(&question.connection.destination_port) {
            node.lists(question, show);
        }
        show(&branch.rest);
    }
}

impl Text {
    fn of<'a>(self, question: &'a Question<'_>) -> Option<&'a str> {
        let peer = question.connection.peer;
        match self {
            Self::Principal => peer.map(|p| p.principal()),
            Self::Account => peer.and_then(account),
            Self::Namespace => peer.and_then(|p| p.namespace()),
            Self::TrustDomain => peer.map(|p| p.trust_domain_str()),
            Self::Sni => question.sni.as_deref(),
            Self::Host => question.request.map(|_| &*question.host),
            Self::Path => question.request.map(|r| r.path),
            Self::Method => question.request.map(|r| r.method),
            Self::Subject => question.token().map(|t| t.subject.as_str()),
            Self::Issuer => question.token().map(|t| t.issuer.as_str()),
        }
    }
}

/// `<namespace>/sa/<account>`, as it stands in the identity.
fn account(peer: &crate::id::SpiffeId) -> Option<&str> {
    peer.service_account()?;
    peer.path().strip_prefix("/ns/")
}

impl Address {
    fn of(self, question: &Question<'_>) -> IpAddr {
        match self {
            Self::Source => question.connection.source_ip,
            Self::Remote => question.connection.remote_ip,
            Self::Destination => question.connection.destination_ip,
        }
    }
}

fn build(rules: &[CompiledRule], numbers: Vec<u32>, depth: usize, places: &mut usize) -> Node {
    if numbers.len() <= FEW || depth == 0 {
        return Node::Scan(numbers);
    }
    let options: Vec<Vec<GroupKeys>> =
        numbers.iter().map(|n| rules[*n as usize].groups.iter().map(keys_of_group).collect()).collect();
    let mut shared: HashMap<&Key, usize> = HashMap::new();
    for key in options.iter().flatten().flatten().flatten().flatten() {
        *shared.entry(key).or_default() += 1;
    }
    // A drawer that would hold half of all is not worth opening.
    let useful = numbers.len() / 2;
    let chosen: Vec<Option<Vec<&Key>>> = options
        .iter()
        .map(|groups| {
            let groups = groups.iter().filter_map(|group| choose(group, &shared));
            let best = groups.min_by_key(|(fullest, keys)| (*fullest, keys.len()));
            best.filter(|(fullest, _)| *fullest <= useful).map(|(_, keys)| keys)
        })
        .collect();
    let taken: usize = chosen.iter().flatten().map(Vec::len).sum();
    if taken == 0 || (depth < DEPTH && taken > *places) {
        return Node::Scan(numbers);
    }
    *places = places.saturating_sub(taken);
    let mut rest = Vec::new();
    let mut drawers: HashMap<&Key, Vec<u32>> = HashMap::new();
    for (number, keys) in numbers.iter().zip(&chosen) {
        match keys {
            Some(keys) => keys.iter().for_each(|key| drawers.entry(*key).or_default().push(*number)),
            None => rest.push(*number),
        }
    }
    let mut branch = Branch { rest, ..Branch::default() };
    for (key, drawer) in drawers {
        branch.file(key, build(rules, drawer, depth - 1, places));
    }
    branch.close();
    Node::Branch(Box::new(branch))
}

impl Branch {
    fn file(&mut self, key: &Key, node: Node) {
        match key {
            Key::Exact(kind, text) => {
                self.texts(*kind).exact.insert(text.clone(), node);
            }
            Key::Prefix(kind, text) => self.texts(*kind).prefixes.push(text.bytes(), node),
            Key::Suffix(kind, text) => self.texts(*kind).suffixes.push(text.bytes().rev(), node),
            Key::Block(kind, net) => {
                let blocks = entry(&mut self.blocks, *kind);
                let length = (net.addr().is_ipv4(), net.prefix_len());
                if !blocks.lengths.contains(&length) {
                    blocks.lengths.push(length);
                }
                blocks.nets.insert(*net, node);
            }
            Key::Port(port) => {
                self.ports.insert(*port, node);
            }
        }
    }

    fn texts(&mut self, kind: Text) -> &mut Texts {
        entry(&mut self.texts, kind)
    }

    fn close(&mut self) {
        for (_, texts) in &mut self.texts {
            texts.prefixes.close();
            texts.suffixes.close();
        }
    }
}

fn entry<K: PartialEq + Copy, V: Default>(list: &mut Vec<(K, V)>, key: K) -> &mut V {
    let at = list.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
        list.push((key, V::default()));
        list.len() - 1
    });
    &mut list[at].1
}

/// For each alternative of a group, for each of its clauses, keys of which every question that meets the clause has one.
type GroupKeys = Vec<Vec<Vec<Key>>>;

fn keys_of_group(group: &Group) -> GroupKeys {
    let of = |clauses: &Vec<Clause>| clauses.iter().filter_map(keys_of_clause).collect();
    group.alternatives.iter().map(of).collect()
}

/// The keys that a rule is filed under if this group is taken, and how many rules share the commonest of them: of each
/// alternative the rarest clause. `None` where an alternative has no key.
fn choose<'k>(group: &'k GroupKeys, shared: &HashMap<&Key, usize>) -> Option<(usize, Vec<&'k Key>)> {
    let fullest = |keys: &[Key]| keys.iter().filter_map(|key| shared.get(key)).max().copied().unwrap_or(0);
    let (mut most, mut keys) = (0, Vec::new());
    for clauses in group {
        let (full, rarest) =
            clauses.iter().map(|c| (fullest(c), c)).min_by_key(|(full, c)| (*full, c.len()))?;
        most = most.max(full);
        keys.extend(rarest);
    }
    keys.sort_unstable();
    keys.dedup();
    Some((most, keys))
}

fn keys_of_clause(clause: &Clause) -> Option<Vec<Key>> {
    if clause.negated {
        return None;
    }
    clause.tests.iter().map(key_of_test).collect()
}

fn key_of_test(test: &Test) -> Option<Key> {
    let block = |kind, block: &IpBlock| Some(Key::Block(kind, block.net()));
    match test {
        Test::Principal(pattern) => key_of_text(Text::Principal, pattern),
        Test::TrustDomain(pattern) => key_of_text(Text::TrustDomain, pattern),
        Test::Method(pattern) => key_of_text(Text::Method, pattern),
        Test::Host(host) => key_of_text(Text::Host, &host.pattern),
        Test::Sni(host) => key_of_text(Text::Sni, &host.pattern),
        Test::Path(PathPattern::Text(pattern)) => key_of_text(Text::Path, pattern),
        Test::Path(PathPattern::Template(template)) => {
            Some(Key::Prefix(Text::Path, template.literal().into()))
        }
        Test::RequestPrincipal(principal) => key_of_text(Text::Subject, &principal.subject)
            .or_else(|| key_of_text(Text::Issuer, &principal.issuer)),
        Test::Namespace(pattern) => pattern.exact().map(|name| Key::Exact(Text::Namespace, name.into())),
        Test::Account { namespace, account } => {
            Some(Key::Exact(Text::Account, format!("{namespace}/sa/{account}").into()))
        }
        Test::SourceIp(b) => block(Address::Source, b),
        Test::RemoteIp(b) => block(Address::Remote, b),
        Test::DestinationIp(b) => block(Address::Destination, b),
        Test::DestinationPort(port) => Some(Key::Port(port.0)),
        Test::Audience(_) | Test::Presenter(_) | Test::Claim(..) | Test::Header(..) => None,
    }
}

fn key_of_text(kind: Text, pattern: &TextPattern) -> Option<Key> {
    match pattern {
        TextPattern::Exact(text) => Some(Key::Exact(kind, text.as_str().into())),
        TextPattern::Prefix(text) => Some(Key::Prefix(kind, text.as_str().into())),
        TextPattern::Suffix(text) => Some(Key::Suffix(kind, text.as_str().into())),
        TextPattern::Present => None,
    }
}
