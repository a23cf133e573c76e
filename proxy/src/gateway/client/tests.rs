//! Whose word about the client counts.

use super::*;

fn hop(trusted_hops: u8) -> Hop {
    Hop { source: "192.0.2.9:4000".parse().unwrap(), secure: true, trusted_hops }
}

/// Reads and tells.
fn forwarded(headers: &mut HeaderMap, hop: &Hop) -> Result<IpAddr, Refusal> {
    let forwarded = Forwarded::read(headers, hop)?;
    let client = forwarded.client;
    forwarded.tell(headers);
    Ok(client)
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn without_trusted_hops_nothing_that_a_client_says_of_its_way_is_kept() {
    let mut sent = headers(&[
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-for", "10.0.0.2"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "evil"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("x-request-id", "mine"),
        ("x-envoy-original-path", "/admin"),
        ("x-envoy-expected-rq-timeout-ms", "1"),
        ("accept", "*/*"),
    ]);
    assert_eq!(forwarded(&mut sent, &hop(0)).unwrap().to_string(), "192.0.2.9");
    let kept =
        headers(&[("accept", "*/*"), ("x-forwarded-for", "192.0.2.9"), ("x-forwarded-proto", "https")]);
    assert_eq!(sent, kept);
}

#[test]
fn trusted_hops_are_counted_from_the_right() {
    for (sent, hops, client, onward) in [
        (&["203.0.113.1"][..], 1, "203.0.113.1", "203.0.113.1, 192.0.2.9"),
        (&["6.6.6.6, 203.0.113.1"], 1, "203.0.113.1", "6.6.6.6, 203.0.113.1, 192.0.2.9"),
        (
            &["6.6.6.6", "203.0.113.1,198.51.100.1"],
            2,
            "203.0.113.1",
            "6.6.6.6, 203.0.113.1,198.51.100.1, 192.0.2.9",
        ),
        (&["[2001:db8::1]:443"], 1, "2001:db8::1", "[2001:db8::1]:443, 192.0.2.9"),
        (&["::ffff:203.0.113.1"], 1, "203.0.113.1", "::ffff:203.0.113.1, 192.0.2.9"),
        (&[], 1, "192.0.2.9", "192.0.2.9"),
        (&["203.0.113.1"], 2, "192.0.2.9", "203.0.113.1, 192.0.2.9"),
    ] {
        let mut map = HeaderMap::new();
        for line in sent {
            map.append(FORWARDED_FOR, HeaderValue::from_static(line));
        }
        assert_eq!(forwarded(&mut map, &hop(hops)).unwrap().to_string(), client, "{sent:?} with {hops}");
        assert_eq!(map.get(FORWARDED_FOR).unwrap(), onward);
        assert_eq!(map.get_all(FORWARDED_FOR).iter().count(), 1);
    }
    for bad in ["unknown", "6.6.6.6, _hidden", "10.0.0.0/8"] {
        let mut map = headers(&[("x-forwarded-for", bad)]);
        assert_eq!(forwarded(&mut map, &hop(1)).unwrap_err().fault, Fault::BadRequest, "{bad}");
    }
}

#[test]
fn a_trusted_proxys_word_on_the_scheme_holds_if_it_is_one() {
    for (said, kept) in [("http", "http"), ("https", "https"), ("javascript", "https")] {
        let mut map = headers(&[("x-forwarded-proto", said)]);
        forwarded(&mut map, &hop(1)).unwrap();
        assert_eq!(map.get(FORWARDED_PROTO).unwrap(), kept);
    }
}
