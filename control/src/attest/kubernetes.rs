//! Projected service-account tokens of Kubernetes: judged by the cluster's API server (TokenReview, then the pod itself), or by
//! its issuer's keys alone where the API server cannot be reached.
//!
//! Only tokens that are bound to a pod are taken: what may have one live key is the pod.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use jsonwebtoken::Algorithm;
use postern_config::attest::{Rule, Selectors};
use postern_config::file::control::attest::{Kubernetes, Review};
use postern_config::jwt::Reason;
use postern_config::jwt::verify::{Peeked, peek};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::jwks::Source;
use super::{Attested, Fault, LEEWAY, check_life};
use crate::fetch::{Fetcher, TrustError};

/// Questions to one API server at a time; more wait. Strangers must not make this process a flood.
const QUESTIONS: usize = 16;
/// No token that a pod has for us lives longer than this, seconds: the binding of its pod to a key lasts as long.
const MAX_REVIEWED_LIFE: i64 = 24 * 3600;
/// What an issuer of a cluster signs with.
const ALGORITHMS: [Algorithm; 2] = [Algorithm::RS256, Algorithm::ES256];

/// A cluster whose pods may enroll.
#[derive(Debug)]
pub(super) struct Cluster {
    name: String,
    issuer: Option<String>,
    audience: String,
    by: By,
    rules: Vec<Rule>,
    environment: Option<String>,
}

#[derive(Debug)]
enum By {
    Review(ApiServer),
    Keys { keys: Source, max_life: i64 },
}

/// An API server.
#[derive(Debug)]
struct ApiServer {
    url: String,
    fetcher: Arc<Fetcher>,
    token_file: PathBuf,
    from_pod_address: bool,
    questions: Semaphore,
}

/// Who a token was made for.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
    node: Option<String>,
}

impl Cluster {
    pub(super) fn new(config: &Kubernetes) -> Result<Self, TrustError> {
        let by = match (&config.review, &config.jwks) {
            (Some(review), _) => By::Review(ApiServer::new(review, config.from_pod_address)?),
            (None, keys) => By::Keys {
                keys: Source::new(&keys.clone().unwrap_or_default())?,
                max_life: crate::clock::millis(config.max_life.as_duration()) / 1000,
            },
        };
        Ok(Self {
            name: config.name.clone(),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            by,
            rules: config.rules.clone(),
            environment: config.environment.clone(),
        })
    }
}

/// Judges a token by whichever cluster it names, if that is one of these. What it says of itself chooses the cluster and no
/// more; it saves the API server what is plainly not for us.
pub(super) async fn attest<'a>(
    clusters: &'a [Cluster],
    token: &str,
    remote: IpAddr,
    now: i64,
) -> Result<(Attested, &'a [Rule]), Fault> {
    if clusters.is_empty() {
        return Err(Fault::Off);
    }
    let peeked = peek(token).map_err(Fault::Token)?;
    let found = clusters.iter().find(|c| c.issuer.as_ref().is_none_or(|issuer| *issuer == peeked.issuer));
    let cluster = found.ok_or(Fault::Token(Reason::UnknownIssuer))?;
    if !ALGORITHMS.contains(&peeked.algorithm) {
        return Err(Fault::Token(Reason::Algorithm));
    }
    let (bound, (issued, ends)) = match &cluster.by {
        By::Review(server) => server.review(token, &cluster.audience, remote, now).await?,
        By::Keys { keys, max_life } => by_keys(keys, *max_life, token, &peeked, cluster, now).await?,
    };
    let mut selectors = Selectors::from([
        ("k8s.cluster".to_owned(), cluster.name.clone()),
        ("k8s.namespace".to_owned(), bound.namespace),
        ("k8s.service_account".to_owned(), bound.account),
        ("k8s.pod".to_owned(), bound.pod),
    ]);
    selectors.extend(bound.node.map(|node| ("k8s.node".to_owned(), node)));
    let attested = Attested {
        kind: "kubernetes",
        selectors,
        binding: Some(format!("pod {} {}", cluster.name, bound.uid)),
        issued_at: Some(issued),
        not_after: Some(ends.saturating_add(LEEWAY)),
        environment: cluster.environment.clone(),
    };
    Ok((attested, &cluster.rules))
}

async fn by_keys(
    keys: &Source,
    max_life: i64,
    token: &str,
    peeked: &Peeked,
    cluster: &Cluster,
    now: i64,
) -> Result<(Bound, (i64, i64)), Fault> {
    let issuer = cluster.issuer.as_deref().unwrap_or_default();
    let verified = keys.verify(token, peeked, issuer, &cluster.audience, now).await?;
    let life = check_life(&verified.claims, max_life)?;
    Ok((claimed(&verified.claims)?, life))
}

