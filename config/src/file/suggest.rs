//! Turns a parser's message into one with a cure: unknown fields get the nearest known name.

/// The greatest edit distance at which a name is still taken for a slip of the fingers.
const MAX_DISTANCE: usize = 3;

/// Rewrites "unknown field `x`, expected one of …" into "unknown field `x`; did you mean `y`?".
pub(super) fn improve(message: &str) -> String {
    let Some((head, known)) = message.split_once(", expected ") else { return message.to_owned() };
    if !(head.starts_with("unknown field") || head.starts_with("unknown variant")) {
        return message.to_owned();
    }
    let Some(written) = quoted(head).next() else { return message.to_owned() };
    let nearest = quoted(known).map(|name| (distance(written, name), name)).min();
    match nearest {
        Some((near, name)) if near <= MAX_DISTANCE && near < written.len() => {
            format!("{head}; did you mean `{name}`?")
        }
        _ => {
            let names: Vec<String> = quoted(known).map(|n| format!("`{n}`")).collect();
            format!("{head}; known here: {}", names.join(", "))
        }
    }
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
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
