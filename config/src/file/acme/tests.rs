use super::*;
use crate::file::parse;

const GOOD: &str =
    "name: le\ndirectory: https://acme.test/dir\nterms_of_service_agreed: true\nstorage: /var/lib/acme\n";

fn check(texts: &[String]) -> Result<(), String> {
    let issuers: Vec<AcmeIssuer> =
        texts.iter().map(|t| parse(t).map_err(|e| e.to_string())).collect::<Result<_, _>>()?;
    super::check("acme", &issuers).map_err(|e| e.to_string())
}

#[test]
fn an_issuer_that_makes_no_sense_says_why() {
    assert_eq!(check(&[GOOD.to_owned()]), Ok(()));
    assert_eq!(check(&[format!("{GOOD}contact: ['mailto:ops@example.com']\nchallenge: both")]), Ok(()));
    for (text, part) in [
        (GOOD.replace("https", "http"), "must begin with https://"),
        (GOOD.replace("true", "false"), "read the issuer's terms"),
        (GOOD.replace("terms_of_service_agreed: true\n", ""), "terms_of_service_agreed"),
        (GOOD.replace("/var/lib/acme", "''"), "`storage` is empty"),
        (GOOD.replace("name: le", "name: ''"), "`name`"),
        (format!("{GOOD}contact: ['ops@example.com']"), "mailto:"),
        (format!("{GOOD}contact: ['mailto:a@b?bcc=c@d']"), "mailto:"),
        (format!("{GOOD}challenge: dns-01"), "dns-01"),
    ] {
        let error = check(std::slice::from_ref(&text)).expect_err(&text);
        assert!(error.contains(part), "{text}: {error}");
    }
    let twice = check(&[GOOD.to_owned(), GOOD.to_owned()]).unwrap_err();
    assert_eq!(twice, "acme[1]: the name \"le\" is taken by an earlier issuer");
    let shared = check(&[GOOD.to_owned(), GOOD.replace("name: le", "name: other")]).unwrap_err();
    assert!(shared.contains("each account needs its own"), "{shared}");
}

#[test]
fn a_certificate_is_ordered_for_names_alone() {
    for good in ["example.com", "a-1.b.example.com", "localhost", "xn--bcher-kva.example", "1.example"] {
        assert!(is_orderable(good), "{good}");
    }
    let long = format!("{}.com", "a".repeat(64));
    for bad in [
        "*.example.com",
        "Example.com",
        "a..b",
        ".a",
        "a.",
        "-a.b",
        "a_b.c",
        "127.0.0.1",
        "[::1]",
        "",
        "a/b",
        &long,
    ] {
        assert!(!is_orderable(bad), "{bad}");
    }
}
