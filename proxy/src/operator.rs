//! `postern-proxy admin …`: a question from the command line, and its answer for people or programs.

use std::collections::BTreeMap;
use std::io::Write as _;

use http::Method;
use postern_proxy::admin::client::ask;
use postern_proxy::admin::text::render;
use serde_json::{Value, json};

use crate::args::{AdminArgs, Output, Question};

pub(crate) fn run(args: AdminArgs) -> anyhow::Result<()> {
    let AdminArgs { question, socket, output } = args;
    let (method, path, body) = request(question);
    let answer = ask(&socket, method, &path, body.as_ref())?;
    let mut out = std::io::stdout();
    match output {
        Output::Json => writeln!(out, "{answer}")?,
        Output::Text => write!(out, "{}", render(&answer))?,
    }
    Ok(())
}

fn request(question: Question) -> (Method, String, Option<Value>) {
    let get = |path: &str| (Method::GET, path.to_owned(), None);
    match question {
        Question::Get { path } if path.starts_with('/') => get(&path),
        Question::Get { path } => get(&format!("/{path}")),
        Question::Config => get("/config"),
        Question::Identity => get("/identity"),
        Question::Connections { limit, after } => {
            let after = after.map_or(String::new(), |id| format!("&after={id}"));
            get(&format!("/connections?limit={limit}{after}"))
        }
        Question::Upstreams => get("/upstreams"),
        Question::Policy => get("/policy"),
        Question::Log { level: None } => get("/log"),
        Question::Log { level: Some(level) } => {
            (Method::PUT, "/log".to_owned(), Some(json!({ "level": level })))
        }
        Question::Explain { peer, source_ip, port, destination_ip, sni, method, path, host, header } => {
            let mut question = json!({ "peer": peer, "source_ip": source_ip, "port": port });
            let given = [
                ("destination_ip", destination_ip),
                ("sni", sni),
                ("method", method),
                ("path", path),
                ("host", host),
            ];
            for (name, value) in given {
                if let Some(value) = value {
                    question[name] = value.into();
                }
            }
            let mut headers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            for line in &header {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                headers.entry(name.trim().to_owned()).or_default().push(value.trim());
            }
            question["headers"] = json!(headers);
            (Method::POST, "/explain".to_owned(), Some(question))
        }
        Question::Drain => (Method::POST, "/drain".to_owned(), None),
    }
}
