//! The `http` section.

use crate::file::http::{Http, RateLimit};
use crate::file::{Span, parse};
use crate::http::xfcc::Mode;

#[test]
fn the_defaults_are_what_the_documentation_says() {
    let http: Http = parse("{}").unwrap();
    assert_eq!(http, Http::default());
    http.check().unwrap();
    assert_eq!((http.timeouts.request, http.timeouts.per_try), (None, None));
    assert_eq!(
        (http.retries.attempts, http.retries.budget_percent, http.retries.min_per_second),
        (2, 20, 10)
    );
    assert_eq!((http.outlier.consecutive, http.outlier.max_ejection_percent), (5, 50));
    assert_eq!(http.outlier.base_ejection, Span::from_secs(30));
    assert_eq!((http.rate_limit, http.xfcc.mode), (None, Mode::SanitizeSet));
}

#[test]
fn everything_can_be_said() {
    let text = "timeouts: { request: 10s, per_try: 3s }\n\
                retries: { attempts: 0, budget_percent: 10, min_per_second: 1 }\n\
                circuit: { connections: 10, pending_requests: 20, requests: 30 }\n\
                outlier: { consecutive: 0, base_ejection: 1s, max_ejection_percent: 100 }\n\
                rate_limit: { requests_per_second: 100 }\n\
                xfcc: { mode: append_forward, append_if: [corp.example/ns/edge/*] }\n";
    let http: Http = parse(text).unwrap();
    http.check().unwrap();
    assert_eq!(http.rate_limit, Some(RateLimit { requests_per_second: 100, burst: None }));
    let trusted = http.xfcc.append_if.as_deref().unwrap();
    assert!(trusted[0].matches(&"spiffe://corp.example/ns/edge/sa/gate".parse().unwrap()));
    assert_eq!(parse::<Http>(&serde_json::to_string(&http).unwrap()).unwrap(), http);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (text, expected) in [
        (
            "timeouts: { request: 0s }",
            "http.timeouts: 0s would end every request at once; leave the field out for no timeout",
        ),
        (
            "timeouts: { per_try: 0ms }",
            "http.timeouts: 0s would end every request at once; leave the field out for no timeout",
        ),
        (
            "timeouts: { request: 1s, per_try: 2s }",
            "http.timeouts.per_try: is longer than `request`, the time for all tries together",
        ),
        ("retries: { attempts: 11 }", "http.retries.attempts: more than 10 would tie the caller up"),
        ("retries: { budget_percent: 101 }", "http.retries.budget_percent: must lie between 0 and 100"),
        ("circuit: { connections: 0 }", "http.circuit: 0 would let no request through"),
        ("circuit: { pending_requests: 0 }", "http.circuit: 0 would let no request through"),
        ("circuit: { requests: 0 }", "http.circuit: 0 would let no request through"),
        (
            "outlier: { base_ejection: 0s }",
            "http.outlier.base_ejection: 0s ejects nobody; to turn ejection off, write `consecutive: 0`",
        ),
        (
            "outlier: { max_ejection_percent: 101 }",
            "http.outlier.max_ejection_percent: must lie between 0 and 100",
        ),
        (
            "rate_limit: { requests_per_second: 0 }",
            "http.rate_limit: 0 would let no request through; leave `rate_limit` out for no limit",
        ),
        (
            "rate_limit: { requests_per_second: 1, burst: 0 }",
            "http.rate_limit: 0 would let no request through; leave `rate_limit` out for no limit",
        ),
        (
            "rate_limit: { requests_per_second: 1000001 }",
            "http.rate_limit.requests_per_second: must lie between 1 and 1000000",
        ),
        (
            "xfcc: { append_if: ['*'] }",
            "http.xfcc.append_if: means something only under `mode: append_forward`",
        ),
        (
            "xfcc: { mode: append_forward, append_if: [] }",
            "http.xfcc.append_if: an empty list trusts nobody; write `mode: sanitize_set` instead",
        ),
    ] {
        let http: Http = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(http.check().unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn mistakes_have_their_place() {
    let mistake = |text: &str| parse::<Http>(text).unwrap_err().to_string();
    assert_eq!(
        mistake("xfcc: { mode: append_forwards }"),
        "1:15  error: unknown value `append_forwards`; did you mean `append_forward`?"
    );
    assert_eq!(
        mistake("retries: { atempts: 1 }"),
        "1:12  error: unknown field `atempts`; did you mean `attempts`?"
    );
    assert!(mistake("rate_limit: { burst: 1 }").contains("requests_per_second"));
    assert!(
        mistake("xfcc: { mode: append_forward, append_if: ['spiffe://a/b'] }")
            .contains("must be written without `spiffe://`")
    );
}
