//! The Redis server's clock, kept as an offset to a local clock that nobody sets.
//!
//! Hosts whose wall clocks lie ten minutes apart must neither rob each other nor wait for each other, so no wall clock of a
//! host enters a score: only the server's, read by `TIME`.

use crate::Millis;
use rustix::time::{ClockId, clock_gettime};

/// A moment on a local clock that never steps and also runs while the host is suspended, in us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalTime(i64);

impl LocalTime {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    // On macOS this one goes on through sleep (clock_gettime(3)).
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;

    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(Self::CLOCK);
        Self(time.tv_sec * 1_000_000 + time.tv_nsec / 1_000)
    }

    /// How many ms have passed since `earlier` (0 if none).
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> i64 {
        (self.0 - earlier.0).max(0) / 1_000
    }

    /// The moment that lies `ms` later.
    #[must_use]
    pub fn ahead(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000)))
    }

    #[cfg(test)]
    fn at_us(us: i64) -> Self {
        Self(us)
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Server time less local time, in us.
    offset: i64,
    /// Half the round trip, in us: the offset is known to within this.
    uncertainty: i64,
    taken: LocalTime,
}

/// Tells the time on the Redis server from samples of `TIME`.
///
/// Of the samples within a window the one with the shortest round trip is kept. One that contradicts it (the two cannot both
/// be of the same clock) replaces it at once: the server is another one now, or its clock was set.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerClock {
    best: Option<Sample>,
}

impl ServerClock {
    /// How long a sample outranks a slower one: clocks drift by some 50 us in a second, so that 1 min costs 3 ms at most.
    const WINDOW_MS: i64 = 60_000;
    /// What two samples may differ by beyond their round trips: the drift within a window, and `TIME` read late by a busy
    /// server.
    const TOLERANCE_US: i64 = 5_000;

    /// Takes in one reading of `TIME`: when the request was sent, when its reply was read, and what the server said, in us
    /// since the epoch.
    pub fn sample(&mut self, sent: LocalTime, received: LocalTime, server_us: i64) {
        let round_trip = (received.0 - sent.0).max(0);
        let new = Sample { offset: server_us - (sent.0 + round_trip / 2), uncertainty: round_trip / 2, taken: received };
        let replace = self.best.is_none_or(|best| {
            new.uncertainty <= best.uncertainty
                || new.taken.ms_since(best.taken) > Self::WINDOW_MS
                || (new.offset - best.offset).abs() > new.uncertainty + best.uncertainty + Self::TOLERANCE_US
        });
        if replace {
            self.best = Some(new);
        }
    }

    /// The server's time at a local moment; none before the first sample.
    #[must_use]
    pub fn at(&self, local: LocalTime) -> Option<Millis> {
        self.best.map(|best| Millis((local.0 + best.offset).div_euclid(1_000)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: i64 = 1_700_000_000_000_000;

    fn clock_with(samples: &[(i64, i64, i64)]) -> ServerClock {
        let mut clock = ServerClock::default();
        for &(sent, received, server) in samples {
            clock.sample(LocalTime::at_us(sent), LocalTime::at_us(received), server);
        }
        clock
    }

    #[test]
    fn the_midpoint_of_the_round_trip_is_the_moment_of_the_reading() {
        let clock = clock_with(&[(1_000, 3_000, SERVER)]);
        assert_eq!(clock.at(LocalTime::at_us(2_000)), Some(Millis(SERVER / 1_000)));
        assert_eq!(clock.at(LocalTime::at_us(1_002_000)), Some(Millis(SERVER / 1_000 + 1_000)));
    }

    #[test]
    fn the_shortest_round_trip_wins_within_the_window() {
        let clock = clock_with(&[(0, 200, SERVER), (10_000, 18_000, SERVER + 10_500)]);
        assert_eq!(clock.at(LocalTime::at_us(100)), Some(Millis(SERVER / 1_000)));
    }

    #[test]
    fn a_sample_grows_old() {
        let later = 61_000_000;
        let clock = clock_with(&[(0, 200, SERVER), (later, later + 8_000, SERVER + later + 9_000)]);
        assert_eq!(clock.at(LocalTime::at_us(later + 4_000)), Some(Millis((SERVER + later + 9_000) / 1_000)));
    }

    #[test]
    fn a_server_with_another_clock_is_followed_at_once() {
        let clock = clock_with(&[(0, 200, SERVER), (10_000, 18_000, SERVER + 600_000_000)]);
        assert_eq!(clock.at(LocalTime::at_us(14_000)), Some(Millis(SERVER / 1_000 + 600_000)));
    }

    #[test]
    fn no_sample_no_time() {
        assert_eq!(ServerClock::default().at(LocalTime::now()), None);
    }

    #[test]
    fn the_local_clock_runs() {
        let before = LocalTime::now();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(LocalTime::now().ms_since(before) >= 5);
        assert!(before.ahead(1_000) > LocalTime::now());
    }
}
