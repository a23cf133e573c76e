//! Whether a request to the loopback port was meant for it. A page in a browser on this host can be made to ask it under a
//! name of the attacker's (DNS rebinding); the `Host` that it sends gives it away.

use std::net::SocketAddr;

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Uri};

/// Why a request is not answered, if it is not: it must name `address`'s port at a loopback name, and come from no web page.
pub(super) fn refusal(address: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Option<&'static str> {
    if headers.contains_key(ORIGIN) {
        return Some("web pages are not answered here");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Some("a request names exactly one Host");
    };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let meant = |authority: &Authority| {
        let loopback = ["localhost", "127.0.0.1", "[::1]"];
        let at_port = authority.port_u16().unwrap_or(80) == address.port();
        let bare = !authority.as_str().contains('@');
        bare && at_port && loopback.iter().any(|name| authority.host().eq_ignore_ascii_case(name))
    };
    // RFC 9112 §3.2.2: an absolute-form target goes before Host; here both must be right.
    if host.as_ref().is_some_and(meant) && uri.authority().is_none_or(meant) {
        return None;
    }
    Some("this is answered at localhost, 127.0.0.1 and [::1] only, with the port")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(target: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        refusal("127.0.0.1:15000".parse().unwrap(), &head.uri, &head.headers)
    }

    #[test]
    fn only_loopback_names_with_the_port_are_meant() {
        for host in ["localhost:15000", "LOCALHOST:15000", "127.0.0.1:15000", "[::1]:15000"] {
            assert_eq!(asked("/config", &[("host", host)]), None, "{host}");
        }
        for host in [
            "rebound.example:15000",
            "localhost",
            "localhost:15001",
            "localhost.example:15000",
            "127.0.0.2:15000",
            "localhost.:15000",
            "u@localhost:15000",
            "localhost:15000:15000",
            "",
        ] {
            assert!(asked("/config", &[("host", host)]).is_some(), "{host}");
        }
        assert!(asked("/config", &[]).is_some(), "no Host");
        assert!(asked("/config", &[("host", "localhost:15000"), ("host", "localhost:15000")]).is_some());
        assert!(asked("http://rebound.example:15000/config", &[("host", "localhost:15000")]).is_some());
        assert!(asked("http://localhost:15000/config", &[("host", "localhost:15000")]).is_none());
        let page = [("host", "localhost:15000"), ("origin", "http://localhost:15000")];
        assert!(asked("/config", &page).is_some(), "a page");
    }
}
