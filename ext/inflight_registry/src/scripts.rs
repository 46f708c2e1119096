//! The Lua scripts: whatever must look before it writes. Their own first lines say what they take and return.

use crate::exchange::Script;

/// Removes one entry if its score is strictly below a threshold, in the shape that version 1.0 of the Ruby gem published:
/// KEYS index, jobs; ARGV registry id, threshold in ms; `{0, nil}` or `{1, payload}`. For callers of their own: this crate
/// leases instead, since what is removed before it is pushed can be lost.
pub const REMOVE_IF_ORPHANED: &str = include_str!("../scripts/remove_if_orphaned.lua");

/// Deletes a lock if a process holds it: KEYS lock; ARGV process id; 1 or 0. For callers of their own.
pub const RELEASE_IF_HELD: &str = include_str!("../scripts/release_if_held.lua");

/// The SHA1 by which EVALSHA names a script.
#[must_use]
pub fn sha1(script: &str) -> String {
    redis::Script::new(script).get_hash().to_owned()
}

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(crate) static $name: Script = Script::new(include_str!(concat!("../scripts/", $file, ".lua")));
    };
}

script!(ACQUIRE_LOCK, "acquire_lock");
script!(CAPACITIES, "capacities");
script!(CLAIM, "claim");
script!(COUNT, "count");
script!(FORGET_DETAILS, "forget_details");
script!(PAGE, "page");
script!(RELEASE_LOCK, "release_lock");
script!(RENEW, "renew");
script!(RENEW_LOCK, "renew_lock");
script!(RESTORE, "restore");
script!(SETTLE, "settle");
script!(TAKE_OVER_LOCK, "take_over_lock");
script!(UNREGISTER, "unregister");
