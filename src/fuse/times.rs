//! Times as fuser has them and as we do.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::TimeOrNow;

use crate::{fs::SetTime, manifest::Timestamp};

pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
    let nanos = Duration::from_nanos(time.nanos.into());
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(timestamp(time)),
    }
}

/// fuser 0.18 takes both seconds and nanoseconds away from the epoch for a time before it, where the kernel counts the nanoseconds
/// forward; this puts it right again.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { secs: after.as_secs() as i64, nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            // The earliest time has no positive counterpart.
            Timestamp { secs: 0i64.wrapping_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_the_epoch_is_what_the_kernel_said() {
        // What fuser makes of -2 s + 0.8 s.
        let told = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let meant = Timestamp { secs: -2, nanos: 800_000_000 };
        assert_eq!(timestamp(told), meant);
        assert_eq!(system_time(meant), UNIX_EPOCH - Duration::new(1, 200_000_000));
    }
}
