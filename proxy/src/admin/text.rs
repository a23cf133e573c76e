//! The operators' answers for people: any JSON as indented lines, lists of like things as tables.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// `value` as text, ending with a line break.
pub fn render(value: &Value) -> String {
    let mut out = String::new();
    block(&mut out, value, 0);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn block(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) => {
            let width = fields.keys().map(String::len).max().unwrap_or(0);
            for (name, value) in fields {
                field(out, name, value, width, depth);
            }
        }
        Value::Array(rows) => match flat(rows) {
            Some(rows) => table(out, &rows, depth),
            None => {
                for row in rows {
                    indent(out, depth);
                    out.push_str("-\n");
                    block(out, row, depth + 1);
                }
            }
        },
        scalar => {
            indent(out, depth);
            out.push_str(&word(scalar));
            out.push('\n');
        }
    }
}

fn field(out: &mut String, name: &str, value: &Value, width: usize, depth: usize) {
    indent(out, depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let _ = writeln!(out, "{name}");
            block(out, value, depth + 1);
        }
        Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => {
            let _ = writeln!(out, "{name}");
            block(out, value, depth + 1);
        }
        Value::String(text) if text.contains('\n') => {
            let _ = writeln!(out, "{name}\n{}", text.trim_end());
        }
        scalar => {
            let _ = writeln!(out, "{name:width$}  {}", word(scalar));
        }
    }
}

/// The rows, if each is an object of nothing but words.
fn flat(rows: &[Value]) -> Option<Vec<&Map<String, Value>>> {
    let is_word =
        |v: &Value| !v.is_object() && !v.as_array().is_some_and(|a| a.iter().any(|i| !is_scalar(i)));
    rows.iter().map(|row| row.as_object().filter(|fields| fields.values().all(is_word))).collect()
}

fn is_scalar(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

fn table(out: &mut String, rows: &[&Map<String, Value>], depth: usize) {
    let Some(first) = rows.first() else { return };
    let names: Vec<&String> = first.keys().collect();
    let cells =
        |row: &Map<String, Value>| names.iter().map(|n| row.get(*n).map_or(String::new(), word)).collect();
    let mut lines: Vec<Vec<String>> = vec![names.iter().map(|n| (*n).clone()).collect()];
    lines.extend(rows.iter().map(|row| cells(row)));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    for line in &lines {
        indent(out, depth);
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(padded.join("  ").trim_end());
        out.push('\n');
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_lines_and_lists_of_like_things_are_tables() {
        let text = render(&json!({
            "open": 2,
            "next": null,
            "connections": [{ "id": "0.1", "peer": "a" }, { "id": "0.17", "peer": "bcd" }],
            "inner": { "x": ["p", "q"] },
            "pem": "one\ntwo\n",
        }));
        let expected = "\
connections
  id    peer
  0.1   a
  0.17  bcd
inner
  x  p, q
next         –
open         2
pem
one
two
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_no_object_is_shown_all_the_same() {
        assert_eq!(render(&json!("x")), "x\n");
        assert_eq!(render(&json!([])), "\n");
        assert_eq!(render(&json!([{ "a": { "b": 1 } }])), "-\n  a\n    b  1\n");
    }
}
