//! By what else than a join token a workload may enroll: Kubernetes, the OIDC tokens of CI systems, an existing PKI; and the
//! explicit rules that say which identity each of them gives.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::attest::{Rule, Wanted};
use crate::enroll::Pin;
use crate::file::url::WebUrl;
use crate::file::{Span, YamlError};
use crate::id::TrustDomain;

/// What a certificate of an existing PKI is recognised by; a rule uses exactly one of them.
const X509_FIELDS: [&str; 4] = ["x509.serial", "x509.san", "x509.dns", "x509.uri"];
const TPM: [&str; 3] = ["tpm.ek", "tpm.manufacturer", "tpm.model"];
const KUBERNETES: [&str; 5] = ["k8s.cluster", "k8s.namespace", "k8s.service_account", "k8s.pod", "k8s.node"];

/// What callers may enroll by beside join tokens. Nothing of it is on by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttestConfig {
    /// Clusters whose pods may enroll by a projected service-account token.
    pub kubernetes: Vec<Kubernetes>,
    /// Issuers whose OIDC tokens are taken once each, such as those of a CI system.
    pub oidc: Vec<Oidc>,
    /// An existing PKI whose client certificates are taken.
    pub x509: Option<X509>,
    /// Machines whose TPM 2.0 is known.
    pub tpm: Option<Tpm>,
}

/// TPMs by their endorsement keys (EK): those that a maker's CA certified, those that are listed, or both.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tpm {
    /// A PEM file with the CAs that may have issued an EK's certificate, makers' intermediate CAs included: no TPM sends them.
    pub ek_roots: Option<PathBuf>,
    /// EKs that are known without a certificate: the SHA-256 over the public key's SubjectPublicKeyInfo.
    pub ek_hashes: Vec<Pin>,
    /// The environment of whoever enrolls here: a declared identity of another one is never given, by no rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Which machines get which identity. Each rule says `tpm.ek` (64 hex digits; `"*"` takes every EK that is known);
    /// `tpm.manufacturer` and `tpm.model` stand in certificates alone.
    pub rules: Vec<Rule>,
}

/// A cluster. Its tokens are judged by its own API server (`review`), or by its issuer's keys alone (`jwks`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// Its name: the selector `k8s.cluster`.
    pub name: String,
    /// The `iss` of its tokens, exactly. Needed with `jwks`, and with more than one cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Whom its tokens must be for. Never the API server's own audience, which every pod's default token has.
    pub audience: String,
    /// The API server is asked about each token: it knows which pods and accounts are still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review: Option<Review>,
    /// The tokens are verified here: for clusters whose API server cannot be reached. Nobody tells that a pod was deleted, so
    /// its tokens must be short-lived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<KeySet>,
    /// With `jwks`: the longest that a token may live from `iat` to `exp`.
    #[serde(default = "ten_minutes")]
    pub max_life: Span,
    /// With `review`: whether the caller must come from its pod's own address, so that a node cannot use tokens of pods on
    /// other nodes. Not behind anything that translates addresses.
    #[serde(default)]
    pub from_pod_address: bool,
    /// The environment of whoever enrolls here: a declared identity of another one is never given, by no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Which accounts get which identity. Each rule says `k8s.namespace` and `k8s.service_account`; `k8s.pod`, `k8s.node` and
    /// `k8s.cluster` may be asked as well.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// An API server and how to ask it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// Its address, such as `https://kubernetes.default.svc`.
    pub url: WebUrl,
    /// A PEM file with the CAs that its certificate may lead to; left out, the host's own store of CAs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// A file with the bearer token that may create `tokenreviews` and get `pods`; read again for each question.
    pub token_file: PathBuf,
}

/// A set of public keys (RFC 7517): a `url` or a `file`. Never a place that a token names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeySet {
    /// Where it is fetched from. Redirects are not followed.
    pub url: Option<WebUrl>,
    /// A PEM file with the CAs that the server's certificate may lead to; left out, the host's own store of CAs.
    pub ca: Option<PathBuf>,
    /// A file that holds it.
    pub file: Option<PathBuf>,
    /// How often it is read again. A token with an unknown key makes it be read at once, every 10 s at most.
    pub refresh: Span,
}

impl Default for KeySet {
    fn default() -> Self {
        Self { url: None, ca: None, file: None, refresh: Span::from_secs(300) }
    }
}

