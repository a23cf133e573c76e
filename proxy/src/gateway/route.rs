//! Which route a request takes: a pure table, most specific first, as the Gateway API orders them.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use postern_config::file::gateway::{HttpRoute, PathMatch};

#[cfg(test)]
mod tests;

/// One host's routes, ordered so that the first match is the one that counts.
#[derive(Debug, Default)]
pub struct Routes(Vec<Route>);

/// One route: its conditions, and where it leads.
#[derive(Debug)]
pub struct Route {
    path: Path,
    method: Option<String>,
    headers: Vec<(String, String)>,
    /// The service of the mesh that answers.
    pub service: Arc<str>,
    /// For a whole request with its answer.
    pub timeout: Option<Duration>,
    rewrite: Option<String>,
}

#[derive(Debug)]
enum Path {
    Exact(String),
    /// Without a slash at its end: empty for every path.
    Prefix(String),
}

impl Path {
    /// How many bytes of `path` are matched; none where it does not match.
    fn matched(&self, path: &str) -> Option<usize> {
        match self {
            Self::Exact(exact) => (exact == path).then_some(path.len()),
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(prefix.as_str())?;
                let at_segment = rest.starts_with('/') || (rest.is_empty() && !prefix.is_empty());
                at_segment.then_some(prefix.len())
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Exact(path) | Self::Prefix(path) => path.len(),
        }
    }
}

impl Routes {
    /// Orders them: exact path, then the longer prefix, then one with a method, then the one with more headers, then the
    /// order of the file.
    pub fn new(routes: &[HttpRoute]) -> Self {
        let mut routes: Vec<Route> = routes.iter().map(Route::new).collect();
        routes.sort_by_key(|r| {
            let prefix = matches!(r.path, Path::Prefix(_));
            (prefix, Reverse(r.path.len()), r.method.is_none(), Reverse(r.headers.len()))
        });
        Self(routes)
    }

    /// The route of a request; `path` is normalised and without its query.
    pub fn find(&self, method: &Method, path: &str, headers: &HeaderMap) -> Option<&Route> {
        self.0.iter().find(|r| r.matches(method, path, headers))
    }

    /// The services that they lead to.
    pub fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|r| &r.service)
    }
}

impl Route {
    fn new(route: &HttpRoute) -> Self {
        let path = match &route.path {
            PathMatch { exact: Some(exact), .. } => Path::Exact(exact.clone()),
            PathMatch { prefix, .. } => {
                Path::Prefix(prefix.as_deref().unwrap_or("/").trim_end_matches('/').to_owned())
            }
        };
        Self {
            path,
            method: route.method.clone(),
            headers: route.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect(),
            service: route.service.as_str().into(),
            timeout: route.timeout.map(|t| t.as_duration()),
            rewrite: route.rewrite_prefix.as_deref().map(|r| r.trim_end_matches('/').to_owned()),
        }
    }

    fn matches(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.path.matched(path).is_some()
            && self.method.as_deref().is_none_or(|m| m == method.as_str())
            && self.headers.iter().all(|(name, value)| {
                // A header that comes twice has no one value: whoever reads the other line would be led elsewhere.
                let mut lines = headers.get_all(name.as_str()).iter();
                lines.next().is_some_and(|v| v.as_bytes() == value.as_bytes()) && lines.next().is_none()
            })
    }

    /// The path as the service is asked for it.
    pub fn rewritten<'a>(&self, path: &'a str) -> Cow<'a, str> {
        let (Some(rewrite), Some(matched)) = (&self.rewrite, self.path.matched(path)) else {
            return Cow::Borrowed(path);
        };
        match (rewrite.as_str(), &path[matched..]) {
            ("", "") => Cow::Borrowed("/"),
            ("", rest) => Cow::Borrowed(rest),
            (rewrite, rest) => Cow::Owned(format!("{rewrite}{rest}")),
        }
    }
}
