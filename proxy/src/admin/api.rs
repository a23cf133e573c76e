//! The operators' endpoints: one table says what there is and who may ask, JSON is the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Bytes};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::serve::{text, typed};
use super::{State, explain, host, views};

/// The largest body that is read, in bytes: a question is a few lines.
const MAX_BODY: usize = 64 * 1024;
/// For a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// This process's own user, or root: through the socket.
    Operator,
    /// Any program on this host, at this address: it sees no peer and changes nothing.
    Local(SocketAddr),
}

/// One endpoint.
struct Endpoint {
    method: Method,
    path: &'static str,
    /// Whether any program on this host may ask.
    local: bool,
    says: &'static str,
}

const fn endpoint(method: Method, path: &'static str, local: bool, says: &'static str) -> Endpoint {
    Endpoint { method, path, local, says }
}

static ENDPOINTS: [Endpoint; 10] = [
    endpoint(Method::GET, "/", true, "this list"),
    endpoint(Method::GET, "/config", true, "the configuration in force: file, environment and flags"),
    endpoint(Method::GET, "/connections", true, "open connections; ?limit=100&after=ID (over TCP: how many)"),
    endpoint(Method::POST, "/drain", false, "begins the drain, as SIGTERM does"),
    endpoint(
        Method::POST,
        "/explain",
        false,
        "what the policy says to {peer, source_ip, port[, method, path, host, headers]}, and why",
    ),
    endpoint(Method::GET, "/identity", true, "the own certificate, when it is renewed, and who is trusted"),
    endpoint(Method::GET, "/log", true, "the log level"),
    endpoint(Method::PUT, "/log", false, "another log level: {level}"),
    endpoint(Method::GET, "/policy", false, "the policies in force and their generation"),
    endpoint(Method::GET, "/upstreams", false, "services, who must answer there, and how the endpoints do"),
];

/// Why there is no answer but this.
#[derive(Debug)]
pub(super) struct Refusal(StatusCode, String);

impl Refusal {
    pub(super) fn bad(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }
}

/// Answers one request.
pub(super) async fn answer<B>(
    state: Arc<State>,
    audience: Audience,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let (head, body) = request.into_parts();
    let as_text = wants_text(&head.uri, &head.headers);
    let result = match admit(audience, &head.method, &head.uri, &head.headers) {
        Ok(()) => reply(&state, audience, &head.method, &head.uri, body).await,
        Err(refusal) => Err(refusal),
    };
    let (status, value) = match result {
        Ok((status, value)) => (status, value),
        Err(Refusal(status, why)) => (status, json!({ "error": why })),
    };
    let mut response = if as_text {
        text(status, super::text::render(&value))
    } else {
        typed(status, "application/json", format!("{value}\n"))
    };
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed: Vec<&str> = of_path(head.uri.path()).map(|e| e.method.as_str()).collect();
        if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
            response.headers_mut().insert(header::ALLOW, allowed);
        }
    }
    response
}

fn of_path(path: &str) -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS.iter().filter(move |e| e.path == path)
}

/// Whether this may be asked, by this audience, in this way.
fn admit(audience: Audience, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if let Audience::Local(address) = audience
        && let Some(why) = host::refusal(address, uri, headers)
    {
        return Err(Refusal(StatusCode::FORBIDDEN, why.to_owned()));
    }
    if of_path(uri.path()).next().is_none() {
        let why = format!("there is no {}; GET / lists what there is", uri.path());
        return Err(Refusal(StatusCode::NOT_FOUND, why));
    }
    let asked = if method == Method::HEAD { &Method::GET } else { method };
    let Some(endpoint) = of_path(uri.path()).find(|e| e.method == asked) else {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{} does not take {method}", uri.path()),
        ));
    };
    if matches!(audience, Audience::Local(_)) && !endpoint.local {
        let why = format!("{method} {} is for operators: use the socket", uri.path());
        return Err(Refusal(StatusCode::FORBIDDEN, why));
    }
    Ok(())
}