/// Who the claims of a verified token name. `sub` and `kubernetes.io` are of one mind, or nobody is meant.
fn claimed(claims: &Map<String, Value>) -> Result<Bound, Fault> {
    #[derive(Deserialize)]
    struct Claims {
        namespace: String,
        serviceaccount: Named,
        pod: Option<Named>,
        node: Option<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        uid: String,
    }
    let said = claims.get("kubernetes.io").cloned().ok_or(Fault::Claims("kubernetes.io"))?;
    let said: Claims = serde_json::from_value(said).map_err(|_| Fault::Claims("kubernetes.io"))?;
    let (namespace, account) = account(claims.get("sub").and_then(Value::as_str).unwrap_or_default())?;
    if said.namespace != namespace || said.serviceaccount.name != account {
        return Err(Fault::Claims("sub"));
    }
    let pod = said.pod.ok_or(Fault::Claims("pod"))?;
    if !is_name(&pod.name) || pod.uid.is_empty() {
        return Err(Fault::Claims("pod"));
    }
    Ok(Bound { namespace, account, pod: pod.name, uid: pod.uid, node: said.node.map(|node| node.name) })
}

/// Namespace and name in `system:serviceaccount:NAMESPACE:NAME`.
fn account(username: &str) -> Result<(String, String), Fault> {
    let mut parts = username.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("system"), Some("serviceaccount"), Some(namespace), Some(name), None)
            if is_name(namespace) && is_name(name) =>
        {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(Fault::Claims("service account")),
    }
}

/// A DNS subdomain (RFC 1123), as Kubernetes names things: it can stand in a URL's path as it is.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| plain(b) || b == b'-' || b == b'.')
        && text.split('.').all(|label| {
            label.bytes().next().is_some_and(plain) && label.bytes().next_back().is_some_and(plain)
        })
}

#[derive(Deserialize)]
struct TokenReview {
    status: ReviewStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    audiences: Vec<String>,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct User {
    username: String,
    extra: std::collections::HashMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    service_account_name: String,
    node_name: Option<String>,
    host_network: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<Address>,
    #[serde(rename = "hostIPs")]
    host_ips: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    ip: IpAddr,
}

impl ApiServer {
    fn new(config: &Review, from_pod_address: bool) -> Result<Self, TrustError> {
        Ok(Self {
            url: config.url.to_string().trim_end_matches('/').to_owned(),
            fetcher: super::fetcher(config.ca.as_deref())?,
            token_file: config.token_file.clone(),
            from_pod_address,
            questions: Semaphore::new(QUESTIONS),
        })
    }

    /// Asks about the token, then about the pod that it was made for; says when the token was issued and when it ends, seconds since 1970.
    async fn review(
        &self,
        token: &str,
        audience: &str,
        remote: IpAddr,
        now: i64,
    ) -> Result<(Bound, (i64, i64)), Fault> {
        // Before anybody is asked: what has ended or is for others would be refused anyway.
        let claims = claims_of(token)?;
        let (issued, ends) = check_life(&claims, MAX_REVIEWED_LIFE)?;
        if ends.saturating_add(LEEWAY) < now / 1000 {
            return Err(Fault::Token(Reason::Expired));
        }
        let _turn = self.questions.acquire().await;
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let review: TokenReview = match self.ask(Method::POST, path, asked.to_string().into()).await? {
            (StatusCode::OK | StatusCode::CREATED, body) => self.read(&body)?,
            (status, _) => return Err(self.unavailable(format!("TokenReview was answered with {status}"))),
        };
        let status = review.status;
        // An API server that knows nothing of audiences says nothing of them; then it did not check ours.
        if !status.authenticated || !status.audiences.iter().any(|a| a == audience) {
            return Err(Fault::NotAuthenticated);
        }
        let bound = reviewed(&status.user)?;
        self.check_pod(&bound, remote).await.map(|node| (Bound { node, ..bound }, (issued, ends)))
    }

