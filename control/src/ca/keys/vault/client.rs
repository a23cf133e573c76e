//! Three calls of Vault's HTTP API: log in, read, write; with a token that is kept alive.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use postern_config::file::control::keys::{VaultAuth, VaultPlace};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::ca::files::{self, KeyFileError};
use crate::fetch::{FetchError, Fetcher, Trust, TrustError};

/// A call that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why Vault did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// Whom to believe cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A secret cannot be read.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// No answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The machine gives no more.
    #[error("{0}")]
    Local(std::io::Error),
    /// There is no such thing.
    #[error("Vault has no such key or mount")]
    NotFound,
    /// Vault says no.
    #[error("Vault answered {status}: {why}")]
    Refused {
        /// HTTP.
        status: StatusCode,
        /// Its words.
        why: String,
    },
    /// Not the answer of a Vault.
    #[error("the answer is not one of Vault's: {0}")]
    Answer(&'static str),
}

impl VaultError {
    /// Whether somebody has to put something right: a file, a policy, a name.
    pub(crate) fn is_ours(&self) -> bool {
        match self {
            Self::Trust(_) | Self::File(_) | Self::NotFound => true,
            Self::Refused { status, .. } => {
                status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS
            }
            Self::Fetch(FetchError::Url(_)) => true,
            _ => false,
        }
    }
}

/// Speaks to one Vault as one caller.
pub(crate) struct Client {
    place: VaultPlace,
    fetcher: Fetcher,
    runtime: tokio::runtime::Runtime,
    login: Option<Login>,
}

struct Login {
    token: Zeroizing<String>,
    /// When it is renewed; `None` for a token that does not end.
    renew_at: Option<Instant>,
    ends_at: Option<Instant>,
    is_renewable: bool,
}

