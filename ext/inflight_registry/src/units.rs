//! Times with their unit in the type: a moment on the server's clock in ms, and a TTL in whole s.

use std::time::Duration;

/// A moment on the Redis server's clock, in ms since the epoch: what heartbeats are scored by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// The moment that lies `ms` earlier (later, where `ms` is negative).
    #[must_use]
    pub fn back(self, ms: i64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// The moment that lies `ms` later.
    #[must_use]
    pub fn ahead(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// 100 years, in s. EXPIRE refuses what overflows the server's ms since the epoch, scores are exact up to 2^53, and no one
/// means more.
const LONGEST: f64 = 3_155_760_000.0;

/// Converts s to ms, rounded to the nearest; what is beyond 100 years ends there.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "clamped")]
pub fn seconds_to_ms(seconds: f64) -> i64 {
    (seconds.clamp(-LONGEST, LONGEST) * 1_000.0).round() as i64
}

/// How long a key lives, in whole s and at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(u64);

impl Ttl {
    /// Rounds up, so that a key never runs out early; at least 1 s, since Redis takes 0 for a deletion.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    pub fn from_seconds(seconds: f64) -> Self {
        let seconds = if seconds.is_nan() { 1.0 } else { seconds };
        Self(seconds.ceil().clamp(1.0, LONGEST) as u64)
    }

    /// In s.
    #[must_use]
    pub fn as_secs(self) -> u64 {
        self.0
    }

    /// As a duration.
    #[must_use]
    pub fn as_duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// For the index and the jobs: the larger of 3 x orphan_threshold and 7 days, so that the registry outlives an outage of
    /// the whole fleet.
    #[must_use]
    pub fn of_registry(orphan_threshold: f64) -> Self {
        const SEVEN_DAYS: f64 = 7.0 * 24.0 * 3_600.0;
        Self::from_seconds((3.0 * orphan_threshold).max(SEVEN_DAYS))
    }

    /// For the capacity key, the proof of life: 2 x heartbeat_interval.
    #[must_use]
    pub fn of_capacity(heartbeat_interval: f64) -> Self {
        Self::from_seconds(2.0 * heartbeat_interval)
    }

    /// For the GC lock: the larger of 2 x heartbeat_interval and 120 s.
    #[must_use]
    pub fn of_gc_lock(heartbeat_interval: f64) -> Self {
        Self::from_seconds((2.0 * heartbeat_interval).max(120.0))
    }

    /// For the record of the last run: 1.5 x heartbeat_interval.
    #[must_use]
    pub fn of_last_run(heartbeat_interval: f64) -> Self {
        Self::from_seconds(1.5 * heartbeat_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_rounded_up_and_at_least_one_second() {
        assert_eq!(Ttl::from_seconds(0.0).as_secs(), 1);
        assert_eq!(Ttl::from_seconds(-5.0).as_secs(), 1);
        assert_eq!(Ttl::from_seconds(1.01).as_secs(), 2);
        assert_eq!(Ttl::from_seconds(60.0).as_secs(), 60);
        assert_eq!(Ttl::from_seconds(f64::MAX).as_secs(), 3_155_760_000);
    }

    #[test]
    fn the_registry_outlives_a_week_without_anyone() {
        assert_eq!(Ttl::of_registry(300.0).as_secs(), 604_800);
        assert_eq!(Ttl::of_registry(300_000.0).as_secs(), 900_000);
    }

    #[test]
    fn the_gc_lock_lives_for_two_minutes_or_two_heartbeats() {
        assert_eq!(Ttl::of_gc_lock(60.0).as_secs(), 120);
        assert_eq!(Ttl::of_gc_lock(90.5).as_secs(), 181);
        assert_eq!(Ttl::of_last_run(1.0).as_secs(), 2);
        assert_eq!(Ttl::of_capacity(0.3).as_secs(), 1);
    }

    #[test]
    fn seconds_become_the_nearest_ms_and_never_wrap() {
        assert_eq!(seconds_to_ms(0.0015), 2);
        assert_eq!(seconds_to_ms(-1.0), -1_000);
        assert_eq!(seconds_to_ms(1e300), 3_155_760_000_000);
        assert_eq!(Millis(i64::MIN).back(i64::MAX), Millis(i64::MIN));
    }
}
