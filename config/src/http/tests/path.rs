use std::borrow::Cow;

use proptest::prelude::*;

use crate::http::path::{PathError, Rules, normalise};

fn both(raw: &str) -> (Result<String, PathError>, Result<String, PathError>) {
    let of = |rules| normalise(raw, rules).map(Cow::into_owned);
    (of(Rules::Basic), of(Rules::Strict))
}

/// What Envoy 1.40 was seen to do under BASE, and MERGE with REJECT.
#[test]
fn envoys_table() {
    for (raw, basic, strict) in [
        ("//admin", "//admin", "/admin"),
        ("/a//b", "/a//b", "/a/b"),
        ("/a/../admin", "/admin", "/admin"),
        ("/a/%2e%2e/admin", "/admin", "/admin"),
        ("/a/.%2e/admin", "/admin", "/admin"),
        ("/a/%2E./admin", "/admin", "/admin"),
        ("/%61dmin", "/admin", "/admin"),
        ("/admin;x=1", "/admin;x=1", "/admin;x=1"),
        ("/admin/;/x", "/admin/;/x", "/admin/;/x"),
        ("/a/b/../../..//admin", "//admin", "/admin"),
        ("/%252e%252e/admin", "/%252e%252e/admin", "/%252e%252e/admin"),
        ("/admin%23frag", "/admin%23frag", "/admin%23frag"),
        ("/admin%3Fx", "/admin%3Fx", "/admin%3Fx"),
        ("/%c0%ae%c0%ae/admin", "/%c0%ae%c0%ae/admin", "/%c0%ae%c0%ae/admin"),
        ("/ADMIN", "/ADMIN", "/ADMIN"),
        ("/admin/", "/admin/", "/admin/"),
        ("/admin%0d%0aX:1", "/admin%0d%0aX:1", "/admin%0d%0aX:1"),
        ("*", "*", "*"),
        ("/", "/", "/"),
        ("/.", "/", "/"),
        ("/..", "/", "/"),
        ("/./", "/", "/"),
        ("/a/.", "/a/", "/a/"),
        ("/a/..", "/", "/"),
        ("/a/b/..", "/a/", "/a/"),
        ("/a//../b", "/a/b", "/a/b"),
        ("//..//x", "//x", "/x"),
        ("/...", "/...", "/..."),
        ("/.well-known/x", "/.well-known/x", "/.well-known/x"),
        ("/a/..b/.c", "/a/..b/.c", "/a/..b/.c"),
        ("/%7euser/%2D%5F%41", "/~user/-_A", "/~user/-_A"),
        ("/%25%32%65", "/%252e", "/%252e"),
        ("/a\"<>^`{|}[]@!$&'()*+,=:", "/a\"<>^`{|}[]@!$&'()*+,=:", "/a\"<>^`{|}[]@!$&'()*+,=:"),
    ] {
        assert_eq!(both(raw), (Ok(basic.to_owned()), Ok(strict.to_owned())), "{raw}");
    }
}

#[test]
fn what_could_be_read_as_a_slash_is_refused_where_policies_look_at_paths() {
    for raw in ["/a%2fb", "/a%2Fb", "/a%5Cb", "/a%5cb", "/a%2F..%2Fadmin", "/a%5c..%5cadmin"] {
        assert_eq!(both(raw), (Ok(raw.to_owned()), Err(PathError::EscapedSlash)), "{raw}");
    }
    for raw in ["/a/..;/admin", "/a/..;x=1/admin", "/.;/admin"] {
        assert_eq!(both(raw), (Ok(raw.to_owned()), Err(PathError::DotParameter)), "{raw}");
    }
    for raw in ["/a/%2e%2e;/admin", "/a/.%2E;x", "/%2e;/admin"] {
        assert_eq!(normalise(raw, Rules::Strict), Err(PathError::DotParameter), "{raw}");
    }
}

