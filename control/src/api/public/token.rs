//! `/token`: the token exchange as HTTP sees it (RFC 8693 §2).

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::api::Plane;
use crate::clock::now_ms;
use crate::exchange::Exchange;

/// The largest request, in bytes: the longest token twice over.
const MAX_BODY: usize = 16 * 1024;

pub(super) async fn answer(
    plane: &Plane,
    exchange: &Exchange,
    request: Request<Incoming>,
    remote: IpAddr,
) -> Response<Full<Bytes>> {
    if *request.method() != Method::POST {
        return super::not_allowed("POST");
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim).unwrap_or_default();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return refused(400, "invalid_request", "send application/x-www-form-urlencoded");
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
        return refused(400, "invalid_request", "the body is larger than 16 KiB, or broke off");
    };
    match exchange.exchange(plane, remote, &body.to_bytes()).await {
        Ok(signed) => {
            let left = signed.expires.saturating_sub(now_ms() / 1000);
            let answer = json!({
                "access_token": signed.token.as_str(),
                "issued_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_type": "Bearer",
                "expires_in": left,
            });
            of(StatusCode::OK, &answer)
        }
        Err(error) => {
            let (status, word) = error.answer();
            refused(status, word, &error.to_string())
        }
    }
}

fn refused(status: u16, word: &str, why: &str) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    of(status, &json!({ "error": word, "error_description": why }))
}

/// Nothing of it may be kept by anybody on the way (RFC 6749 §5.1).
fn of(status: StatusCode, answer: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
