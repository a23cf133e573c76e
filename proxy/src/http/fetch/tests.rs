use super::*;

#[test]
fn addresses_that_believe_whoever_reaches_them_are_not_fetched_from() {
    for address in [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:a9fe:a9fe::1",
        "2002:7f00:1::",
    ] {
        assert!(forbidden(address.parse().unwrap(), false).is_some(), "{address}");
    }
    for address in ["10.0.0.1", "192.168.1.1", "172.16.0.1", "fd00::1", "1.1.1.1", "2606:4700::1111"] {
        assert_eq!(forbidden(address.parse().unwrap(), false), None, "{address}");
    }
}

#[test]
fn loopback_alone_can_be_allowed() {
    for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(forbidden(address.parse().unwrap(), true), None, "{address}");
    }
    for address in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0", "fd00:ec2::254"] {
        assert!(forbidden(address.parse().unwrap(), true).is_some(), "{address}");
    }
}

#[test]
fn a_request_goes_out_in_origin_form() {
    let uri = "https://a.test:8443/keys?v=1";
    let sent = as_sent(Request::get(uri).body(Bytes::new()).unwrap()).unwrap();
    assert_eq!(sent.uri(), "/keys?v=1");
    assert_eq!(sent.headers()["host"], "a.test:8443");
    assert_eq!(sent.headers()["accept-encoding"], "identity");
    assert_eq!(target(&uri.parse().unwrap()), Some(("a.test".to_owned(), 8443)));
    assert_eq!(target(&"https://[::1]/".parse().unwrap()), Some(("::1".to_owned(), 443)));
    assert_eq!(target(&"http://a.test/".parse().unwrap()), None);
}
