//! The names of the Redis keys. They, their types and their formats are shared with the plain Ruby versions of the class (the
//! details and the processors from 1.4 on); the counters are this crate's own.

/// Sorted set: registry id, scored by its last heartbeat in ms since the epoch.
pub const INDEX: &str = "sidekiq:patient_http:inflight_index";
/// Hash: registry id to the Sidekiq job as JSON.
pub const JOBS: &str = "sidekiq:patient_http:inflight_jobs";
/// Set: the process ids to ask about. Being in it proves nothing; the capacity key does.
pub const PROCESS_SET: &str = "sidekiq:patient_http:processes";
/// String: process id of the one that sweeps.
pub const GC_LOCK: &str = "sidekiq:patient_http:gc_lock";
/// String: when the last sweep ended, ms since the epoch.
pub const GC_LAST_RUN: &str = "sidekiq:patient_http:gc_last_run";

/// Hash: registry id to what people may see of the request, as JSON.
pub const DETAILS: &str = "sidekiq:patient_http:inflight_details";
/// Sorted set: registry id, scored by its registration in ms since the epoch.
pub const DETAILS_INDEX: &str = "sidekiq:patient_http:inflight_details_index";

const RECOVERIES: &str = "sidekiq:patient_http:recoveries:";
const REFUSALS: &str = "sidekiq:patient_http:refusals:";

/// What every key of the registry begins with.
pub(crate) const PREFIX: &str = "sidekiq:patient_http:";

/// The key that holds a process's capacity and, by being there, proves that the process lives.
#[must_use]
pub fn capacity(process: &[u8]) -> Vec<u8> {
    [PROCESS_SET.as_bytes(), b":", process, b":max_connections"].concat()
}

/// The key that holds the load of each of a process's processors, as JSON.
#[must_use]
pub fn processors(process: &[u8]) -> Vec<u8> {
    [PROCESS_SET.as_bytes(), b":", process, b":processors"].concat()
}

/// How often a job was recovered: one counter for each jid (or task id, for a job without one).
#[must_use]
pub(crate) fn recoveries(job: &[u8]) -> Vec<u8> {
    [RECOVERIES.as_bytes(), job].concat()
}

/// How often Sidekiq refused a job for good (it can never be pushed).
#[must_use]
pub(crate) fn refusals(job: &[u8]) -> Vec<u8> {
    [REFUSALS.as_bytes(), job].concat()
}

/// Whether a key is the registry's: what else an application keeps under the same prefix is not ours to delete.
#[must_use]
pub(crate) fn is_ours(key: &[u8]) -> bool {
    let fixed = [INDEX, JOBS, PROCESS_SET, GC_LOCK, GC_LAST_RUN, DETAILS, DETAILS_INDEX];
    fixed.iter().any(|name| name.as_bytes() == key)
        || [PROCESS_SET, RECOVERIES.trim_end_matches(':'), REFUSALS.trim_end_matches(':')]
            .iter()
            .any(|name| key.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b":")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_key_carries_the_process_id() {
        assert_eq!(capacity(b"web-1:42:00ff"), b"sidekiq:patient_http:processes:web-1:42:00ff:max_connections");
    }

    #[test]
    fn another_key_under_the_same_prefix_is_not_ours() {
        assert!(is_ours(INDEX.as_bytes()));
        assert!(is_ours(&capacity(b"h:1:2")));
        assert!(is_ours(&processors(b"h:1:2")));
        assert!(is_ours(DETAILS_INDEX.as_bytes()));
        assert!(is_ours(&recoveries(b"jid")));
        assert!(!is_ours(b"sidekiq:patient_http:payloads:1"));
        assert!(!is_ours(b"sidekiq:patient_http:processes_archive"));
    }
}