/// An issuer of OIDC tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The token's `iss`, exactly.
    pub issuer: String,
    /// Whom its tokens must be for.
    pub audience: String,
    /// Its public keys.
    pub jwks: KeySet,
    /// The algorithms that it signs with.
    #[serde(default = "usual_algorithms")]
    pub algorithms: Vec<SignedBy>,
    /// The longest that a token may live from `iat` to `exp`.
    #[serde(default = "an_hour")]
    pub max_life: Span,
    /// The environment of whoever enrolls here: a declared identity of another one is never given, by no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Which tokens give which identity, by their claims: `oidc.sub`, `oidc.repository`, …. Each rule asks for at least one
    /// exact value, since an issuer may serve the whole world.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// A signature algorithm of JWTs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SignedBy {
    /// RSA, PKCS#1 v1.5, SHA-256.
    RS256,
    /// RSA, PKCS#1 v1.5, SHA-384.
    RS384,
    /// RSA, PKCS#1 v1.5, SHA-512.
    RS512,
    /// RSA, PSS, SHA-256.
    PS256,
    /// RSA, PSS, SHA-384.
    PS384,
    /// RSA, PSS, SHA-512.
    PS512,
    /// ECDSA over P-256.
    ES256,
    /// ECDSA over P-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

/// An existing PKI: a client certificate of it, used for the connection itself, is the proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct X509 {
    /// A PEM file with its roots.
    pub roots: PathBuf,
    /// The environment of whoever enrolls here: a declared identity of another one is never given, by no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Which certificates give which identity. Each rule pins the CA that issued them, `x509.issuer: sha256:…` (of its
    /// SubjectPublicKeyInfo), and one field: `x509.serial`, `x509.dns`, `x509.uri` or `x509.san`.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

fn ten_minutes() -> Span {
    Span::from_secs(600)
}

fn an_hour() -> Span {
    Span::from_secs(3600)
}

fn usual_algorithms() -> Vec<SignedBy> {
    vec![SignedBy::RS256, SignedBy::ES256]
}

impl AttestConfig {
    /// Whether a join token is the only way in.
    pub fn is_off(&self) -> bool {
        self.kubernetes.is_empty() && self.oidc.is_empty() && self.x509.is_none() && self.tpm.is_none()
    }

    /// Every rule, with where it stands.
    pub fn rules(&self) -> impl Iterator<Item = (String, &Rule)> {
        let kubernetes =
            self.kubernetes.iter().enumerate().map(|(n, k)| (format!("kubernetes[{n}]"), &k.rules));
        let oidc = self.oidc.iter().enumerate().map(|(n, o)| (format!("oidc[{n}]"), &o.rules));
        let x509 = self.x509.iter().map(|x| ("x509".to_owned(), &x.rules));
        let tpm = self.tpm.iter().map(|t| ("tpm".to_owned(), &t.rules));
        kubernetes.chain(oidc).chain(x509).chain(tpm).flat_map(|(place, rules)| {
            rules.iter().enumerate().map(move |(n, rule)| (format!("attest.{place}.rules[{n}]"), rule))
        })
    }

    /// The same, each rule with its section's environment written out.
    pub fn with_environments(mut self) -> Self {
        self.kubernetes.iter_mut().for_each(|k| scoped(&mut k.rules, k.environment.as_ref()));
        self.oidc.iter_mut().for_each(|o| scoped(&mut o.rules, o.environment.as_ref()));
        self.x509.iter_mut().for_each(|x| scoped(&mut x.rules, x.environment.as_ref()));
        self.tpm.iter_mut().for_each(|t| scoped(&mut t.rules, t.environment.as_ref()));
        self
    }

    /// Checks what the types alone do not say.
    pub fn check(&self) -> Result<(), YamlError> {
        self.mistake().map_or(Ok(()), |why| Err(YamlError::without_place(why)))
    }

    /// Checks that no rule gives an identity of another trust domain.
    pub fn check_trust_domain(&self, own: &TrustDomain) -> Result<(), YamlError> {
        let foreign = self.rules().find(|(_, rule)| rule.id.trust_domain() != own);
        foreign.map_or(Ok(()), |(at, rule)| {
            Err(YamlError::without_place(format!("{at}: {} is outside of {own}", rule.id)))
        })
    }

