//! How fast a resync may go while clients write.
//!
//! While nobody writes it goes as fast as it can. Otherwise one window at a time goes, and then there is a pause. What a
//! write takes is measured in the pauses and over all; the pauses grow until the mean over all is within
//! [`FACTOR`] of the one in the pauses. So there is nothing to configure, and no disk to know.

use std::time::Duration;

/// How much longer a client's write may take in the mean than it takes while no window is under way.
pub const FACTOR: f64 = 2.0;
/// Clients count as writing for so long after an answer.
const ACTIVE: Duration = Duration::from_millis(250);
/// The pause after a window in multiples of what the window took: at least, and at most. At least, or there would be
/// nothing to compare with; at most, so that a resync has an eighth of the time whatever clients do: it must end before a
/// staging log is full of what they write meanwhile.
const RATIO: (f64, f64) = (0.25, 7.0);
/// Answers after which the pauses are looked at again.
const SAMPLES: u32 = 32;

/// The mean of what was measured last.
#[derive(Debug, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: f64) {
        let mean = self.0.unwrap_or(value);
        self.0 = Some(mean + (value - mean) / 64.0);
    }
}

/// What is measured, and what follows from it.
#[derive(Debug)]
pub struct Pace {
    quiet: Mean,
    all: Mean,
    samples: u32,
    ratio: f64,
    last_answer: Option<Duration>,
    began: Duration,
    resume_at: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            quiet: Mean::default(),
            all: Mean::default(),
            samples: 0,
            ratio: 1.0,
            last_answer: None,
            began: Duration::ZERO,
            resume_at: Duration::ZERO,
        }
    }
}

impl Pace {
    /// A client's write was answered; `disturbed`: a window was under way meanwhile.
    pub fn handle_answer(&mut self, now: Duration, took: Duration, disturbed: bool) {
        self.last_answer = Some(now);
        let took = took.as_secs_f64();
        self.all.add(took);
        if !disturbed {
            self.quiet.add(took);
        }
        self.samples += 1;
        if self.samples < SAMPLES {
            return;
        }
        self.samples = 0;
        if let (Some(quiet), Some(all)) = (self.quiet.0, self.all.0) {
            // Below the bound by some room, for it is only seen when it was crossed.
            let within = all <= quiet * (1.0 + (FACTOR - 1.0) * 0.7);
            self.ratio = (if within { self.ratio * 0.9 } else { self.ratio * 1.5 }).clamp(RATIO.0, RATIO.1);
        }
    }

    /// Whether clients write at the moment.
    pub fn active(&self, now: Duration) -> bool {
        self.last_answer.is_some_and(|last| now < last + ACTIVE)
    }

    /// Whether another window may be started beside so many.
    pub fn may_start(&self, now: Duration, under_way: usize) -> bool {
        !self.active(now) || (under_way == 0 && now >= self.resume_at)
    }

    /// A window was started, the only one.
    pub fn handle_started(&mut self, now: Duration) {
        self.began = now;
    }

    /// No window is under way any more.
    pub fn handle_idle(&mut self, now: Duration) {
        self.resume_at = now + now.saturating_sub(self.began).mul_f64(self.ratio);
    }

    /// When another window may be started, if that isn't now.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        (self.active(now) && now < self.resume_at).then_some(self.resume_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A world in which a write takes 1 ms, and `slow` while a window of 10 ms is under way. What a write takes in the
    /// mean, and which part of the time windows take.
    fn run(slow: f64, pace: &mut Pace) -> (f64, f64) {
        let (mut now, mut windows, mut until) = (0.0, 0.0, None::<f64>);
        let (mut sum, mut count) = (0.0, 0.0);
        while now < 60.0 {
            let at = Duration::from_secs_f64(now);
            if until.is_some_and(|until| now >= until) {
                until = None;
                pace.handle_idle(at);
            }
            if until.is_none() && pace.may_start(at, 0) {
                pace.handle_started(at);
                until = Some(now + 0.01);
            }
            let took = if until.is_some() { slow } else { 0.001 };
            now += took;
            pace.handle_answer(Duration::from_secs_f64(now), Duration::from_secs_f64(took), until.is_some());
            if until.is_some() {
                windows += took;
            }
            if now > 10.0 {
                (sum, count) = (sum + took, count + 1.0);
            }
        }
        (sum / count, windows / now)
    }

    #[test]
    fn writes_stay_within_the_factor_and_windows_go_on() {
        for slow in [0.0011, 0.002, 0.004, 0.02] {
            let (mean, share) = run(slow, &mut Pace::default());
            assert!(mean <= 0.001 * FACTOR * 1.1, "{slow}: {mean}");
            assert!(share > 0.02, "{slow}: windows get {share}");
        }
        let (_, share) = run(0.0011, &mut Pace::default());
        assert!(share > 0.6, "a window that disturbs nobody waits for nobody: {share}");
    }

    #[test]
    fn without_clients_nothing_waits() {
        let mut pace = Pace::default();
        let ms = Duration::from_millis;
        assert!(pace.may_start(ms(1), 7) && pace.deadline(ms(1)).is_none());
        pace.handle_answer(ms(10), ms(1), false);
        pace.handle_started(ms(10));
        assert!(!pace.may_start(ms(11), 1));
        pace.handle_idle(ms(30));
        assert!(!pace.may_start(ms(31), 0));
        assert_eq!(pace.deadline(ms(31)), Some(ms(50)));
        assert!(pace.may_start(ms(50), 0) && pace.may_start(ms(300), 3));
    }
}