impl Client {
    /// Nothing is sent yet. Key and mount of `place` do not matter.
    pub(crate) fn new(place: &VaultPlace) -> Result<Self, VaultError> {
        let trust = place.ca_file.as_deref().map_or(Ok(Trust::System), Trust::from_pem_file);
        // Nobody's certificate is looked at on a loopback address without TLS.
        let trust = if place.server.starts_with("http:") { trust.or(nobody()) } else { trust };
        let fetcher = Fetcher::new(trust?)?.deadline(DEADLINE).plain_loopback();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { place: place.clone(), fetcher, runtime: runtime.map_err(VaultError::Local)?, login: None })
    }

    /// Reads below `/v1/`.
    pub(crate) fn get(&mut self, path: &str) -> Result<Value, VaultError> {
        self.call(&Method::GET, path, None)
    }

    /// Writes below `/v1/`.
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Result<Value, VaultError> {
        self.call(&Method::POST, path, Some(body))
    }

    /// With a token; with a new one if Vault does not take the one that was good a moment ago.
    fn call(&mut self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, VaultError> {
        let was_in = self.login.is_some();
        let token = self.token()?;
        match self.send(method, path, body, Some(&token)) {
            Err(VaultError::Refused { status: StatusCode::FORBIDDEN, .. }) if was_in => {
                self.login = None;
                let token = self.token()?;
                self.send(method, path, body, Some(&token))
            }
            answered => answered,
        }
    }

    fn token(&mut self) -> Result<Zeroizing<String>, VaultError> {
        let now = Instant::now();
        if self.login.as_ref().is_some_and(|l| l.ends_at.is_some_and(|end| now >= end)) {
            self.login = None;
        }
        let login = match self.login.take() {
            None => self.log_in()?,
            Some(login) if login.renew_at.is_some_and(|at| now >= at) => self.renewed(login)?,
            Some(login) => login,
        };
        let token = login.token.clone();
        self.login = Some(login);
        Ok(token)
    }

    fn log_in(&self) -> Result<Login, VaultError> {
        let line = |text: Zeroizing<String>| Zeroizing::new(text.trim().to_owned());
        let secret = |path| files::read_secret(path).map(line);
        let (path, body) = match &self.place.auth {
            VaultAuth::Token { file } => {
                let token = secret(file)?;
                let about = self.send(&Method::GET, "auth/token/lookup-self", None, Some(&token))?;
                let about = &about["data"];
                return Ok(Login::new(token, about["ttl"].as_u64(), about["renewable"].as_bool()));
            }
            VaultAuth::AppRole { mount, role_id, secret_id } => {
                let body = json!({ "role_id": *secret(role_id)?, "secret_id": *secret(secret_id)? });
                (format!("auth/{mount}/login"), body)
            }
            VaultAuth::Kubernetes { mount, role, token } => {
                // Kubernetes mounts it readable for all of the pod.
                let read = std::fs::read_to_string(token).map(Zeroizing::new);
                let jwt =
                    read.map_err(|source| KeyFileError::Io { path: token.clone(), source }).map(line)?;
                (format!("auth/{mount}/login"), json!({ "role": role, "jwt": *jwt }))
            }
        };
        let answer = self.send(&Method::POST, &path, Some(&body), None)?;
        Login::of(&answer).ok_or(VaultError::Answer("a login without a token"))
    }

    /// A token that cannot be renewed is got anew while the old one is still good.
    fn renewed(&self, login: Login) -> Result<Login, VaultError> {
        if login.is_renewable {
            let renewed =
                self.send(&Method::POST, "auth/token/renew-self", Some(&json!({})), Some(&login.token));
            if let Some(renewed) = renewed.ok().as_ref().and_then(Login::of) {
                return Ok(renewed);
            }
        }
        match self.log_in() {
            Err(error) => {
                tracing::warn!(%error, "the token for Vault could not be renewed; the old one is used to its end");
                Ok(Login { renew_at: login.ends_at, ..login })
            }
            done => done,
        }
    }

    fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        token: Option<&str>,
    ) -> Result<Value, VaultError> {
        let mut request = Request::builder().method(method).uri(format!("{}/v1/{path}", self.place.server));
        if let Some(token) = token {
            request = request.header("x-vault-token", token);
        }
        if let Some(namespace) = &self.place.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.header("content-type", "application/json").body(body);
        let request = request.map_err(|_| VaultError::Answer("a token that no header can hold"))?;
        let answer = self.runtime.block_on(self.fetcher.send(request))?;
        let value: Value = match answer.body().is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(answer.body()).unwrap_or_default(),
        };
        let errors = value["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let why = errors.collect::<Vec<_>>().join("; ").replace(['\n', '\t'], " ");
        match answer.status() {
            status if status.is_success() => Ok(value),
            StatusCode::NOT_FOUND => Err(VaultError::NotFound),
            status => Err(VaultError::Refused { status, why }),
        }
    }
}

impl Login {
    fn of(answer: &Value) -> Option<Self> {
        let auth = &answer["auth"];
        let token = Zeroizing::new(auth["client_token"].as_str()?.to_owned());
        Some(Self::new(token, auth["lease_duration"].as_u64(), auth["renewable"].as_bool()))
    }

    /// `ttl` in seconds; zero for a token that does not end.
    fn new(token: Zeroizing<String>, ttl: Option<u64>, is_renewable: Option<bool>) -> Self {
        let ttl = ttl.filter(|ttl| *ttl > 0).map(Duration::from_secs);
        let now = Instant::now();
        Self {
            token,
            renew_at: ttl.map(|ttl| now + ttl * 2 / 3),
            ends_at: ttl.map(|ttl| now + ttl),
            is_renewable: is_renewable.unwrap_or_default(),
        }
    }
}

/// A trust that nobody satisfies: for connections that are not TLS.
fn nobody() -> Result<Trust, TrustError> {
    let key = rcgen::KeyPair::generate().map_err(|_| TrustError::Empty)?;
    let certificate = rcgen::CertificateParams::default().self_signed(&key).map_err(|_| TrustError::Empty)?;
    Ok(Trust::Pem(vec![certificate.der().clone()]))
}