    fn mistake(&self) -> Option<String> {
        for (n, cluster) in self.kubernetes.iter().enumerate() {
            let at = format!("attest.kubernetes[{n}]");
            let taken = |other: &Kubernetes| {
                other.name == cluster.name || other.issuer.is_none() || other.issuer == cluster.issuer
            };
            if let Some(why) = cluster.mistake() {
                return Some(format!("{at}: {why}"));
            }
            if self.kubernetes[..n].iter().any(taken) || (n > 0 && cluster.issuer.is_none()) {
                return Some(format!(
                    "{at}: with several clusters, each needs a `name` and an `issuer` of its own"
                ));
            }
        }
        for (n, issuer) in self.oidc.iter().enumerate() {
            let at = format!("attest.oidc[{n}]");
            if let Some(why) = issuer.mistake() {
                return Some(format!("{at}: {why}"));
            }
            if self.oidc[..n].iter().any(|earlier| earlier.issuer == issuer.issuer) {
                return Some(format!("{at}: an earlier entry has the issuer {:?} already", issuer.issuer));
            }
        }
        let x509 = self.x509.as_ref().and_then(X509::mistake).map(|why| format!("attest.x509: {why}"));
        x509.or_else(|| self.tpm.as_ref()?.mistake().map(|why| format!("attest.tpm: {why}")))
    }
}

impl Kubernetes {
    fn mistake(&self) -> Option<String> {
        if self.name.is_empty() || self.audience.is_empty() {
            return Some("`name` and `audience` must not be empty".to_owned());
        }
        match (&self.review, &self.jwks) {
            (Some(_), None) => {}
            (None, Some(_)) if self.issuer.is_none() => {
                return Some("with `jwks`, say which `issuer` its keys speak for".to_owned());
            }
            (None, Some(_)) if self.from_pod_address => {
                return Some(
                    "`from_pod_address` needs `review`: the token alone holds no address".to_owned(),
                );
            }
            (None, Some(keys)) => {
                if let Some(why) = keys.mistake() {
                    return Some(why.to_owned());
                }
            }
            _ => return Some("give either `review` or `jwks`".to_owned()),
        }
        each(&self.rules, self.environment.as_ref(), kubernetes_rule)
    }
}

fn kubernetes_rule(rule: &Rule) -> Option<String> {
    let unknown = rule.selectors.keys().map(String::as_str).chain(rule.id.keys());
    let unknown = unknown.into_iter().find(|key| !KUBERNETES.contains(key));
    if let Some(unknown) = unknown {
        return Some(format!("no pod attests {unknown:?}; there are {}", KUBERNETES.join(", ")));
    }
    let says = |key: &str| rule.selectors.contains_key(key);
    match says("k8s.namespace") && says("k8s.service_account") {
        true => None,
        false => {
            Some("`match` must say `k8s.namespace` and `k8s.service_account` (\"*\" takes any)".to_owned())
        }
    }
}

impl Oidc {
    fn mistake(&self) -> Option<String> {
        if self.issuer.is_empty() || self.audience.is_empty() {
            return Some("`issuer` and `audience` must not be empty".to_owned());
        }
        if self.algorithms.is_empty() {
            return Some("`algorithms` is empty; leave it out for RS256 and ES256".to_owned());
        }
        if let Some(why) = self.jwks.mistake() {
            return Some(why.to_owned());
        }
        each(&self.rules, self.environment.as_ref(), oidc_rule)
    }
}

fn oidc_rule(rule: &Rule) -> Option<String> {
    let foreign = rule.selectors.keys().map(String::as_str).chain(rule.id.keys());
    if let Some(key) = foreign.into_iter().find(|key| !key.starts_with("oidc.")) {
        return Some(format!("{key:?} is no claim; write `oidc.` and the claim's name"));
    }
    // What every token of the issuer says chooses nobody.
    let chooses = |(key, wanted): (&String, &Wanted)| {
        !wanted.is_any() && !["oidc.iss", "oidc.aud"].contains(&key.as_str())
    };
    match rule.selectors.iter().any(chooses) {
                true => None,
                false => Some(
                    "`match` must ask for the exact value of a claim such as `oidc.repository`: whoever can get a token of \
                     this issuer would be admitted"
                        .to_owned(),
                ),
            }
}

impl X509 {
    fn mistake(&self) -> Option<String> {
        each(&self.rules, self.environment.as_ref(), x509_rule)
    }
}

fn x509_rule(rule: &Rule) -> Option<String> {
    let fields = rule.selectors.keys().filter(|key| X509_FIELDS.contains(&key.as_str())).count();
    let pinned = rule.selectors.get("x509.issuer").is_some_and(is_pins);
    if rule.selectors.len() != 2 || fields != 1 || !pinned {
        return Some(format!(
            "`match` must pin the issuing CA (`x509.issuer: sha256:…`) and say exactly one of {}",
            X509_FIELDS.join(", ")
        ));
    }
    let stray = rule.id.keys().find(|key| !rule.selectors.contains_key(*key));
    stray.map(|key| format!("`id` may hold only the field that `match` says, not {key:?}"))
}

