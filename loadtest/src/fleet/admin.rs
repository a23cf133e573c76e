//! The operators' socket, for what commands would do one process each: join tokens in bulk, policies, status.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use postern_config::enroll::JoinString;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Tokens are asked for over so many connections at a time; the store writes one after the other anyway.
const AT_A_TIME: usize = 8;

/// The admin socket of one control plane.
#[derive(Debug)]
pub struct Admin {
    socket: PathBuf,
    runtime: Runtime,
}

impl Admin {
    /// The socket below a data directory.
    pub fn at(data: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket: data.join("admin.sock"), runtime })
    }

    /// `count` join strings for `spiffe://<trust domain>/ns/<namespace>/sa/p<number>`, good for `ttl`, each for one use;
    /// `progress` hears how many there are.
    pub fn tokens(
        &self,
        count: usize,
        namespace: &str,
        ttl: Duration,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<JoinString>> {
        let status = self.get("/v1/status")?;
        let domain = status["trust_domain"].as_str().context("a status without a trust domain")?;
        let wish = |n: usize| json!({ "id": format!("spiffe://{domain}/ns/{namespace}/sa/p{n}"), "ttl": format!("{}s", ttl.as_secs()) });
        let wishes: Vec<Value> = (0..count).map(wish).collect();
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for share in wishes.chunks(count.div_ceil(AT_A_TIME).max(1)) {
                let (socket, share) = (self.socket.clone(), share.to_vec());
                tasks.spawn(async move { create(&socket, share).await });
            }
            let mut joins = Vec::with_capacity(count);
            while let Some(done) = tasks.join_next().await {
                joins.extend(done.context("a task that makes tokens failed")??);
                progress(joins.len());
            }
            Ok(joins)
        })
    }

    /// Applies policies (each one JSON); gives the generation that carries them.
    pub fn apply_policies(&self, documents: &[String]) -> Result<u64> {
        let answer = self.post("/v1/policies", &json!({ "documents": documents }))?;
        answer["generation"].as_u64().with_context(|| format!("no generation in {answer}"))
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.runtime.block_on(async { ask(&mut connect(&self.socket).await?, Method::GET, path, None).await })
    }

    /// `POST path`.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let asked = async { ask(&mut connect(&self.socket).await?, Method::POST, path, Some(body)).await };
        self.runtime.block_on(asked)
    }
}

async fn create(socket: &Path, wishes: Vec<Value>) -> Result<Vec<JoinString>> {
    let mut connection = connect(socket).await?;
    let mut joins = Vec::with_capacity(wishes.len());
    for wish in wishes {
        let created = ask(&mut connection, Method::POST, "/v1/tokens", Some(&wish)).await?;
        let join = created["join"].as_str().context("an answer without a join string")?;
        joins.push(join.parse()?);
    }
    Ok(joins)
}

async fn connect(socket: &Path) -> Result<SendRequest<Full<Bytes>>> {
    let nobody = || {
        format!(
            "nobody answers at {}: is that the data directory of a running `postern serve`?",
            socket.display()
        )
    };
    let stream = UnixStream::connect(socket).await.with_context(nobody)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends when its sender is dropped.
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "postern")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    sender.ready().await.context("the control plane hung up")?;
    let response = sender.send_request(request).await.context("the control plane hung up")?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let answer = match answer {
        Ok(answer) => answer.to_bytes(),
        Err(error) => bail!("the answer to {path} broke off: {error}"),
    };
    ensure!(status == StatusCode::OK, "{path}: {status}: {}", String::from_utf8_lossy(&answer));
    serde_json::from_slice(&answer).with_context(|| format!("{path}: an answer that is no JSON"))
}
