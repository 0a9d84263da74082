//! Pauses between attempts: doubling, jittered, so that a lab's drones don't all come back in the same instant.

use std::time::Duration;

/// The next pause's upper end.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The last session was a good one.
    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    /// Only a person can mend this: no reason to hurry.
    pub(super) fn slow_down(&mut self) {
        self.next = self.max;
    }

    /// A pause between half and all of the current step, as `random` says; the next step is twice as long.
    pub(super) fn pause(&mut self, random: u64) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        let half = step / 2;
        let range_us = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        half + Duration::from_micros(random % range_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(500));
        for step in [100, 200, 400, 500, 500] {
            let mut same = Backoff { next: backoff.next, ..backoff };
            assert_eq!(backoff.pause(0), ms(step) / 2);
            let random = same.pause(u64::MAX);
            assert!(random >= ms(step) / 2 && random <= ms(step));
        }
        backoff.reset();
        assert!(backoff.pause(7) <= ms(100));
        backoff.slow_down();
        assert!(backoff.pause(7) >= ms(250));
    }
}
