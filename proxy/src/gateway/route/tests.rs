//! The route table: specificity, segment boundaries, rewrites, and a property over all of them.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn route(yaml: &str) -> HttpRoute {
    postern_config::file::parse(yaml).unwrap()
}

fn table(routes: &[&str]) -> Routes {
    Routes::new(&routes.iter().map(|r| route(r)).collect::<Vec<_>>())
}

fn service<'a>(
    routes: &'a Routes,
    method: &Method,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Option<&'a str> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    routes.find(method, path, &map).map(|r| &*r.service)
}

#[test]
fn the_most_specific_match_wins_whatever_the_order() {
    let routes = table(&[
        "{ service: all }",
        "{ service: api, path: { prefix: /api } }",
        "{ service: api-get, path: { prefix: /api/ }, method: GET }",
        "{ service: api-beta, path: { prefix: /api }, headers: { x-v: beta } }",
        "{ service: v1, path: { prefix: /api/v1 } }",
        "{ service: exact, path: { exact: /api/v1 } }",
        "{ service: late, path: { prefix: /api/v1 } }",
    ]);
    let get = |path: &str| service(&routes, &Method::GET, path, &[]);
    let post = |path: &str, headers| service(&routes, &Method::POST, path, headers);
    assert_eq!(get("/"), Some("all"));
    assert_eq!(get("/apis"), Some("all"), "a prefix ends where a segment ends");
    assert_eq!(get("/api"), Some("api-get"));
    assert_eq!(get("/api/"), Some("api-get"));
    assert_eq!(get("/api/v1"), Some("exact"));
    assert_eq!(get("/api/v1/"), Some("v1"), "the first of equals");
    assert_eq!(get("/api/v1/x"), Some("v1"));
    assert_eq!(get("/API"), Some("all"), "paths have case");
    assert_eq!(post("/api/x", &[]), Some("api"));
    assert_eq!(post("/api/x", &[("x-v", "beta")]), Some("api-beta"));
    assert_eq!(get("*"), None, "not a path");
}

#[test]
fn a_header_counts_once_and_exactly() {
    let routes = table(&["{ service: beta, headers: { x-v: beta, x-w: a } }"]);
    let find = |headers: &[(&'static str, &str)]| service(&routes, &Method::GET, "/", headers);
    assert_eq!(find(&[("x-v", "beta"), ("x-w", "a")]), Some("beta"));
    assert_eq!(find(&[("x-v", "beta")]), None, "all of them");
    assert_eq!(find(&[("x-v", "beta"), ("x-v", "beta"), ("x-w", "a")]), None, "twice is ambiguous");
    assert_eq!(find(&[("x-v", "beta,beta"), ("x-w", "a")]), None);
    assert_eq!(find(&[("x-v", "Beta"), ("x-w", "a")]), None);
}

#[test]
fn a_rewrite_takes_the_prefixes_place() {
    for (prefix, rewrite, path, expected) in [
        ("/api", "/", "/api", "/"),
        ("/api", "/", "/api/x", "/x"),
        ("/api/", "/v2", "/api/x", "/v2/x"),
        ("/api", "/v2/", "/api", "/v2"),
        ("/api", "/v2", "/api/", "/v2/"),
        ("/", "/v2", "/x", "/v2/x"),
        ("/", "/", "/x", "/x"),
    ] {
        let routes =
            table(&[&format!("{{ service: s, path: {{ prefix: {prefix} }}, rewrite_prefix: {rewrite} }}")]);
        let found = routes.find(&Method::GET, path, &HeaderMap::new()).unwrap();
        assert_eq!(found.rewritten(path), expected, "{prefix} -> {rewrite} of {path}");
    }
}

/// What the Gateway API says, said again without an order: of all that match, none is more specific.
fn reference<'a>(
    routes: &'a [HttpRoute],
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<&'a str> {
    let segments = |p: &str| p.split('/').map(str::to_owned).collect::<Vec<_>>();
    let matching = routes.iter().enumerate().filter(|(_, r)| {
        let path_holds = match (&r.path.exact, &r.path.prefix) {
            (Some(exact), _) => exact == path,
            (_, Some(prefix)) => {
                let wanted: Vec<_> = segments(prefix).into_iter().filter(|s| !s.is_empty()).collect();
                segments(path)[1..].starts_with(&wanted)
            }
            _ => true,
        };
        path_holds
            && r.method.as_ref().is_none_or(|m| m == method.as_str())
            && r.headers.iter().all(|(n, v)| headers.get(n.as_str()).is_some_and(|h| h == v.as_str()))
    });
    let best = matching.max_by_key(|(i, r)| {
        let length = |p: &String| p.trim_end_matches('/').len();
        (
            r.path.exact.is_some(),
            r.path
                .exact
                .as_ref()
                .map(String::len)
                .or_else(|| r.path.prefix.as_ref().map(length))
                .unwrap_or(0),
            r.method.is_some(),
            r.headers.len(),
            Reverse(*i),
        )
    });
    best.map(|(_, r)| r.service.as_str())
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", ""]), 0..4)
        .prop_map(|s| format!("/{}", s.join("/")).replace("//", "/").replace("//", "/"))
}

prop_compose! {
    fn a_route()(
        path in prop_oneof![
            Just(PathMatch::default()),
            a_path().prop_map(|p| PathMatch { exact: Some(p), prefix: None }),
            a_path().prop_map(|p| PathMatch { exact: None, prefix: Some(p) }),
        ],
        method in prop::option::of(prop::sample::select(vec!["GET".to_owned(), "POST".to_owned()])),
        headers in prop::collection::btree_map(
            prop::sample::select(vec!["x".to_owned(), "y".to_owned()]),
            prop::sample::select(vec!["1".to_owned(), "2".to_owned()]),
            0..3,
        ),
        service in "[a-z]{4}",
    ) -> HttpRoute {
        HttpRoute { path, method, headers, service, rewrite_prefix: None, timeout: None }
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_the_specification(
        routes in prop::collection::vec(a_route(), 0..8),
        path in a_path(),
        get in any::<bool>(),
        headers in prop::collection::btree_map(prop::sample::select(vec!["x", "y"]), prop::sample::select(vec!["1", "2"]), 0..3),
    ) {
        let method = if get { Method::GET } else { Method::POST };
        let headers: HeaderMap = headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        let table = Routes::new(&routes);
        let found = table.find(&method, &path, &headers).map(|r| r.service.to_string());
        prop_assert_eq!(found.as_deref(), reference(&routes, &method, &path, &headers));
    }
}
