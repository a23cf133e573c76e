use std::borrow::Cow;

use proptest::prelude::*;

use crate::http::authority::{Authority, AuthorityError, canonical_host};

#[test]
fn one_spelling() {
    for (text, host, port) in [
        ("secret.com", "secret.com", None),
        ("SeCrEt.com", "secret.com", None),
        ("secret.com:443", "secret.com", Some(443)),
        ("secret.com.", "secret.com", None),
        ("SECRET.com.:8443", "secret.com", Some(8443)),
        ("localhost", "localhost", None),
        ("my_app-1:65535", "my_app-1", Some(65535)),
        ("10.0.0.1:1", "10.0.0.1", Some(1)),
        ("10.0.0.1.", "10.0.0.1", None),
        ("1.example", "1.example", None),
        ("1and1", "1and1", None),
        ("[::1]", "[::1]", None),
        ("[::1]:80", "[::1]", Some(80)),
        ("[0:0:0:0:0:0:0:1]", "[::1]", None),
        ("[2001:DB8::A]:443", "[2001:db8::a]", Some(443)),
        ("[::ffff:10.0.0.1]", "[::ffff:10.0.0.1]", None),
        ("[::ffff:a00:1]", "[::ffff:10.0.0.1]", None),
    ] {
        let authority = Authority::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!((&*authority.host, authority.port), (host, port), "{text}");
        assert_eq!(canonical_host(text).as_deref(), Ok(host));
        assert_eq!(Authority::parse(&authority.to_string()), Ok(authority.clone()), "{text}");
    }
}

#[test]
fn what_is_no_authority_is_refused() {
    let long = "a.".repeat(128);
    for (text, error) in [
        ("", AuthorityError::EmptyHost),
        (".", AuthorityError::EmptyHost),
        (":80", AuthorityError::EmptyHost),
        ("..", AuthorityError::EmptyLabel),
        ("a..", AuthorityError::EmptyLabel),
        ("a..b", AuthorityError::EmptyLabel),
        (".a", AuthorityError::EmptyLabel),
        (long.as_str(), AuthorityError::TooLong),
        ("user@secret.com", AuthorityError::UserInfo),
        ("secret.com@", AuthorityError::UserInfo),
        ("user:pw@secret.com:80", AuthorityError::UserInfo),
        ("secret .com", AuthorityError::HostByte),
        (" secret.com", AuthorityError::HostByte),
        ("secret.com\t", AuthorityError::HostByte),
        ("%73ecret.com", AuthorityError::HostByte),
        ("secret.com,other.com", AuthorityError::HostByte),
        ("secret.com/x", AuthorityError::HostByte),
        ("secret.com?x", AuthorityError::HostByte),
        ("secret.com#", AuthorityError::HostByte),
        ("sécret.com", AuthorityError::HostByte),
        ("secret.com\0", AuthorityError::HostByte),
        ("a\\b", AuthorityError::HostByte),
        ("*.secret.com", AuthorityError::HostByte),
        ("::1", AuthorityError::AfterHost),
        ("a:80:80", AuthorityError::AfterHost),
        ("[::1]x", AuthorityError::AfterHost),
        ("[::1]80", AuthorityError::AfterHost),
        ("[::1", AuthorityError::Ipv6),
        ("[]", AuthorityError::Ipv6),
        ("[::1%25eth0]", AuthorityError::Ipv6),
        ("[::1%eth0]", AuthorityError::Ipv6),
        ("[v1.x]", AuthorityError::Ipv6),
        ("[10.0.0.1]", AuthorityError::Ipv6),
        ("[secret.com]", AuthorityError::Ipv6),
        ("a]", AuthorityError::HostByte),
        ("127.1", AuthorityError::Ipv4),
        ("2130706433", AuthorityError::Ipv4),
        ("127.0.0.01", AuthorityError::Ipv4),
        ("256.0.0.1", AuthorityError::Ipv4),
        ("secret.1", AuthorityError::Ipv4),
        ("a:", AuthorityError::Port),
        ("a:0", AuthorityError::Port),
        ("a:080", AuthorityError::Port),
        ("a:65536", AuthorityError::Port),
        ("a:+80", AuthorityError::Port),
        ("a:-1", AuthorityError::Port),
        ("a:80 ", AuthorityError::Port),
        ("a:http", AuthorityError::Port),
        ("[::1]:", AuthorityError::Port),
    ] {
        assert_eq!(Authority::parse(text), Err(error), "{text:?}");
        assert!(canonical_host(text).is_err(), "{text:?}");
    }
}

#[test]
fn what_is_canonical_is_borrowed() {
    for text in ["secret.com:443", "secret.com.", "10.0.0.1", "[::1]:80"] {
        assert!(matches!(canonical_host(text), Ok(Cow::Borrowed(_))), "{text}");
    }
}

proptest! {
    #[test]
    fn spellings_of_a_host_are_equal(host in "[a-z][a-z0-9]{0,8}(\\.[a-z][a-z0-9]{0,8}){0,3}", port in 1u16.., upper: u64) {
        let spelled: String = host
            .chars()
            .enumerate()
            .map(|(i, c)| if upper >> (i % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect();
        for text in [spelled.clone(), format!("{spelled}."), format!("{spelled}:{port}"), format!("{spelled}.:{port}")] {
            let canonical = canonical_host(&text);
            prop_assert_eq!(canonical.as_deref(), Ok(host.as_str()));
        }
    }

    #[test]
    fn canonical_is_final(text in "[\\[\\]a-fA-F0-9:.@ %*-]{0,24}") {
        if let Ok(authority) = Authority::parse(&text) {
            prop_assert!(matches!(canonical_host(&authority.host), Ok(Cow::Borrowed(same)) if same == authority.host));
            prop_assert!(authority.host.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()));
            prop_assert!(!authority.host.ends_with('.') && authority.port != Some(0));
        }
    }

    #[test]
    fn nothing_panics(text in ".*") {
        let _ = Authority::parse(&text);
    }
}
