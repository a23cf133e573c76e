//! Who may call which route. What does not stand in the table is denied to everybody.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use postern_config::file::control::OperatorRole;

use super::Plane;
use super::admin::{Failed, Operator};

use OperatorRole::{Admin, Operator as Changes, Viewer};

/// The required role of each route.
pub const TABLE: [(&str, &str, OperatorRole); 37] = [
    ("GET", "/openapi.json", Viewer),
    ("GET", "/v1/status", Viewer),
    ("POST", "/v1/tokens", Changes),
    ("GET", "/v1/identities", Viewer),
    ("POST", "/v1/identities/remove", Changes),
    ("GET", "/v1/declarations", Viewer),
    ("POST", "/v1/declarations", Changes),
    ("DELETE", "/v1/declarations/{name}", Changes),
    ("GET", "/v1/services", Viewer),
    ("POST", "/v1/services", Changes),
    ("DELETE", "/v1/services/{name}", Changes),
    ("GET", "/v1/policies", Viewer),
    ("POST", "/v1/policies", Changes),
    ("DELETE", "/v1/policies/{namespace}/{name}", Changes),
    ("POST", "/v1/ca/rotate", Admin),
    ("POST", "/v1/ca/approve", Admin),
    ("GET", "/v1/ca/authorities", Viewer),
    ("GET", "/v1/ca/rotation", Viewer),
    ("POST", "/v1/ca/rotation", Admin),
    ("GET", "/v1/ca/rotations", Viewer),
    ("POST", "/v1/ca/taint", Admin),
    ("GET", "/v1/jwt/keys", Viewer),
    ("POST", "/v1/jwt/rotate", Admin),
    ("POST", "/v1/jwt/taint", Admin),
    ("GET", "/v1/federation", Viewer),
    ("POST", "/v1/federation", Admin),
    ("DELETE", "/v1/federation/{trust_domain}", Admin),
    ("POST", "/v1/federation/{trust_domain}/refresh", Admin),
    ("GET", "/v1/revocations", Viewer),
    ("POST", "/v1/revocations", Changes),
    ("POST", "/v1/revocations/lift", Admin),
    ("GET", "/v1/generations/{generation}/progress", Viewer),
    ("GET", "/v1/audit", Viewer),
    ("GET", "/v1/audit/chains", Viewer),
    ("GET", "/v1/audit/records", Viewer),
    ("GET", "/v1/audit/checkpoints", Viewer),
    ("POST", "/v1/snapshots", Admin),
];

/// The role of whoever is on the other end, or why there is none.
#[derive(Debug, Clone, Copy)]
pub struct Access(pub Result<OperatorRole, &'static str>);

/// The role that a route needs; `HEAD` reads as `GET` does.
pub fn required(method: &Method, path: &str) -> Option<OperatorRole> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    TABLE.iter().find(|(m, p, _)| *m == method && *p == path).map(|(_, _, role)| *role)
}

/// Lets a request through whose caller has the role for its route; everybody else is refused, and on record.
pub async fn guard(State(plane): State<Arc<Plane>>, request: Request, next: Next) -> Response {
    let access = request.extensions().get::<Access>().copied();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let refused = match (access.map(|access| access.0), &path) {
        (None, _) => Err("no_role"),
        (Some(Err(why)), _) => Err(why),
        // Known callers hear that there is no such resource.
        (Some(Ok(_)), None) => Ok(()),
        (Some(Ok(role)), Some(path)) => match required(request.method(), path) {
            Some(required) if role >= required => Ok(()),
            Some(_) => Err("role_too_low"),
            None => {
                let known = TABLE.iter().any(|(_, p, _)| *p == path.as_str());
                let why = format!("{} is not for {path}", request.method());
                if known {
                    return Failed::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", why)
                        .into_response();
                }
                Err("not_in_table")
            }
        },
    };
    let Err(why) = refused else { return next.run(request).await };
    let actor = request.extensions().get::<Operator>().map_or("unknown", |operator| operator.0.as_str());
    let what = format!("{} {}", request.method(), request.uri().path());
    plane.registry.operator_refused(actor, &what, why).await;
    let needed = path.as_deref().and_then(|path| required(request.method(), path));
    let needs = needed.map_or_else(String::new, |role| format!("this needs the role {role}"));
    let (status, message) = match why {
        "no_certificate" => (StatusCode::UNAUTHORIZED, "present an operator's certificate"),
        "bad_certificate" => (StatusCode::UNAUTHORIZED, "this certificate is not good any more"),
        "role_too_low" => (StatusCode::FORBIDDEN, needs.as_str()),
        _ => (StatusCode::FORBIDDEN, "this identity has no role here"),
    };
    Failed::new(status, why, message).into_response()
}

impl Access {
    /// Refuses whoever is no admin, for `what` goes beyond what the route's own role allows.
    pub(super) fn admin(self, what: &str) -> Result<(), Failed> {
        match self.0 {
            Ok(Admin) => Ok(()),
            _ => Err(Failed::new(
                StatusCode::FORBIDDEN,
                "role_too_low",
                format!("this needs the role admin: {what}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every file that adds routes for operators.
    const SOURCES: [&str; 9] = [
        include_str!("admin.rs"),
        include_str!("backup.rs"),
        include_str!("federation.rs"),
        include_str!("identities.rs"),
        include_str!("jwt.rs"),
        include_str!("openapi.rs"),
        include_str!("records.rs"),
        include_str!("revocations.rs"),
        include_str!("rotation.rs"),
    ];

    #[test]
    fn every_route_stands_in_the_table_and_nothing_else_does() {
        let mut routes = Vec::new();
        for line in SOURCES.iter().flat_map(|source| source.split(".route(").skip(1)) {
            let path = line.split('"').nth(1).unwrap();
            let handlers = &line[line.find(',').unwrap()..line.find("))").unwrap()];
            for method in ["get", "post", "delete", "put", "patch"] {
                if handlers.contains(&format!("{method}(")) {
                    routes.push((method.to_ascii_uppercase(), path.to_owned()));
                }
            }
        }
        let mut table: Vec<_> = TABLE.iter().map(|(m, p, _)| ((*m).to_owned(), (*p).to_owned())).collect();
        routes.sort();
        table.sort();
        assert_eq!(routes, table);
    }

    #[test]
    fn reading_is_for_viewers_and_nothing_that_changes_is() {
        for (method, path, role) in TABLE {
            assert_eq!(role == Viewer, method == "GET", "{method} {path}");
        }
        assert_eq!(required(&Method::PUT, "/v1/status"), None);
        assert_eq!(required(&Method::GET, "/v1/nothing"), None);
        assert!(Viewer < Changes && Changes < Admin);
    }
}
