use super::*;
use crate::file::parse;

const GOOD: &str =
    "name: a\nissuer: https://a.test/\naudiences: [api]\njwks: { url: \"https://a.test/keys\" }\n";

fn provider(text: &str) -> Result<JwtProvider, String> {
    let provider: JwtProvider = parse(text).map_err(|e| e.to_string())?;
    check("jwt.providers", std::slice::from_ref(&provider)).map_err(|e| e.to_string())?;
    Ok(provider)
}

#[test]
fn a_provider_has_defaults_that_give_nothing_away() {
    let provider = provider(GOOD).unwrap();
    assert!(!provider.forward);
    assert!(!provider.jwks.allow_loopback);
    assert_eq!(provider.from, bearer());
    assert_eq!(
        (provider.jwks.refresh, provider.jwks.max_age),
        (Span::from_secs(300), Span::from_secs(86400))
    );
}

#[test]
fn a_provider_that_makes_no_sense_says_why() {
    let url = |url: &str| GOOD.replace("https://a.test/keys", url);
    for (text, part) in [
        (url("http://a.test/keys"), "must begin with https://"),
        (url("file:///etc/keys"), "write it as https://host/path"),
        (url("https://u:p@a.test/"), "without user and password"),
        (url("https://a.test:x/"), "port is not a number"),
        (url("https://a.test:99999/"), "https"),
        (url("https://"), "https"),
        (url("https://a.test/#k"), "fragment"),
        (GOOD.replace("[api]", "[]"), "audiences"),
        (GOOD.replace("name: a", "name: ''"), "`name`"),
        (GOOD.replace("issuer: https://a.test/", "issuer: ''"), "`issuer` is empty"),
        (GOOD.replace("jwks: {", "jwks: { file: /k,"), "either `jwks.url` or `jwks.file`"),
        (GOOD.replace("url: \"https://a.test/keys\"", "ca: /k"), "either `jwks.url` or `jwks.file`"),
        (GOOD.replace("url: \"https://a.test/keys\"", "file: /k, ca: /c"), "`jwks.ca`"),
        (GOOD.replace("jwks: {", "jwks: { refresh: 1s,"), "at least 10s"),
        (GOOD.replace("jwks: {", "jwks: { max_age: 1m,"), "at least 10s"),
        (format!("{GOOD}from: []"), "`from` is empty"),
        (format!("{GOOD}from: [{{ header: a, cookie: b }}]"), "one of"),
        (format!("{GOOD}from: [{{ header: 'a b' }}]"), "not the name of a header"),
        (format!("{GOOD}from: [{{ header: cookie }}]"), "cannot be Host or Cookie"),
        (format!("{GOOD}from: [{{ cookie: 'a;b' }}]"), "letters"),
        (format!("{GOOD}from: [{{ cookie: a, prefix: Bearer }}]"), "goes with `from.header`"),
        (format!("{GOOD}from: [{{ header: a, prefix: 'a b' }}]"), "one word"),
    ] {
        let error = provider(&text).expect_err(&text);
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_rule_names_providers_that_can_be_told_apart() {
    let a = provider(GOOD).unwrap();
    let b = provider(&GOOD.replace("name: a", "name: b")).unwrap();
    let providers = [a.clone(), b];
    let rule = |names: &[&str], required| {
        let rule = JwtRule { providers: names.iter().map(|n| (*n).to_owned()).collect(), required };
        rule.check("here", &providers).map_err(|e| e.to_string())
    };
    assert_eq!(rule(&["a"], true), Ok(()));
    assert_eq!(rule(&[], false), Ok(()));
    assert!(rule(&["c"], false).unwrap_err().contains("no provider is called \"c\""));
    assert!(rule(&["a", "b"], false).unwrap_err().contains("which is meant"));
    assert!(rule(&[], true).unwrap_err().contains("refuse every request"));
    let twice = check("jwt.providers", &[a.clone(), a]).unwrap_err();
    assert_eq!(twice.to_string(), "jwt.providers[1]: the name \"a\" is taken by an earlier provider");
}
