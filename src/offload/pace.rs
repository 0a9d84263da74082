//! The connection's rate where it is limited (`bandwidth_mib_per_s`): when the next block may go.

use std::{sync::Mutex, time::Duration};

use tokio::time::{Instant, sleep_until};

/// What wasn't sent in time may be made up for within this: blocks come as they are ready, and not in step.
const ARREARS: Duration = Duration::from_secs(1);

/// Gives each block its time.
#[derive(Debug)]
pub struct Pace {
    /// 0 = unlimited.
    bytes_per_s: u64,
    /// When the next one may go; none went yet, or a while ago, if it is in the past.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most so many bytes a second on the average of some seconds.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, next: Mutex::default() }
    }

    /// Waits until a block of `bytes` may go.
    pub async fn wait(&self, bytes: u64) {
        if self.bytes_per_s == 0 {
            return;
        }
        let turn = {
            let (mut next, now) = (self.next.lock().expect("no code panics under this lock"), Instant::now());
            let earliest = now.checked_sub(ARREARS).unwrap_or(now);
            // The first after a pause has nothing to make up for.
            let turn = next.filter(|next| *next >= earliest).unwrap_or(now);
            *next = Some(turn + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64));
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Sends 100 blocks of which each is ready `late_ms(n)` after the one before went, and says at which rate they went.
    async fn rate(pace: &Pace, late_ms: impl Fn(u64) -> u64) -> f64 {
        let began = Instant::now();
        for block in 0..100 {
            tokio::time::sleep(Duration::from_millis(late_ms(block))).await;
            pace.wait(MIB).await;
        }
        100.0 * MIB as f64 / began.elapsed().as_secs_f64()
    }

    /// Within 5 %, whether blocks are there at once or come in fits, as long as they come at that rate at all.
    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept() {
        let limit = 8 * MIB;
        for late_ms in [|_| 0, |n| if n % 7 == 3 { 600 } else { 0 }, |n| n % 3 * 100] {
            let rate = rate(&Pace::new(limit), late_ms).await / limit as f64;
            assert!((0.95..1.05).contains(&rate), "{rate}");
        }
    }

    /// After a pause nothing is made up for.
    #[tokio::test(start_paused = true)]
    async fn a_pause_is_no_credit() {
        let pace = Pace::new(8 * MIB);
        rate(&pace, |_| 0).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let rate = rate(&pace, |_| 0).await / (8 * MIB) as f64;
        assert!((0.95..1.05).contains(&rate), "{rate}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let began = Instant::now();
        Pace::new(0).wait(1 << 40).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
