//! How long clients waited, round by round; written for docs/failover.md.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::guest::{kernel, results};

/// The steps of several rounds, as milliseconds since each round's beginning.
pub struct Times {
    title: &'static str,
    steps: &'static [&'static str],
    rounds: Vec<Vec<u128>>,
}

impl Times {
    /// A table with one row for each of these steps.
    pub fn new(title: &'static str, steps: &'static [&'static str]) -> Times {
        Times { title, steps, rounds: Vec::new() }
    }

    /// Adds a round: when it began, and when each step was over.
    pub fn add(&mut self, began: Instant, steps: &[Instant]) {
        let since = |at: &Instant| at.saturating_duration_since(began).as_millis();
        self.add_ms(&steps.iter().map(since).collect::<Vec<_>>());
    }

    /// Adds a round by its milliseconds.
    pub fn add_ms(&mut self, steps_ms: &[u128]) {
        assert_eq!(steps_ms.len(), self.steps.len(), "one time for each step");
        println!("{}, round {}: {steps_ms:?} ms", self.title, self.rounds.len() + 1);
        self.rounds.push(steps_ms.to_owned());
    }

    /// Writes the table to a file for the host, and prints it.
    pub fn write(&self, name: &str) {
        let mut text = format!("{}, Linux {}, {} rounds:\n\n", self.title, kernel(), self.rounds.len());
        text.push_str("| | median | worst |\n|---|---|---|\n");
        for (at, step) in self.steps.iter().enumerate() {
            let mut column: Vec<u128> = self.rounds.iter().map(|round| round[at]).collect();
            column.sort_unstable();
            let (Some(median), Some(worst)) = (column.get(column.len() / 2), column.last()) else { continue };
            let _ = writeln!(text, "| {step} | {} | {} |", seconds(*median), seconds(*worst));
        }
        println!("{text}");
        std::fs::write(results(name), text).expect("write a result");
    }
}

fn seconds(ms: u128) -> String {
    format!("{:.2} s", Duration::from_millis(ms as u64).as_secs_f64())
}
