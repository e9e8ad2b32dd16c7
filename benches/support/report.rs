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

/// A baseline and ours, measured in turns.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pub(crate) baseline: Vec<f64>,
    pub(crate) ours: Vec<f64>,
    ratios: Vec<f64>,
}

impl Turns {
    /// Adds what was measured in one turn of each.
    pub(crate) fn add(&mut self, mut baseline: Vec<f64>, mut ours: Vec<f64>) {
        self.ratios.push(median(&mut ours) / median(&mut baseline));
        self.baseline.append(&mut baseline);
        self.ours.append(&mut ours);
    }

    /// How ours is to the baseline: the median over the turns, as a disturbance seldom meets two neighbours alike.
    pub(crate) fn ratio(&mut self) -> f64 {
        median(&mut self.ratios)
    }
}

/// Median and 99th percentile of times in microseconds.
pub(crate) fn times(figures: &mut [f64]) -> String {
    format!("median {:>8.1} us   p99 {:>8.1} us", median(figures), quantile(figures, 100))
}
