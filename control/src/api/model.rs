//! What the admin API says and hears, shared by its two ends. Times are RFC 3339 in UTC.

use std::collections::BTreeMap;

use postern_config::file::Span;
use postern_config::id::SpiffeId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// For people.
    pub error: String,
    /// A closed word: `bad_request`, `not_found`, `too_large`, `internal`.
    pub kind: String,
}

/// What a document changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Changed {
    /// It is new.
    Created,
    /// It replaces another of its name.
    Changed,
    /// It is in force already.
    Unchanged,
}

/// `POST /v1/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The one identity that it can become.
    pub id: SpiffeId,
    /// How long it waits for its use.
    pub ttl: Span,
    /// Where it may be redeemed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cidr: Option<ipnet::IpNet>,
    /// Labels that policy selectors see.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The environment that it is for; left out, the one that the identity is declared in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Upper bound for certificates of this enrollment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub svid_ttl: Option<Span>,
}

/// A new token, with the only copy of its secret.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreatedToken {
    /// The join string.
    pub join: String,
    /// The token's public name.
    pub token_id: String,
    /// The identity.
    pub id: SpiffeId,
    /// When it ends unused.
    pub expires_at: String,
}

/// One live enrollment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// What its proxy calls itself.
    pub instance: String,
    /// The enrollment.
    pub lineage: String,
    /// Serial of the certificate in use, hex.
    pub serial: String,
    /// End of the newest certificate.
    pub expires_at: String,
    /// When it was last heard of.
    pub last_seen: String,
    /// Whether its stream is open.
    pub connected: bool,
    /// The generation that it acknowledged last; 0 for none.
    pub generation: u64,
    /// Why it refused that generation; empty if it is in force.
    pub error: String,
    /// Whom to ask about it; absent if nobody has declared it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The environment of its credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
}

/// One service with the endpoints that are known now.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// The identity that endpoints prove.
    pub identity: String,
    /// `host:port`.
    pub endpoints: Vec<String>,
}

/// `POST /v1/policies`: each document as JSON text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyPolicies {
    /// The documents.
    pub documents: Vec<String>,
}

/// What a change led to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// What was changed, by name.
    pub applied: Vec<String>,
    /// The generation that carries it.
    pub generation: u64,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The trust domain.
    pub trust_domain: String,
    /// The root's pin.
    pub root: String,
    /// The root's end.
    pub root_expires_at: String,
    /// The CA that signs now.
    pub issuing: IssuingView,
    /// The generation that is pushed.
    pub generation: u64,
    /// Connected proxies.
    pub proxies: ProxiesView,
    /// Live enrollments.
    pub identities: u64,
    /// Rotations of a root or an issuing CA that are under way: what, where it is, and why it was rolled back.
    pub rotations: Vec<String>,
    /// The nearest end of a live certificate.
    pub nearest_expiry: Option<String>,
    /// Where proxies are told to connect.
    pub advertise: String,
    /// Of this program.
    pub version: String,
}

/// The issuing CA.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct IssuingView {
    /// Its common name.
    pub name: String,
    /// Its subject key identifier, hex.
    pub key_id: String,
    /// Its end.
    pub expires_at: String,
}

/// Connected proxies.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ProxiesView {
    /// How many.
    pub connected: u64,
    /// How many of them enforce the newest generation.
    pub current: u64,
    /// The others, at most 100.
    pub behind: Vec<Behind>,
}

/// A connected proxy that does not enforce the newest generation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Behind {
    /// What it calls itself.
    pub instance: String,
    /// Its enrollment.
    pub lineage: String,
    /// The generation that it answered last.
    pub generation: u64,
    /// Why it refused it; empty if it has not answered yet.
    pub error: String,
    /// When it was last heard of.
    pub last_seen: String,
}

/// `POST /v1/revocations`: one of the two.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// An identity, with everything that could lead to another certificate of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<SpiffeId>,
    /// One certificate, by its serial in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: crate::revoke::Reason,
}

/// What a revocation led to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RevokedView {
    /// Whose certificates they were.
    pub id: SpiffeId,
    /// How many valid certificates are refused from now on.
    pub certificates: u64,
    /// The generation that tells the proxies.
    pub generation: u64,
    /// When it was committed, milliseconds since 1970.
    pub at_ms: i64,
}

/// `POST /v1/revocations/lift`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lift {
    /// The identity that may have certificates again.
    pub id: SpiffeId,
}

/// One revocation that still bites.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RevocationView {
    /// Its name.
    pub name: String,
    /// `serial`, `identity` or `key`.
    pub kind: String,
    /// What it bites on: issuer key id and serial, an identity, a key's hash.
    pub subject: String,
    /// In the words of RFC 5280 §5.3.1.
    pub reason: String,
    /// When it was made.
    pub created_at: String,
    /// By whom.
    pub created_by: String,
    /// When it bites on nothing any more.
    pub ends_at: String,
}

/// `GET /v1/revocations`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RevocationsView {
    /// What proxies are told.
    pub entries: Vec<RevocationView>,
    /// Identities that nothing is issued to.
    pub banned: Vec<SpiffeId>,
}

/// How far one live enrollment has come with a generation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// What its proxy calls itself.
    pub instance: String,
    /// The enrollment.
    pub lineage: String,
    /// Whether its stream is open on some replica.
    pub connected: bool,
    /// When it said that the generation, or a later one, is in force; milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_at_ms: Option<i64>,
    /// When it was last heard of.
    pub last_seen: String,
    /// Why it refused the generation; empty if it did not.
    pub error: String,
}

