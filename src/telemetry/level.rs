//! The least that is logged, while the daemon runs. Knows nothing of where the log goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::reload::Handle;

use crate::config::LogLevel;

/// Dependencies, by the beginnings of their targets, that write what passes through them, parameters of calls and of statements, into their finest levels.
const TALKATIVE: [&str; 4] = ["diesel", "hyper", "jsonrpsee", "tokio_postgres"];

/// What is logged at a level: all of sidekeep's own from there on, and of the dependencies what an operator should look at.
/// At `trace` they may say more, except those that would show what they carry.
pub(super) fn targets(level: LogLevel) -> Targets {
    let own = filter(level);
    let others = if level == LogLevel::Trace { LevelFilter::DEBUG } else { own.min(LevelFilter::WARN) };
    let talkative = own.min(LevelFilter::WARN);
    Targets::new()
        .with_default(others)
        .with_targets(TALKATIVE.map(|name| (name, talkative)))
        .with_target(env!("CARGO_CRATE_NAME"), own)
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// The level in force, and the one to fall back to.
#[derive(Clone, Debug)]
pub(super) struct Level {
    filter: Handle<Targets, Registry>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    set: LogLevel,
    current: LogLevel,
    /// Counts the changes, so that a lease knows whether it is still in force.
    change: u64,
}

impl Level {
    /// Governs `filter`, which lets through what [`targets`] says for `level`.
    pub(super) fn new(filter: Handle<Targets, Registry>, level: LogLevel) -> Self {
        let state = State { set: level, current: level, change: 0 };
        Self { filter, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn current(&self) -> LogLevel {
        self.state().current
    }

    /// Sets the level that stays.
    pub(super) fn set(&self, level: LogLevel) {
        let mut state = self.state();
        state.set = level;
        self.change(&mut state, level);
    }

    /// Sets a level until the lease is given back.
    pub(super) fn lend(&self, level: LogLevel) -> Lease {
        let mut state = self.state();
        self.change(&mut state, level);
        Lease { level: self.clone(), change: state.change }
    }

    /// Under the lock, so that filter and state never differ.
    fn change(&self, state: &mut State, level: LogLevel) {
        state.current = level;
        state.change = state.change.wrapping_add(1);
        // It fails only where the subscriber is gone, and nothing is logged any more.
        let _ = self.filter.reload(targets(level));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A level that is in force for a while.
#[derive(Debug)]
pub(super) struct Lease {
    level: Level,
    change: u64,
}

impl Lease {
    /// Sets the level that stays again, unless another was set meanwhile.
    pub(super) fn give_back(self) {
        let mut state = self.level.state();
        if state.change == self.change {
            let set = state.set;
            self.level.change(&mut state, set);
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level as At;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Registry, reload};

    use super::{Level, targets};
    use crate::config::LogLevel;

    #[test]
    fn no_dependency_that_shows_parameters_is_heard_below_warn() {
        for level in [LogLevel::Error, LogLevel::Info, LogLevel::Debug, LogLevel::Trace] {
            for target in [
                "jsonrpsee-server",
                "jsonrpsee_server::server",
                "jsonrpsee",
                "tokio_postgres::query",
                "hyper::proto",
            ] {
                assert!(!targets(level).would_enable(target, &At::INFO), "{target} at {level:?}");
            }
        }
        assert!(!targets(LogLevel::Debug).would_enable("rustls::client", &At::INFO));
        assert!(targets(LogLevel::Trace).would_enable("rustls::client", &At::DEBUG));
        assert!(targets(LogLevel::Trace).would_enable("sidekeep::rpc", &At::TRACE));
        assert!(!targets(LogLevel::Error).would_enable("rustls::client", &At::WARN));
    }

    #[test]
    fn a_lent_level_falls_back_unless_another_was_set() {
        let (layer, handle) = reload::Layer::new(targets(LogLevel::Info));
        let _subscriber = Registry::default().with(layer);
        let level = Level::new(handle.clone(), LogLevel::Info);
        let enabled = |at| handle.with_current(|now| now.would_enable("sidekeep", &at)).unwrap();

        let first = level.lend(LogLevel::Debug);
        let second = level.lend(LogLevel::Trace);
        first.give_back();
        assert!(enabled(At::TRACE), "the later lease is in force");
        second.give_back();
        assert!(!enabled(At::DEBUG) && enabled(At::INFO), "what was set is back");

        let third = level.lend(LogLevel::Error);
        level.set(LogLevel::Warn);
        third.give_back();
        assert_eq!(level.current(), LogLevel::Warn);
        assert!(!enabled(At::INFO) && enabled(At::WARN));
    }
}