/// What is wrong with a rule that stands beside no attestor: its selectors say who attests them, and what is asked of a rule in that
/// attestor's section is asked of this one. A claim means nothing without the issuer who makes it.
pub(crate) fn mistake_in(rule: &Rule) -> Option<String> {
    let of = |prefix: &str| rule.selectors.keys().all(|key| key.starts_with(prefix));
    match rule.selectors.keys().next() {
        None => Some("`selectors` is empty".to_owned()),
        Some(_) if of("k8s.") => kubernetes_rule(rule),
        Some(_) if of("oidc.") => match rule.selectors.get("oidc.iss") {
            Some(Wanted::One(issuer)) if issuer != "*" => oidc_rule(rule),
            _ => Some("`selectors` must say whose claims these are: `oidc.iss`, exactly".to_owned()),
        },
        Some(_) if of("x509.") => x509_rule(rule),
        Some(_) if of("tpm.") => match rule.selectors.values().any(|wanted| !wanted.is_any()) {
            true => tpm_rule(rule),
            false => Some("`selectors` must name a TPM exactly".to_owned()),
        },
        Some(key) => Some(format!(
            "nobody attests {key:?}, or not together with the others; selectors begin with `k8s.`, `oidc.`, `x509.` or `tpm.`, all \
             with the same"
        )),
    }
}

impl Tpm {
    fn mistake(&self) -> Option<String> {
        if self.ek_roots.is_none() && self.ek_hashes.is_empty() {
            return Some("give `ek_roots`, `ek_hashes` or both: no TPM is known otherwise".to_owned());
        }
        each(&self.rules, self.environment.as_ref(), |rule| {
            let mut keys = rule.selectors.keys().map(String::as_str).chain(rule.id.keys());
            if self.ek_roots.is_none() && keys.any(|key| key != "tpm.ek") {
                return Some(
                    "`tpm.manufacturer` and `tpm.model` stand in certificates: they need `ek_roots`"
                        .to_owned(),
                );
            }
            tpm_rule(rule)
        })
    }
}

fn tpm_rule(rule: &Rule) -> Option<String> {
    let mut keys = rule.selectors.keys().map(String::as_str).chain(rule.id.keys());
    if let Some(unknown) = keys.find(|key| !TPM.contains(key)) {
        return Some(format!("no TPM attests {unknown:?}; there are {}", TPM.join(", ")));
    }
    match rule.selectors.get("tpm.ek") {
        None => Some("`match` must say `tpm.ek` (\"*\" takes every EK that is known)".to_owned()),
        Some(wanted) if wanted.is_any() || are_hashes(wanted) => None,
        Some(_) => Some("`tpm.ek` is 64 hex digits in lower case, without `sha256:`".to_owned()),
    }
}

/// What is a pin but for the word in front.
fn are_hashes(wanted: &Wanted) -> bool {
    let pin = |text: &String| format!("sha256:{text}");
    is_pins(&match wanted {
        Wanted::One(one) => Wanted::One(pin(one)),
        Wanted::AnyOf(several) => Wanted::AnyOf(several.iter().map(pin).collect()),
    })
}

fn is_pins(wanted: &Wanted) -> bool {
    let pin = |text: &String| {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match wanted {
        Wanted::One(one) => pin(one),
        Wanted::AnyOf(several) => !several.is_empty() && several.iter().all(pin),
    }
}

/// A section without rules admits by what is declared.
fn each(
    rules: &[Rule],
    environment: Option<&String>,
    check: impl Fn(&Rule) -> Option<String>,
) -> Option<String> {
    rules.iter().enumerate().find_map(|(n, rule)| {
        let other = rule.environment.as_ref().filter(|own| environment.is_some_and(|e| e != *own));
        let other = other.map(|own| format!("`environment` is {own:?}, another one than this section's"));
        other.or_else(|| check(rule)).map(|why| format!("rules[{n}]: {why}"))
    })
}

/// The rules with the environment of their section, where they name none.
fn scoped(rules: &mut [Rule], environment: Option<&String>) {
    for rule in rules.iter_mut().filter(|rule| rule.environment.is_none()) {
        rule.environment = environment.cloned();
    }
}

impl KeySet {
    fn mistake(&self) -> Option<&'static str> {
        match (&self.url, &self.file) {
            (Some(_), None) => {}
            (None, Some(_)) if self.ca.is_none() => {}
            (None, Some(_)) => return Some("`jwks.ca` goes with `jwks.url`"),
            _ => return Some("give either `jwks.url` or `jwks.file`"),
        }
        (self.refresh < Span::from_secs(1)).then_some("`jwks.refresh` must be at least 1s")
    }
}
