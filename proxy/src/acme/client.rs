//! One order at an ACME server: account, challenges, certificate. The protocol is `instant-acme`'s, its HTTP is ours.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, BodyWrapper, BytesResponse, CertificateIdentifier,
    ChallengeType, Error, HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use postern_config::file::acme::AcmeIssuer;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::storage::{Storage, StorageError};
use super::{Armed, Challenges};
use crate::http::fetch::Fetch;
use crate::tls::acme::Answer;

/// The largest answer of an ACME server; a chain has some kilobytes.
const MAX_BODY: usize = 1024 * 1024;
/// For one request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// For a validation, and for the issuance behind it. Between two looks it waits as long as the server asks, else from a
/// quarter of a second up.
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(180));

/// Why an order failed.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The server said no, or could not be reached.
    #[error("{}", cause(.0))]
    Server(#[from] Error),
    /// What is kept on disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The account's file says nothing that is understood.
    #[error("the account's file cannot be read ({0}); delete it, and a new account is made")]
    Account(serde_json::Error),
    /// The server asks about another name.
    #[error("the server asks for a proof of {0:?}, which was not ordered")]
    OtherName(String),
    /// It offers no challenge of the wanted kind.
    #[error("the server offers no challenge {0} for {1}")]
    NoChallenge(&'static str, String),
    /// It looked, and did not find the answer.
    #[error("{name} was not proven by {kind}: {why}")]
    NotProven {
        /// The name.
        name: String,
        /// The challenge.
        kind: &'static str,
        /// What the server said.
        why: String,
    },
    /// A key, a request or the answer to a challenge cannot be made.
    #[error("cannot make a key, a request or an answer: {0}")]
    Request(String),
    /// The certificate that came is not good.
    #[error("what was issued cannot be used: {0}")]
    Unusable(String),
}

/// Which challenge is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// tls-alpn-01.
    TlsAlpn01,
    /// http-01.
    Http01,
}

impl Kind {
    /// Its name in RFC 8555 and RFC 8737.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
        }
    }

    fn wanted(self) -> ChallengeType {
        match self {
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Self::Http01 => ChallengeType::Http01,
        }
    }
}

/// Takes up the account that is kept, or makes one.
pub async fn account(issuer: &AcmeIssuer, storage: &Storage) -> Result<Account, AcmeError> {
    let fetch = Fetch {
        ca: issuer.ca.clone(),
        allow_loopback: issuer.allow_loopback,
        max_body: MAX_BODY,
        timeout: TIMEOUT,
    };
    let builder = Account::builder_with_http(Box::new(Http(fetch)));
    if let Some(kept) = storage.account()? {
        let credentials = serde_json::from_str(&kept).map_err(AcmeError::Account)?;
        return Ok(builder.from_credentials(credentials).await?);
    }
    let contact: Vec<&str> = issuer.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: issuer.terms_of_service_agreed,
        only_return_existing: false,
    };
    let (account, credentials) = builder.create(&new, issuer.directory.to_string(), None).await?;
    let json = Zeroizing::new(serde_json::to_string(&credentials).map_err(AcmeError::Account)?);
    storage.keep_account(&json)?;
    tracing::info!(issuer = issuer.name, account = account.id(), "an ACME account was made");
    Ok(account)
}

/// Orders a certificate: the new private key and the chain, in PEM.
pub async fn obtain(
    account: &Account,
    names: &[String],
    kind: Kind,
    replaces: Option<&CertificateDer<'_>>,
    challenges: &Arc<Challenges>,
) -> Result<Zeroizing<String>, AcmeError> {
    let identifiers: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = new_order(account, &identifiers, replaces).await?;
    // Held until the order has ended, one way or the other.
    let mut armed = Armed::new(challenges);
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        prove(authorization?, names, kind, &mut armed).await?;
    }
    match order.poll_ready(&POLL).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(refusal(&mut order, kind, "the server does not say").await),
        Err(Error::Api(problem)) => return Err(refusal(&mut order, kind, &problem.to_string()).await),
        Err(error) => return Err(error.into()),
    }
    drop(armed);
    let request = |e: rcgen::Error| AcmeError::Request(e.to_string());
    let key = KeyPair::generate().map_err(request)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(request)?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key).map_err(request)?.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;
    let key = Zeroizing::new(key.serialize_pem());
    Ok(Zeroizing::new(format!("{}\n{chain}", key.trim_end())))
}

