//! As much of SVG as the plots need: lines and bars with axes, a title and a description.

use std::fmt::Write as _;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 300.0;
/// Left, top, right, bottom: room for the axes' words.
const MARGIN: (f64, f64, f64, f64) = (80.0, 30.0, 16.0, 44.0);
/// As many colours as the page's style knows.
const COLOURS: usize = 6;
/// More names than this do not fit above a plot.
const MAX_LEGEND: usize = 8;
/// How long a name may be in a drawing, in characters.
const MAX_NAME: usize = 28;

/// Text for HTML and SVG, in elements and in quoted attributes. Control characters become blanks.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// One curve.
pub(super) struct Series {
    pub(super) name: String,
    /// Where its points lie, in the units of the axes.
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot of curves.
pub(super) struct Lines<'a> {
    pub(super) title: &'a str,
    /// What a reader who does not see it is told.
    pub(super) description: String,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Marks of the x axis: where, and the word.
    pub(super) marks: Vec<(f64, String)>,
    /// Whether y grows by factors.
    pub(super) is_log: bool,
    pub(super) series: Vec<Series>,
}

impl Lines<'_> {
    pub(super) fn draw(&self) -> String {
        let points =
            || self.series.iter().flat_map(|s| &s.points).filter(|(x, y)| x.is_finite() && y.is_finite());
        let (left, right) = extent(points().map(|p| p.0), 0.0);
        let (low, high) = extent(points().map(|p| p.1).filter(|y| !self.is_log || *y > 0.0), 0.0);
        let low = if self.is_log { low.max(1e-3) } else { 0.0 };
        let high = high.max(low * 1.01).max(1e-3);
        let at_x = |x: f64| MARGIN.0 + (x - left) / (right - left).max(1e-9) * (WIDTH - MARGIN.0 - MARGIN.2);
        let at_y = |y: f64| {
            let share = match self.is_log {
                true => (y.max(low).ln() - low.ln()) / (high.ln() - low.ln()).max(1e-9),
                false => (y - low) / (high - low),
            };
            HEIGHT - MARGIN.3 - share * (HEIGHT - MARGIN.1 - MARGIN.3)
        };
        let mut out = begin(self.title, &self.description, HEIGHT);
        for y in ticks(low, high, self.is_log) {
            let at = at_y(y);
            let _ = write!(
                out,
                r#"<line class="grid" x1="{:.1}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                MARGIN.0,
                WIDTH - MARGIN.2,
                MARGIN.0 - 6.0,
                at + 4.0,
                number(y)
            );
        }
        for (x, word) in self.marks.iter().filter(|(x, _)| (left..=right).contains(x)) {
            let _ = write!(
                out,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                at_x(*x),
                HEIGHT - MARGIN.3 + 16.0,
                escape(word)
            );
        }
        for (n, series) in self.series.iter().enumerate() {
            let path: Vec<String> = series
                .points
                .iter()
                .filter(|(x, y)| x.is_finite() && y.is_finite())
                .map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y)))
                .collect();
            let colour = n % COLOURS;
            let _ = write!(
                out,
                r#"<polyline class="line" stroke="var(--c{colour})" points="{}"/>"#,
                path.join(" ")
            );
            if n < MAX_LEGEND && self.series.len() > 1 {
                let y = MARGIN.1 + 14.0 * n as f64 + 10.0;
                let _ = write!(
                    out,
                    r#"<text x="{:.1}" y="{y:.1}" style="fill: var(--c{colour})">{}</text>"#,
                    MARGIN.0 + 8.0,
                    escape(&short(&series.name))
                );
            }
        }
        let _ = write!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text><text x="4" y="16">{}</text></svg>"#,
            WIDTH / 2.0,
            HEIGHT - 6.0,
            escape(self.x),
            escape(self.y)
        );
        out + "\n"
    }
}

