//! What people may see of the requests in flight, for those that want it: in no way needed to recover them.

use crate::entries::millis;
use crate::exchange::{command, eval};
use crate::keys::{DETAILS, DETAILS_INDEX, INDEX};
use crate::{Millis, RegistryId, Result, Ttl, scripts};
use redis::{ConnectionLike, Pipeline};

/// How many details a sweep looks at in one step, and in how many steps at most, the oldest first.
const FORGET: usize = 500;
const FORGET_STEPS: usize = 10;

/// The details of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// The request.
    pub id: RegistryId,
    /// When it was registered.
    pub registered: Millis,
    /// What there is to see, as JSON; none when only its place is known.
    pub json: Option<Vec<u8>>,
}

pub(crate) fn add(pipe: &mut Pipeline, id: &[u8], json: &[u8], now: Millis) {
    pipe.cmd("ZADD").arg(DETAILS_INDEX).arg(now.0).arg(id);
    pipe.cmd("HSET").arg(DETAILS).arg(id).arg(json);
}

pub(crate) fn remove(pipe: &mut Pipeline, id: &[u8]) {
    pipe.cmd("ZREM").arg(DETAILS_INDEX).arg(id);
    pipe.cmd("HDEL").arg(DETAILS).arg(id);
}

pub(crate) fn add_expiry(pipe: &mut Pipeline, ttl: Ttl) {
    for key in [DETAILS, DETAILS_INDEX] {
        pipe.cmd("EXPIRE").arg(key).arg(ttl.as_secs());
    }
}

/// A page of them, oldest first.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn page(conn: &mut impl ConnectionLike, offset: usize, count: usize) -> Result<Vec<Details>> {
    let Some(last) = count.checked_sub(1) else { return Ok(Vec::new()) };
    let mut range = redis::cmd("ZRANGE");
    range.arg(DETAILS_INDEX).arg(offset).arg(offset.saturating_add(last)).arg("WITHSCORES");
    let found: Vec<(Vec<u8>, f64)> = command(conn, "ZRANGE", &range)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let mut texts = redis::cmd("HMGET");
    texts.arg(DETAILS);
    for (id, _) in &found {
        texts.arg(id);
    }
    let texts: Vec<Option<Vec<u8>>> = command(conn, "HMGET", &texts)?;
    let details = found.into_iter().zip(texts);
    Ok(details.map(|((id, score), json)| Details { id: RegistryId(id), registered: millis(score), json }).collect())
}

/// Removes, of the oldest, those whose entry is gone: a version before 1.4 recovers an entry and leaves its details.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub(crate) fn forget_lost(conn: &mut impl ConnectionLike) -> Result<()> {
    let keys = [DETAILS_INDEX.as_bytes(), DETAILS.as_bytes(), INDEX.as_bytes()];
    let mut start = 0_usize;
    for _ in 0..FORGET_STEPS {
        let numbers = [start.to_string(), FORGET.to_string()];
        let args: Vec<&[u8]> = numbers.iter().map(String::as_bytes).collect();
        let (looked, forgotten): (usize, usize) = eval(conn, &scripts::FORGET_DETAILS, &keys, &args)?;
        if looked < FORGET {
            break;
        }
        start += looked.saturating_sub(forgotten);
    }
    Ok(())
}