    /// Whether the pod is still there and the same; its node.
    async fn check_pod(&self, bound: &Bound, remote: IpAddr) -> Result<Option<String>, Fault> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", bound.namespace, bound.pod);
        let pod: Pod = match self.ask(Method::GET, &path, Bytes::new()).await? {
            (StatusCode::OK, body) => self.read(&body)?,
            (StatusCode::NOT_FOUND, _) => return Err(Fault::PodGone),
            (status, _) => return Err(self.unavailable(format!("the pod was answered with {status}"))),
        };
        if pod.metadata.uid != bound.uid {
            return Err(Fault::OtherPod);
        }
        if pod.metadata.deletion_timestamp.is_some()
            || ["Succeeded", "Failed"].contains(&pod.status.phase.as_str())
        {
            return Err(Fault::PodGone);
        }
        if pod.spec.service_account_name != bound.account
            || bound.node.as_ref().is_some_and(|node| pod.spec.node_name.as_ref() != Some(node))
        {
            return Err(Fault::OtherPod);
        }
        let own = if pod.spec.host_network { &pod.status.host_ips } else { &pod.status.pod_ips };
        if self.from_pod_address && !own.iter().any(|a| a.ip.to_canonical() == remote.to_canonical()) {
            return Err(Fault::Address);
        }
        Ok(pod.spec.node_name)
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Fault> {
        let unavailable = |why: String| self.unavailable(why);
        let token = tokio::fs::read_to_string(&self.token_file).await.map(Zeroizing::new);
        let token = token.map_err(|e| unavailable(format!("{}: {e}", self.token_file.display())))?;
        let mut bearer = http::HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| unavailable(format!("{}: no bearer token", self.token_file.display())))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| unavailable(e.to_string()))?;
        let answer = self.fetcher.send(request).await.map_err(|e| unavailable(e.to_string()))?;
        Ok((answer.status(), answer.into_body()))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, body: &[u8]) -> Result<T, Fault> {
        // The answer may repeat the token; the error must not.
        serde_json::from_slice(body).map_err(|e| {
            self.unavailable(format!("an answer cannot be read (line {}, column {})", e.line(), e.column()))
        })
    }

    fn unavailable(&self, why: String) -> Fault {
        Fault::Unavailable { what: self.url.clone(), why }
    }
}

/// Whom an API server has authenticated. The pod stands in `extra`, where only the API server can have put it.
fn reviewed(user: &User) -> Result<Bound, Fault> {
    let (namespace, account) = account(&user.username)?;
    let extra =
        |name: &str| match user.extra.get(&format!("authentication.kubernetes.io/{name}")).map(Vec::as_slice)
        {
            Some([one]) => Ok(Some(one.clone())),
            None => Ok(None),
            Some(_) => Err(Fault::Claims("extra")),
        };
    let pod = extra("pod-name")?.filter(|pod| is_name(pod)).ok_or(Fault::Claims("pod"))?;
    let uid = extra("pod-uid")?.filter(|uid| !uid.is_empty()).ok_or(Fault::Claims("pod"))?;
    Ok(Bound { namespace, account, pod, uid, node: extra("node-name")? })
}

/// The claims of a token that somebody else verifies.
fn claims_of(token: &str) -> Result<Map<String, Value>, Fault> {
    jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| Fault::Token(Reason::Malformed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_lead_elsewhere_is_none() {
        for good in ["shop", "web-7d9f", "a.b-c.d", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "A", "a_b", "-a", "a-", "a..b", "a?b", "a%2f", "é"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_user_that_is_no_service_account_is_nobody() {
        assert_eq!(account("system:serviceaccount:shop:web").unwrap(), ("shop".into(), "web".into()));
        for other in [
            "",
            "admin",
            "system:serviceaccount:shop",
            "system:serviceaccount:shop:web:x",
            "system:node:n1",
            "system:serviceaccount:../x:web",
        ] {
            assert!(account(other).is_err(), "{other}");
        }
    }

    #[test]
    fn claims_that_contradict_each_other_name_nobody() {
        let claims = |sub: &str, pod: Value| {
            let said =
                json!({ "namespace": "shop", "serviceaccount": { "name": "web", "uid": "1" }, "pod": pod });
            json!({ "sub": sub, "kubernetes.io": said }).as_object().cloned().unwrap()
        };
        let pod = json!({ "name": "web-1", "uid": "u" });
        assert_eq!(claimed(&claims("system:serviceaccount:shop:web", pod.clone())).unwrap().uid, "u");
        assert!(claimed(&claims("system:serviceaccount:bank:web", pod.clone())).is_err());
        assert!(claimed(&claims("system:serviceaccount:shop:root", pod)).is_err());
        assert!(
            claimed(&claims("system:serviceaccount:shop:web", Value::Null)).is_err(),
            "not bound to a pod"
        );
    }
}
