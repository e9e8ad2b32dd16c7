//! The figures as they are printed, and the verdict on the targets.

use std::process::ExitCode;
use std::time::Duration;

/// Collects the targets that were met and missed; prints each figure when it comes.
#[derive(Debug, Default)]
pub(crate) struct Report {
    verdicts: Vec<(bool, String)>,
}

/// On which side of a bound the figure has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Report {
    pub(crate) fn section(&self, title: &str) {
        println!("\n{title}");
    }

    pub(crate) fn figure(&self, name: &str, value: &str) {
        println!("  {name:<58} {value}");
    }

    pub(crate) fn target(&mut self, name: &str, value: f64, unit: &str, target: Target) {
        let (met, bound) = match target {
            Target::AtMost(bound) => (value <= bound, format!("at most {bound}")),
            Target::AtLeast(bound) => (value >= bound, format!("at least {bound}")),
        };
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        self.figure(name, &format!("{value:.2}{unit} (target: {bound}{unit})"));
        self.verdicts.push((met, format!("{name}: {value:.2}{unit}, target {bound}{unit}")));
    }

    /// Prints one line for each target; a failure if any was missed.
    pub(crate) fn verdict(&self) -> ExitCode {
        println!();
        for (met, line) in &self.verdicts {
            println!("{} {line}", if *met { "PASS" } else { "FAIL" });
        }
        if self.verdicts.iter().all(|(met, _)| *met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The middle one; zero of none.
pub(crate) fn median(figures: &mut [f64]) -> f64 {
    quantile(figures, 2)
}

/// The one that all but one part in `parts` are below.
pub(crate) fn quantile(figures: &mut [f64], parts: usize) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let at = figures.len().saturating_sub(figures.len() / parts.max(1)).min(figures.len().saturating_sub(1));
    figures.get(at).copied().unwrap_or_default()
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Median and 99th percentile of times in microseconds.
pub(crate) fn times(figures: &mut [f64]) -> String {
    format!("median {:>8.1} us   p99 {:>8.1} us", median(figures), quantile(figures, 100))
}
