//! The log level, changeable at run time: a filter behind an atomic pointer, so that a log line never waits for a change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

/// The level in force, shared by whoever logs and whoever changes it.
#[derive(Debug, Clone)]
pub struct LogLevel(Arc<ArcSwap<Current>>);

#[derive(Debug)]
struct Current {
    text: String,
    filter: EnvFilter,
}

impl Current {
    /// Reads `info`, or `info,target=debug`. A bare word that is no level is refused: read as a target, it would silence
    /// everything else.
    fn read(text: &str) -> Result<Self, String> {
        let directives = || text.split(',').map(str::trim);
        if let Some(odd) = directives()
            .find(|d| d.is_empty() || !d.contains(['=', '[']) && d.parse::<LevelFilter>().is_err())
        {
            return Err(format!(
                "{odd:?} is not a level (error, warn, info, debug, trace, off) and not TARGET=LEVEL"
            ));
        }
        let filter = EnvFilter::try_new(text).map_err(|e| e.to_string())?;
        Ok(Self { text: text.to_owned(), filter })
    }
}

impl LogLevel {
    /// A level, or a filter such as `info,postern_proxy::identity=debug`.
    pub fn new(text: &str) -> Result<Self, String> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Current::read(text)?))))
    }

    /// What is in force.
    pub fn text(&self) -> String {
        self.0.load().text.clone()
    }

    /// Puts another one in force; what cannot be read changes nothing.
    pub fn set(&self, text: &str) -> Result<(), String> {
        self.0.store(Arc::new(Current::read(text)?));
        // Each place that logs remembers whether anybody listens.
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for LogLevel {
    fn enabled(&self, metadata: &Metadata<'_>, cx: &Context<'_, S>) -> bool {
        Filter::enabled(&self.0.load().filter, metadata, cx)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        Filter::<S>::callsite_enabled(&self.0.load().filter, metadata)
    }

    fn event_enabled(&self, event: &Event<'_>, cx: &Context<'_, S>) -> bool {
        Filter::event_enabled(&self.0.load().filter, event, cx)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Filter::<S>::max_level_hint(&self.0.load().filter)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        Filter::on_new_span(&self.0.load().filter, attributes, id, cx);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        Filter::on_record(&self.0.load().filter, id, values, cx);
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        Filter::on_enter(&self.0.load().filter, id, cx);
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        Filter::on_exit(&self.0.load().filter, id, cx);
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        Filter::on_close(&self.0.load().filter, id, cx);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    struct Counting(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Counting {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_change_holds_from_the_next_line_on() {
        let (level, lines) = (LogLevel::new("info").unwrap(), Arc::new(AtomicUsize::new(0)));
        let layer = Counting(Arc::clone(&lines)).with_filter(level.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let say = || {
                tracing::debug!("a detail");
                tracing::warn!("a warning");
                lines.swap(0, Ordering::Relaxed)
            };
            assert_eq!(say(), 1);
            level.set("debug").unwrap();
            assert_eq!(say(), 2);
            level.set("off,postern_proxy::telemetry=debug").unwrap();
            assert_eq!(say(), 2);
            level.set("off").unwrap();
            assert_eq!(say(), 0);
        });
    }

    #[test]
    fn a_mistyped_level_is_refused_and_changes_nothing() {
        let level = LogLevel::new("info,postern_proxy::identity=debug").unwrap();
        for wrong in ["", "debgu", "info,loud", "info,x=loud", "info,,x=debug"] {
            assert!(level.set(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(level.text(), "info,postern_proxy::identity=debug");
    }
}
