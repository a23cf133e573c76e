//! Audit records as syslog messages (RFC 5424): what identifies a record is structured data, its detail is the message.
//!
//! A record holds no secret, so neither does its message. Nothing in it ends a line, so it can be sent with either framing of
//! RFC 6587.

use std::fmt::Write as _;

use crate::store::Record;

/// The longest message, in bytes: what common daemons take by default.
pub const MAX: usize = 8192;
/// The longest value of structured data, in bytes before escaping.
const MAX_VALUE: usize = 512;
/// Facility 13, log audit.
const FACILITY: u8 = 13;
/// Severity of what was refused: warning. Of what was done: notice.
const SEVERITIES: (u8, u8) = (4, 5);
/// Structured data's name with the enterprise number that is free for all (RFC 5612); there is no other for this program.
const ELEMENT: &str = "postern@32473";
/// In place of what is no character of a line.
const NONE: char = char::REPLACEMENT_CHARACTER;

/// The message for one record, as sent by `host`; without framing.
pub fn message(record: &Record, host: &str) -> String {
    let severity = if record.outcome == "refused" { SEVERITIES.0 } else { SEVERITIES.1 };
    let priority = FACILITY * 8 + severity;
    let mut text = format!(
        "<{priority}>1 {} {} postern - {} [{ELEMENT}",
        time(record.at),
        word(host, 255),
        word(&record.action, 32)
    );
    let seq = record.seq.to_string();
    let values = [
        ("chain", &record.chain),
        ("seq", &seq),
        ("id", &record.id),
        ("actor", &record.actor),
        ("action", &record.action),
        ("subject", &record.subject),
        ("outcome", &record.outcome),
        ("hash", &record.hash),
    ];
    for (name, value) in values {
        let _ = write!(text, " {name}=\"{}\"", escaped(value));
    }
    text.push_str("] ");
    let detail = ascii(&record.detail.to_string());
    let room = MAX.saturating_sub(text.len());
    // The structured data is at most half of it, so there is room for something; a cut detail is no JSON any more, and shows it.
    text.push_str(detail.get(..room).unwrap_or(&detail));
    text
}

/// RFC 5424 TIMESTAMP in UTC with milliseconds; `-` for what no clock can show.
fn time(at: i64) -> String {
    match jiff::Timestamp::from_millisecond(at) {
        Ok(at) if (0..=253_402_300_799).contains(&at.as_second()) => {
            at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
        }
        _ => "-".to_owned(),
    }
}

/// A field of the header: printable ASCII without spaces, `-` for nothing.
fn word(text: &str, longest: usize) -> String {
    let printed = |c: char| if c.is_ascii_graphic() { c } else { '-' };
    let word: String = text.chars().take(longest).map(printed).collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

/// PARAM-VALUE: `"`, `\` and `]` behind a backslash.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.get(..value.floor_char_boundary(MAX_VALUE)).unwrap_or_default().chars() {
        if matches!(c, '"' | '\\' | ']') {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { NONE } else { c });
    }
    escaped
}

/// JSON in ASCII: any byte is a place to cut it, and no receiver has to know the encoding.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        match c {
            ' '..='~' => text.push(c),
            // serde_json escapes everything below a space, so this stands inside of a string.
            _ => c.encode_utf16(&mut units).iter().for_each(|unit| {
                let _ = write!(text, "\\u{unit:04x}");
            }),
        }
    }
    text
}

#[cfg(test)]
mod tests;
