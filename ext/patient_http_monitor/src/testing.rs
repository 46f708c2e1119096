//! Test suites that travel in time: while the application is under test, the registry's clock follows a stubbed `Time.now`.

use magnus::value::{Lazy, LazyId, ReprValue};
use magnus::{Error, Module, RClass, RModule, Ruby, Value};
use std::time::{SystemTime, UNIX_EPOCH};

static MONITOR: Lazy<RModule> =
    Lazy::new(|ruby| ruby.class_object().const_get("PatientHttpMonitor").unwrap_or_else(|_| ruby.module_kernel()));
static TIME: Lazy<RClass> = Lazy::new(|ruby| ruby.class_object().const_get("Time").unwrap_or_else(|_| ruby.class_object()));
static TESTING: LazyId = LazyId::new("testing?");
static NOW: LazyId = LazyId::new("now");
static TO_F: LazyId = LazyId::new("to_f");

/// What to add to the server's time, in ms: `Time.now` less the real clock while testing, otherwise 0.
///
/// # Errors
/// Whatever a stubbed `Time.now` or `PatientHttp.testing?` raises.
pub(crate) fn time_shift(ruby: &Ruby) -> Result<i64, Error> {
    let testing: bool = ruby.get_inner(&MONITOR).funcall(*TESTING, ())?;
    if !testing {
        return Ok(0);
    }
    let before = wall_clock_ms();
    let now: Value = ruby.get_inner(&TIME).funcall(*NOW, ())?;
    let now: f64 = now.funcall(*TO_F, ())?;
    let after = wall_clock_ms();
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
    let now = (now * 1_000.0) as i64;
    // Between two readings of the real clock it is the real time: no stub, and no jitter either.
    if (before - 1..=after + 1).contains(&now) { Ok(0) } else { Ok(now - after) }
}

fn wall_clock_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
