//! What is said of a connection that comes and goes: each loss and each connection, but a flapping link doesn't flood
//! the log. From the second loss within a minute on, one line at the minute's end sums up.

use std::time::Duration;
use tokio::time::Instant;

/// What one summary is about.
const WINDOW: Duration = Duration::from_secs(60);
/// Failed attempts, each for another reason than the one before, that are told of within a window.
const LOUD_ATTEMPTS: u32 = 3;

/// Whether a line is worth the operator's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    Loud,
    /// For whoever debugs; the summary counts it.
    Quiet,
}

/// Decides what is loud.
#[derive(Debug, Default)]
pub(super) struct Damper(Option<Window>);

/// The minute that began with the first trouble.
#[derive(Debug)]
struct Window {
    ends: Instant,
    losses: u32,
    attempts: u32,
    /// Attempts that were not told of.
    quiet_attempts: u32,
    last: String,
}

impl Window {
    fn new(now: Instant) -> Window {
        Window { ends: now + WINDOW, losses: 0, attempts: 0, quiet_attempts: 0, last: String::new() }
    }
}

impl Damper {
    /// The connection was lost.
    pub(super) fn lost(&mut self, now: Instant, reason: &str) -> Voice {
        let window = self.0.get_or_insert_with(|| Window::new(now));
        window.losses += 1;
        reason.clone_into(&mut window.last);
        if window.losses == 1 { Voice::Loud } else { Voice::Quiet }
    }

    /// A connection was made.
    pub(super) fn connected(&self) -> Voice {
        let flaps = self.0.as_ref().is_some_and(|window| window.losses > 1);
        if flaps { Voice::Quiet } else { Voice::Loud }
    }

    /// An attempt failed, for another reason than the one before.
    pub(super) fn failed(&mut self, now: Instant, reason: &str) -> Voice {
        let window = self.0.get_or_insert_with(|| Window::new(now));
        window.attempts += 1;
        if window.losses <= 1 && window.attempts <= LOUD_ATTEMPTS {
            return Voice::Loud;
        }
        window.quiet_attempts += 1;
        if window.losses <= 1 {
            reason.clone_into(&mut window.last);
        }
        Voice::Quiet
    }

    /// When [`Damper::sum_up`] has something to say, if it has.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.as_ref().map(|window| window.ends)
    }

    /// What was kept quiet, once the minute is over.
    pub(super) fn sum_up(&mut self, now: Instant) -> Option<String> {
        let window = self.0.take_if(|window| window.ends <= now)?;
        match (window.losses, window.quiet_attempts) {
            (2.., _) => Some(format!("was lost {} times in the last minute, last: {}", window.losses, window.last)),
            (_, 1..) => {
                Some(format!("couldn't be made for changing reasons in the last minute, last: {}", window.last))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_single_loss_is_told_of_in_full() {
        let (mut damper, start) = (Damper::default(), Instant::now());
        assert_eq!(damper.connected(), Voice::Loud);
        assert_eq!(damper.lost(start, "it closed the connection"), Voice::Loud);
        assert_eq!(damper.failed(start, "refused"), Voice::Loud);
        assert_eq!(damper.connected(), Voice::Loud);
        assert_eq!(damper.sum_up(start + seconds(59)), None);
        assert_eq!(damper.deadline(), Some(start + seconds(60)));
        assert_eq!(damper.sum_up(start + seconds(60)), None, "nothing was kept quiet");
        assert_eq!(damper.deadline(), None);
    }

    #[test]
    fn a_flapping_link_is_summed_up() {
        let (mut damper, start) = (Damper::default(), Instant::now());
        assert_eq!(damper.lost(start, "cut"), Voice::Loud);
        assert_eq!(damper.connected(), Voice::Loud);
        for second in 1..19 {
            assert_eq!(damper.lost(start + seconds(second), "cut again"), Voice::Quiet);
            assert_eq!(damper.failed(start + seconds(second), "unreachable"), Voice::Quiet);
            assert_eq!(damper.connected(), Voice::Quiet);
        }
        let summary = damper.sum_up(start + seconds(61));
        assert_eq!(summary.as_deref(), Some("was lost 19 times in the last minute, last: cut again"));
        // The next minute begins with the next loss.
        assert_eq!(damper.lost(start + seconds(62), "cut"), Voice::Loud);
        assert_eq!(damper.deadline(), Some(start + seconds(122)));
    }

    #[test]
    fn attempts_that_fail_for_changing_reasons_are_summed_up() {
        let (mut damper, start) = (Damper::default(), Instant::now());
        for attempt in 0..9 {
            let voice = damper.failed(start, if attempt % 2 == 0 { "this" } else { "that" });
            assert_eq!(voice, if attempt < 3 { Voice::Loud } else { Voice::Quiet });
        }
        assert!(damper.sum_up(start + seconds(60)).is_some_and(|summary| summary.ends_with("last: this")));
    }
}