/// Bars beside each other, one for each name.
pub(super) fn bars(title: &str, unit: &str, values: &[(String, f64)]) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 220.0;
    let values: Vec<_> = values.iter().filter(|(_, value)| value.is_finite() && *value >= 0.0).collect();
    let longest = values.iter().map(|(_, value)| *value).fold(1e-9, f64::max);
    let told: Vec<String> =
        values.iter().map(|(name, value)| format!("{name}: {} {unit}", number(*value))).collect();
    let mut out = begin(title, &told.join("; "), 30.0 + ROW * values.len() as f64);
    let _ = write!(out, r#"<text x="4" y="16">{}</text>"#, escape(&format!("{title}, {unit}")));
    for (n, (name, value)) in values.iter().enumerate() {
        let (y, width) = (30.0 + ROW * n as f64, value / longest * (WIDTH - NAMES - 90.0));
        let _ = write!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect x="{NAMES:.1}" y="{y:.1}" width="{width:.1}" height="16" style="fill: var(--c{})"/><text x="{:.1}" y="{:.1}">{}</text>"#,
            NAMES - 8.0,
            y + 12.0,
            escape(&short(name)),
            n % COLOURS,
            NAMES + width + 6.0,
            y + 12.0,
            number(*value)
        );
    }
    out + "</svg>\n"
}

fn begin(title: &str, description: &str, height: f64) -> String {
    // Without ids: two plots of one page may have one title.
    format!(
        r#"<svg role="img" aria-label="{0}" viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg"><title>{0}</title><desc>{1}</desc>"#,
        escape(title),
        escape(description)
    )
}

fn short(name: &str) -> String {
    match name.chars().count() > MAX_NAME {
        true => name.chars().take(MAX_NAME - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

fn extent(values: impl Iterator<Item = f64>, otherwise: f64) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low <= high { (low, high) } else { (otherwise, otherwise) }
}

/// Round values between two, few enough to be read.
fn ticks(low: f64, high: f64, is_log: bool) -> Vec<f64> {
    if is_log {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let marks =
            (first.max(-3)..=last.min(12)).flat_map(|power| [1.0, 3.0].map(|m| m * 10_f64.powi(power)));
        return marks.filter(|mark| (low..=high).contains(mark)).collect();
    }
    let rough = (high - low).max(1e-9) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    (0..=6).map(|n| low + step * f64::from(n)).filter(|mark| *mark <= high).collect()
}

/// A number as people read it: three digits, and a letter for thousands.
pub(super) fn number(value: f64) -> String {
    let (value, letter) = match value.abs() {
        a if a >= 1e9 => (value / 1e9, "G"),
        a if a >= 1e6 => (value / 1e6, "M"),
        a if a >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        a if a >= 100.0 || a == 0.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_stays_text() {
        assert_eq!(escape("<a href=\"x\" b='y'>&\u{1b}"), "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp; ");
    }

    #[test]
    fn numbers_are_short() {
        let told: Vec<String> = [0.0, 0.5, 1.25, 42.0, 999.4, 12_345.0, 2.5e6, 3e9].map(number).into();
        assert_eq!(told, ["0", "0.5", "1.25", "42", "999", "12.3k", "2.5M", "3G"]);
    }

    #[test]
    fn a_plot_of_anything_has_finite_places() {
        let strange = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, f64::MIN_POSITIVE];
        for is_log in [false, true] {
            let points = strange.iter().flat_map(|x| strange.iter().map(|y| (*x, *y))).collect();
            let series = vec![
                Series { name: "<i>".to_owned(), points },
                Series { name: String::new(), points: vec![] },
            ];
            let drawn = Lines {
                title: "t",
                description: String::new(),
                x: "x",
                y: "y",
                marks: Vec::new(),
                is_log,
                series,
            }
            .draw();
            assert!(!drawn.contains("NaN") && !drawn.contains("inf") && !drawn.contains("<i>"), "{drawn}");
        }
    }
}
