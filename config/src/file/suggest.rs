//! A cure for unknown names: the nearest known one.

/// The greatest edit distance at which a name is still taken for a slip of the fingers.
const MAX_DISTANCE: usize = 3;

/// "unknown field `x`; did you mean `y`?", or what is known where nothing is near.
pub(super) fn unknown(what: &str, written: &str, known: &[&str]) -> String {
    // Of equally near ones, the one that begins alike: first letters are seldom slips.
    let begins_alike = |name: &str| written.chars().next() == name.chars().next();
    let nearest = known.iter().map(|name| (distance(written, name), !begins_alike(name), name)).min();
    match nearest {
        Some((near, _, name)) if near <= MAX_DISTANCE && near < written.len() => {
            format!("unknown {what} `{written}`; did you mean `{name}`?")
        }
        _ => {
            let names: Vec<String> = known.iter().map(|n| format!("`{n}`")).collect();
            format!("unknown {what} `{written}`; known here: {}", names.join(", "))
        }
    }
}

/// Says what to write instead, where a message only says that something is wrong.
pub(super) fn cure(message: &str) -> String {
    match message {
        "invalid socket address syntax" => {
            "not an address; write `ip:port`, such as 127.0.0.1:8080".to_owned()
        }
        "only single YAML document expected but multiple found" => {
            "a second document begins here; this file holds one".to_owned()
        }
        other => other.to_owned(),
    }
}

/// Levenshtein's distance in bytes, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
