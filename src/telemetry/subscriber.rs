//! Where the log goes: systemd's journal, or standard error as text or JSON. Decides once, at the start.

use std::io::IsTerminal;

use nix::sys::stat::fstat;
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::level::{Level, targets};
use crate::config::{self, Log, LogFormat};

type Filtered = Layered<reload::Layer<tracing_subscriber::filter::Targets, Registry>, Registry>;
type Output = Box<dyn Layer<Filtered> + Send + Sync>;

/// Installs the log for the whole process. Where a test harness has one of its own, that one stays.
pub(super) fn install(log: &Log) -> Level {
    let (filter, handle) = reload::Layer::new(targets(log.level));
    let (output, failed) = output(log.format);
    let installed = tracing_subscriber::registry().with(filter).with(output).try_init();
    if let (Ok(()), Some(error)) = (installed, failed) {
        tracing::warn!(%error, "the journal cannot be reached; logging JSON to standard error");
    }
    Level::new(handle, log.level)
}

/// The output for a format, and why the journal is not it where it should be.
fn output(format: LogFormat) -> (Output, Option<std::io::Error>) {
    let terminal = std::io::stderr().is_terminal();
    match format {
        LogFormat::Journald => journal(),
        LogFormat::Auto if to_journal() => journal(),
        LogFormat::Auto if terminal => (text(terminal), None),
        LogFormat::Text => (text(terminal), None),
        LogFormat::Auto | LogFormat::Json => (json(), None),
    }
}

/// Whether standard error is the stream that systemd made for the journal; the variable alone is inherited by anybody.
fn to_journal() -> bool {
    let stderr = fstat(std::io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    stderr.is_some() && config::journal_stream() == stderr
}

fn journal() -> (Output, Option<std::io::Error>) {
    match tracing_journald::layer() {
        Ok(layer) => {
            let layer = layer
                .with_field_prefix(Some("SIDEKEEP".into()))
                .with_syslog_identifier(env!("CARGO_PKG_NAME").into());
            (Box::new(layer), None)
        }
        Err(error) => (json(), Some(error)),
    }
}

fn json() -> Output {
    let format = fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(std::io::stderr);
    Box::new(format)
}

fn text(colors: bool) -> Output {
    Box::new(fmt::layer().with_ansi(colors).with_writer(std::io::stderr))
}
