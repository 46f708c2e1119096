//! Who registered, and what: `HOST:PID:HEX` names a process, `HOST:PID:HEX/TASK_ID` an entry.

use std::fmt;

/// Names one monitor in one process: `HOST:PID:HEX`, where HEX are 16 random digits, so that neither a recycled pid nor a
/// second monitor is taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId(String);

impl ProcessId {
    /// A new id for the calling process.
    #[must_use]
    pub fn generate() -> Self {
        let host = hostname::get().map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned());
        Self::from_parts(&host, std::process::id(), random_bits())
    }

    fn from_parts(host: &str, pid: u32, random: u64) -> Self {
        // Both characters have a meaning in ids.
        let host = host.replace([':', '/'], "-");
        Self(format!("{host}:{pid}:{random:016x}"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as Redis sees it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The registry id of a task of this process.
    #[must_use]
    pub fn registry_id(&self, task_id: &[u8]) -> RegistryId {
        RegistryId([self.as_bytes(), b"/", task_id].concat())
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names an entry of the registry: `HOST:PID:HEX/TASK_ID`. Task ids are the application's, so any bytes may stand in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryId(pub Vec<u8>);

impl RegistryId {
    /// As Redis sees it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What stands before the first slash: the process that registered it. An id without a slash is its own process, which is
    /// not alive.
    #[must_use]
    pub fn process(&self) -> &[u8] {
        self.0.iter().position(|&byte| byte == b'/').and_then(|at| self.0.get(..at)).unwrap_or(&self.0)
    }

    /// What stands behind the first slash: the task's own id.
    #[must_use]
    pub fn task(&self) -> &[u8] {
        self.0.iter().position(|&byte| byte == b'/').and_then(|at| self.0.get(at + 1..)).unwrap_or(&self.0)
    }
}

/// `HOST:PID` of a process id: what people see of a process.
#[must_use]
pub fn host_and_pid(process: &[u8]) -> &[u8] {
    process.iter().rposition(|&byte| byte == b':').and_then(|at| process.get(..at)).unwrap_or(process)
}

/// 64 random bits: the ones of a v4 UUID that carry neither its version nor its variant.
fn random_bits() -> u64 {
    let bits = uuid::Uuid::new_v4().as_u128();
    // 48 bits before the version, the low 16 of the node.
    u64::try_from((bits >> 80) << 16 | (bits & 0xffff)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_keeps_neither_colon_nor_slash() {
        assert_eq!(ProcessId::from_parts("a:b/c", 7, 0xff).as_str(), "a-b-c:7:00000000000000ff");
    }

    #[test]
    fn two_ids_of_one_process_differ() {
        let (one, other) = (ProcessId::generate(), ProcessId::generate());
        assert_ne!(one, other);
        assert!(one.as_str().contains(&format!(":{}:", std::process::id())));
        assert_eq!(one.as_str().rsplit(':').next().map(str::len), Some(16));
    }

    #[test]
    fn the_first_slash_divides_process_and_task() {
        let id = RegistryId(b"h:1:ff/a/b".to_vec());
        assert_eq!((id.process(), id.task()), (&b"h:1:ff"[..], &b"a/b"[..]));
        let bare = RegistryId(b"no-slash".to_vec());
        assert_eq!((bare.process(), bare.task()), (&b"no-slash"[..], &b"no-slash"[..]));
        assert_eq!(RegistryId(b"h:1:ff/".to_vec()).task(), b"");
    }

    #[test]
    fn host_and_pid_leave_out_the_random_digits() {
        assert_eq!(host_and_pid(b"h:1:ff"), b"h:1");
        assert_eq!(host_and_pid(b"odd"), b"odd");
    }
}
