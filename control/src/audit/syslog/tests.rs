use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn record() -> Record {
    Record {
        chain: "01JD".to_owned(),
        seq: 7,
        at: 1_764_000_000_123,
        id: "01JE".to_owned(),
        actor: "uid 0".to_owned(),
        action: "ca rotate".to_owned(),
        subject: "spiffe://corp.example/a".to_owned(),
        outcome: "done".to_owned(),
        detail: json!({ "reason": "grün" }),
        prev: String::new(),
        hash: "ab".to_owned(),
    }
}

#[test]
fn a_record_reads_as_rfc_5424_wants_it() {
    assert_eq!(
        message(&record(), "control-1"),
        r#"<109>1 2025-11-24T16:00:00.123Z control-1 postern - ca-rotate [postern@32473 chain="01JD" seq="7" id="01JE" actor="uid 0" action="ca rotate" subject="spiffe://corp.example/a" outcome="done" hash="ab"] {"reason":"gr\u00fcn"}"#
    );
    let refused = Record { outcome: "refused".to_owned(), at: i64::MAX, ..record() };
    assert!(message(&refused, "").starts_with("<108>1 - - postern - ca-rotate ["));
}

#[test]
fn a_message_has_a_bound_and_what_identifies_the_record_stands_within_it() {
    let long = "]".repeat(100_000);
    let record =
        Record { subject: long.clone(), actor: long.clone(), detail: json!({ "x": long }), ..record() };
    let text = message(&record, &"h".repeat(1000));
    assert_eq!(text.len(), MAX);
    let (values, _) = read(&text).unwrap();
    assert_eq!((values["seq"].as_str(), values["hash"].as_str()), ("7", "ab"));
}

/// Reads a message as RFC 5424 says: its structured data, and its text.
fn read(text: &str) -> Option<(BTreeMap<String, String>, String)> {
    let mut header = text.splitn(7, ' ');
    assert!(
        header.by_ref().take(6).all(|field| !field.is_empty() && field.bytes().all(|b| b.is_ascii_graphic()))
    );
    let mut rest = header.next()?.strip_prefix('[')?.strip_prefix(ELEMENT)?;
    let mut values = BTreeMap::new();
    while let Some(param) = rest.strip_prefix(' ') {
        let (name, quoted) = param.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), quoted.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, ']') => return None,
                (_, '\\') => value.push(chars.next().filter(|(_, c)| matches!(c, '"' | '\\' | ']'))?.1),
                (_, c) => value.push(c),
            }
        };
        values.insert(name.to_owned(), value);
        rest = quoted.get(end + 1..)?;
    }
    Some((values, rest.strip_prefix("] ")?.to_owned()))
}

proptest! {
    #[test]
    fn whatever_a_record_says_reads_back_and_stays_on_its_line(
        actor in any::<String>(),
        subject in r#"[\]"\\a\n \u{2028}é=\[]{0,80}"#,
        action in any::<String>(),
        host in any::<String>(),
        detail in any::<String>(),
    ) {
        let record = Record { actor, subject, action, detail: json!({ "why": detail }), ..record() };
        let text = message(&record, &host);
        prop_assert!(text.len() <= MAX);
        prop_assert!(!text.contains(|c: char| c.is_control()));
        let (values, said) = read(&text).unwrap();
        let shown = |value: &str| -> String {
            let cut = &value[..value.floor_char_boundary(MAX_VALUE)];
            cut.chars().map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { NONE } else { c }).collect()
        };
        prop_assert_eq!(&values["actor"], &shown(&record.actor));
        prop_assert_eq!(&values["subject"], &shown(&record.subject));
        prop_assert_eq!(&values["action"], &shown(&record.action));
        if text.len() < MAX {
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&said).unwrap(), record.detail);
        }
    }
}