async fn reply<B>(
    state: &State,
    audience: Audience,
    method: &Method,
    uri: &Uri,
    body: B,
) -> Result<(StatusCode, Value), Refusal>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let ok = |value| Ok((StatusCode::OK, value));
    let operator = audience == Audience::Operator;
    match (method.as_str(), uri.path()) {
        (_, "/config") => ok(views::config(state, operator)),
        (_, "/connections") if operator => ok(views::connections(state, page(uri)?).await),
        (_, "/connections") => ok(views::connection_count(state).await),
        (_, "/drain") => {
            tracing::info!("an operator asks for the drain");
            state.shutdown.cancel();
            let drain = &state.config.drain;
            Ok((
                StatusCode::ACCEPTED,
                json!({ "draining": true, "pre_drain": drain.pre_drain, "timeout": drain.timeout }),
            ))
        }
        (_, "/explain") => ok(explain::explain(state, &read(body).await?)?),
        (_, "/identity") => ok(views::identity(state)),
        ("PUT", "/log") => {
            let Wanted { level } = read(body).await?;
            state.log.set(&level).map_err(Refusal::bad)?;
            tracing::info!(level, "an operator has changed the log level");
            ok(json!({ "level": level }))
        }
        (_, "/log") => ok(json!({ "level": state.log.text() })),
        (_, "/policy") => ok(views::policy(state)),
        (_, "/upstreams") => ok(views::upstreams(state).await),
        _ => ok(overview(state, operator)),
    }
}

fn overview(state: &State, operator: bool) -> Value {
    let shown = ENDPOINTS.iter().filter(|e| operator || e.local);
    let endpoint = |e: &Endpoint| json!({ "method": e.method.as_str(), "path": e.path, "says": e.says });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "id": state.snapshots.credentials.load().as_ref().map(|c| c.id().clone()),
        "ready": state.readiness.is_ready(),
        "missing": state.readiness.reasons(),
        "uptime_s": state.since.elapsed().as_secs(),
        "endpoints": shown.map(endpoint).collect::<Vec<_>>(),
    })
}

/// What `PUT /log` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    level: String,
}

async fn read<T, B>(body: B) -> Result<T, Refusal>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect());
    let bytes = match body.await {
        Ok(Ok(body)) => body.to_bytes(),
        // The caller that sends too much, or goes away, makes no difference.
        Ok(Err(_)) => {
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("at most {MAX_BODY} bytes are read")));
        }
        Err(_) => return Err(Refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive".to_owned())),
    };
    serde_json::from_slice(&bytes).map_err(|e| Refusal::bad(format!("the body: {e}")))
}

/// Which connections are asked for.
fn page(uri: &Uri) -> Result<views::Wanted, Refusal> {
    let mut wanted = views::Wanted::default();
    for (key, value) in parameters(uri) {
        match key {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=views::MOST).contains(limit));
                let wrong = || Refusal::bad(format!("limit lies between 1 and {}", views::MOST));
                wanted.limit = limit.ok_or_else(wrong)?;
            }
            "after" => {
                let id = value.split_once('.').and_then(|(w, n)| Some((w.parse().ok()?, n.parse().ok()?)));
                wanted.after = Some(id.ok_or_else(|| Refusal::bad("after is an id, such as 0.17"))?);
            }
            "format" => {}
            other => {
                return Err(Refusal::bad(format!("unknown parameter {other:?}: use limit, after, format")));
            }
        }
    }
    Ok(wanted)
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// `?format=` decides; without it, whoever asks for text and not for JSON gets text.
fn wants_text(uri: &Uri, headers: &HeaderMap) -> bool {
    match parameters(uri).find(|(key, _)| *key == "format") {
        Some((_, format)) => format == "text",
        None => {
            headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/plain"))
        }
    }
}