async fn new_order(
    account: &Account,
    identifiers: &[Identifier],
    replaces: Option<&CertificateDer<'_>>,
) -> Result<Order, AcmeError> {
    // A server that knows renewal information gives renewals precedence; another one would refuse to hear of it.
    if let Some(Ok(id)) = replaces.map(CertificateIdentifier::try_from) {
        match account.new_order(&NewOrder::new(identifiers).replaces(id)).await {
            // It may have forgotten the certificate, or have it replaced already.
            Err(Error::Unsupported(_) | Error::Api(_)) => {}
            other => return Ok(other?),
        }
    }
    Ok(account.new_order(&NewOrder::new(identifiers)).await?)
}

/// Opens the challenge of one name and tells the server to look.
async fn prove(
    mut authorization: AuthorizationHandle<'_>,
    names: &[String],
    kind: Kind,
    armed: &mut Armed,
) -> Result<(), AcmeError> {
    if authorization.status == AuthorizationStatus::Valid {
        return Ok(());
    }
    let name = authorization.identifier().to_string();
    if !names.contains(&name) {
        return Err(AcmeError::OtherName(name));
    }
    let challenge = authorization.challenge(kind.wanted());
    let mut challenge = challenge.ok_or_else(|| AcmeError::NoChallenge(kind.as_str(), name.clone()))?;
    let authorization = challenge.key_authorization();
    match kind {
        Kind::TlsAlpn01 => {
            let digest = crate::tls::sha256(authorization.as_str().as_bytes());
            armed.tls_alpn(&name, &Answer::new(&name, &digest).map_err(AcmeError::Request)?);
        }
        Kind::Http01 => armed.http(&challenge.token, authorization.as_str()),
    }
    Ok(challenge.set_ready().await?)
}

/// What the server says of the names that it did not find proven.
async fn refusal(order: &mut Order, kind: Kind, otherwise: &str) -> AcmeError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let error = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        let why = error.map(ToString::to_string);
        if let Some(why) = why {
            return AcmeError::NotProven {
                name: authorization.identifier().to_string(),
                kind: kind.as_str(),
                why,
            };
        }
    }
    AcmeError::NotProven { name: "a name".to_owned(), kind: kind.as_str(), why: otherwise.to_owned() }
}

/// The window in which the issuer would like this certificate to be renewed, seconds since 1970, and how soon to ask again.
/// `None` where it does not say.
pub async fn suggestion(account: &Account, leaf: &CertificateDer<'_>) -> Option<((i64, i64), Duration)> {
    let id = CertificateIdentifier::try_from(leaf).ok()?;
    match account.renewal_info(&id).await {
        Ok((info, again)) => {
            let window = info.suggested_window;
            Some(((window.start.unix_timestamp(), window.end.unix_timestamp()), again))
        }
        Err(Error::Unsupported(_)) => None,
        Err(error) => {
            tracing::debug!(error = cause(&error), "the issuer's renewal information cannot be read");
            None
        }
    }
}

/// An error without what the library says of itself.
fn cause(error: &Error) -> String {
    match error {
        Error::Other(inner) => inner.to_string(),
        other => other.to_string(),
    }
}

/// The library's requests over this proxy's own client.
struct Http(Fetch);

impl HttpClient for Http {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let fetch = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let answer = fetch.send(http::Request::from_parts(head, body)).await;
            let answer = answer.map_err(|error| Error::Other(Box::new(error)))?;
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}