#[test]
fn what_is_no_path_is_refused_under_both() {
    for (raw, error) in [
        ("", PathError::NotAbsolute),
        ("admin", PathError::NotAbsolute),
        ("**", PathError::NotAbsolute),
        ("*/", PathError::NotAbsolute),
        ("%2fadmin", PathError::NotAbsolute),
        ("http://other/admin", PathError::NotAbsolute),
        ("/admin%00", PathError::Nul),
        ("/admin\0", PathError::Byte),
        ("/a b", PathError::Byte),
        ("/a\tb", PathError::Byte),
        ("/a\r\nb", PathError::Byte),
        ("/a\u{7f}", PathError::Byte),
        ("/ü", PathError::Byte),
        ("/a#frag", PathError::Fragment),
        ("/a?x", PathError::Query),
        ("/a\\b", PathError::Backslash),
        ("/a%zz", PathError::Escape),
        ("/a%4", PathError::Escape),
        ("/a%", PathError::Escape),
        ("/a%+1", PathError::Escape),
        ("/a%2", PathError::Escape),
        ("/a%2é", PathError::Escape),
        ("/%u002e", PathError::Escape),
        // An error counts even behind something that has to be rewritten.
        ("/a/../b\\", PathError::Backslash),
        ("/%61/%zz", PathError::Escape),
    ] {
        assert_eq!(both(raw), (Err(error), Err(error)), "{raw:?}");
    }
}

/// RFC 3986 §5.2.4, to the letter.
fn remove_dot_segments(mut input: &str) -> String {
    let mut output = String::new();
    while !input.is_empty() {
        if input.starts_with("/./") {
            input = &input[2..];
        } else if input == "/." {
            input = "/";
        } else if input.starts_with("/../") || input == "/.." {
            input = if input == "/.." { "/" } else { &input[3..] };
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input = &input[end..];
        }
    }
    output
}

/// Paths made of what matters: slashes, dots and escapes are as likely as letters.
fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("/"),
        Just("/"),
        Just("."),
        Just(".."),
        Just("%2e"),
        Just("%2E"),
        Just("%2f"),
        Just("%5C"),
        Just("%41"),
        Just("%25"),
        Just("%3b"),
        Just("%zz"),
        Just("%"),
        Just("%00"),
        Just(";"),
        Just("a"),
        Just("2e"),
        Just("\\"),
        Just("é"),
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
}

proptest! {
    #[test]
    fn normal_is_final(raw in paths()) {
        for rules in [Rules::Basic, Rules::Strict] {
            if let Ok(once) = normalise(&raw, rules) {
                let twice = normalise(&once, rules);
                prop_assert!(matches!(twice, Ok(Cow::Borrowed(same)) if same == once), "{raw} {once} {twice:?}");
            }
        }
    }

    #[test]
    fn a_strict_path_has_one_reading(raw in paths()) {
        if let Ok(path) = normalise(&raw, Rules::Strict) {
            prop_assert!(path.starts_with('/'));
            prop_assert!(!path.contains("//"), "{path}");
            prop_assert!(!path.contains('\\') && !path.contains("%00"), "{path}");
            let lower = path.to_ascii_lowercase();
            prop_assert!(!["%2f", "%5c", "%2e", "%41"].iter().any(|e| lower.contains(e)), "{path}");
            prop_assert!(path.split('/').all(|s| !matches!(s.split(';').next(), Some("." | ".."))), "{path}");
        }
    }

    #[test]
    fn what_changes_nothing_allocates_nothing(raw in paths()) {
        for rules in [Rules::Basic, Rules::Strict] {
            if let Ok(Cow::Owned(new)) = normalise(&raw, rules) {
                prop_assert_ne!(new, raw.clone());
            }
        }
    }

    #[test]
    fn dot_segments_go_as_the_rfc_says(raw in paths()) {
        if let Ok(path) = normalise(&raw, Rules::Basic) {
            let decoded = ["%2e", "%2E"].iter().fold(raw.replace("%41", "A"), |text, e| text.replace(e, "."));
            prop_assert_eq!(path, remove_dot_segments(&decoded));
        }
    }

    #[test]
    fn nothing_panics(raw in ".*") {
        for rules in [Rules::Basic, Rules::Strict] {
            let _ = normalise(&raw, rules);
            let _ = normalise(&format!("/{raw}"), rules);
        }
    }
}