/// `POST /v1/ca/approve`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// SHA-256 of the key, hex, as the waiting replica shows it.
    pub key: String,
}

/// A replica whose key was approved.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Approved {
    /// Its name.
    pub replica: String,
}

/// A foreign trust domain.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct FederationView {
    /// Its name.
    pub trust_domain: String,
    /// Its bundle endpoint.
    pub url: String,
    /// `https_web` or `https_spiffe`.
    pub profile: String,
    /// The endpoint's identity, in the second profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_id: Option<String>,
    /// Who gets the bundle.
    #[serde(rename = "for")]
    pub members: Vec<String>,
    /// Of the bundle that is held; absent before there is one.
    pub sequence: Option<u64>,
    /// How many X.509 authorities it holds.
    pub authorities: u64,
    /// How many keys for JWT-SVIDs.
    pub jwt_keys: u64,
    /// When it was fetched.
    pub fetched_at: Option<String>,
    /// When it is fetched next.
    pub next_at: String,
    /// Why the last attempt failed; empty if it did not.
    pub error: String,
}

/// What fetching a bundle came to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Refreshed {
    /// The trust domain as it stands now.
    pub federation: FederationView,
    /// Why nothing was fetched; empty if it was.
    pub error: String,
    /// The generation that carries it.
    pub generation: u64,
}

/// `POST /v1/ca/rotation`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginRotation {
    /// Wait for nobody who cannot be reached.
    #[serde(default)]
    pub force: bool,
    /// The old root's key is known to others: cut it off as soon as the new root signs.
    #[serde(default)]
    pub taint: bool,
    /// Which share of the proxies goes first, per cent; 0: all at once. Default: `ca.rotation.canary.share`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u8>,
    /// The issuing CA of this replica instead of the root; needs a share above 0.
    #[serde(default)]
    pub issuing: bool,
}

/// A rotation of a root or of an issuing CA.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RotationView {
    /// Its name.
    pub id: String,
    /// `root` or `issuing`.
    pub kind: String,
    /// The replica whose issuing CA it is; empty for a root.
    pub replica: String,
    /// 2: published, waiting for proxies; 3: confirmed, or tried with a share; 4: the new one signs; 5: the old one is gone.
    pub stage: u8,
    /// `prepared`, `canary`, `active`, `pruned`, `rolling_back` or `rolled_back`.
    pub state: String,
    /// Which share of the proxies goes first, per cent.
    pub share: u8,
    /// Why it was rolled back; empty if it was not.
    pub reason: String,
    /// Key id of the authority that goes.
    pub old_root: String,
    /// Key id of the authority that comes.
    pub new_root: String,
    /// Live proxies.
    pub proxies: u64,
    /// How many of them have the new root.
    pub confirmed: u64,
    /// `proxies`, `tokens`, `canary`, `replicas` or `leaves`.
    pub waiting_for: String,
    /// Which ones.
    pub waiting_names: Vec<String>,
    /// Until when at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_until: Option<String>,
    /// When it began.
    pub began_at: String,
}

/// `POST /v1/ca/taint`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaintIssuing {
    /// The issuing CA's subject key identifier, hex.
    pub key_id: String,
}

/// A tainted issuing CA.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TaintedView {
    /// Its subject key identifier, hex.
    pub key_id: String,
    /// The generation that tells the proxies.
    pub generation: u64,
    /// When it was asked for, milliseconds since 1970.
    pub at_ms: i64,
}

/// A published key for JWT-SVIDs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JwtKeyView {
    /// Its name: the thumbprint of its JWK.
    pub kid: String,
    /// `published`, `signs` or `retired` (its last token may still be good).
    pub state: String,
    /// The replica that holds its private half.
    pub replica: String,
    /// Since when it is in the bundle.
    pub published_at: String,
    /// When it begins to sign.
    pub signs_from: String,
    /// When its successor takes over at the latest.
    pub signs_until: String,
    /// When it leaves the bundle.
    pub ends_at: String,
}

/// One of the trust domain's own certificates.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuthorityView {
    /// Subject key identifier, hex.
    pub key_id: String,
    /// `root` or `issuing`.
    pub kind: String,
    /// `prepared`, `active`, `retired` or `tainted`.
    pub state: String,
    /// Its common name.
    pub name: String,
    /// The replica whose issuing CA it is; empty for a root.
    pub replica: String,
    /// Key id of the root that signed it.
    pub issuer: String,
    /// Its begin.
    pub not_before: String,
    /// Its end.
    pub not_after: String,
}

/// `GET /v1/audit/chains`: one chain of the audit record.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChainView {
    /// Its name; empty for records from before there were chains.
    pub chain: String,
    /// Its first record at or behind the time that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// Its last record, as noted when that was appended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<crate::store::Head>,
}

/// `GET /v1/audit/checkpoints`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoints {
    /// Each as JSON text, as it was signed.
    pub checkpoints: Vec<String>,
}

/// `POST /v1/snapshots`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    /// Whether the caller will pack private keys with it; for the record.
    pub with_keys: bool,
}

/// A snapshot of the store, which the caller removes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotMade {
    /// Its name below the data directory.
    pub file: String,
    /// The trust domain.
    pub trust_domain: String,
}

/// `POST /v1/identities/remove`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveIdentity {
    /// The identity to take out of service.
    pub id: SpiffeId,
}
