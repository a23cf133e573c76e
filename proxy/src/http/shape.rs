//! A request in the form of the version that it is sent in: the authority stands in `Host` or in the URI, never in both.

use ::http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use ::http::uri::{Authority, Parts as UriParts, PathAndQuery, Scheme};
use ::http::{HeaderValue, Uri};
use hyper::body::Body as _;

use super::pool::Speaks;
use super::{Request, Version};

/// Gives a request the form of `version`, towards somebody who speaks so.
pub(super) fn shape(request: &mut Request, version: Version, speaks: Speaks) {
    match version {
        Version::Http1 => {
            *request.version_mut() = ::http::Version::HTTP_11;
            if let Some(authority) = request.uri().authority() {
                let host = HeaderValue::from_str(authority.as_str());
                let path = request.uri().path_and_query().cloned();
                if let Ok(host) = host {
                    request.headers_mut().insert(HOST, host);
                }
                *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
            }
            super::headers::join_cookies(request.headers_mut());
            // Left to itself, the library drops a body of unknown length where the method is GET or HEAD.
            let unknown = !request.body().is_empty() && request.body().size_hint().exact().is_none();
            if unknown && !request.headers().contains_key(CONTENT_LENGTH) {
                request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        Version::Http2 => {
            *request.version_mut() = ::http::Version::HTTP_2;
            let Some(host) = request.headers_mut().remove(HOST) else { return };
            let mut parts = UriParts::default();
            parts.scheme = Some(if speaks == Speaks::Mesh { Scheme::HTTPS } else { Scheme::HTTP });
            parts.authority = Authority::try_from(host.as_bytes()).ok();
            parts.path_and_query =
                Some(request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
}
