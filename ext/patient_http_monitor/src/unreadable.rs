//! Errors of a server that are not UTF-8, which the parser refuses: a proxy that speaks Latin-1, or a Redis that quotes an
//! argument and cuts it in the middle of a character.

use redis::{RedisError, Value};

/// Of the replies to a request only the beginning is kept: an error comes early and is short.
const KEPT: usize = 1_024;

/// The beginning of the replies to a request.
#[derive(Default)]
pub(crate) struct Beginning(Vec<u8>);

impl Beginning {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let room = KEPT.saturating_sub(self.0.len());
        self.0.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// The first error among them that the parser refuses, with replacement characters where it is not UTF-8.
    pub(crate) fn error(&self) -> Option<RedisError> {
        let readable = String::from_utf8_lossy(unreadable(&self.0)?);
        match redis::parse_redis_value(format!("-{readable}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => Some(error.into()),
            _ => None,
        }
    }
}

/// Walks over whole replies; what an array or a map holds follows its head.
fn unreadable(mut replies: &[u8]) -> Option<&[u8]> {
    loop {
        let (kind, rest) = replies.split_first()?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = rest.get(..end)?;
        replies = rest.get(end + 2..)?;
        match kind {
            b'-' if std::str::from_utf8(line).is_err() => return Some(line),
            b'$' | b'!' | b'=' => {
                let size: i64 = std::str::from_utf8(line).ok()?.parse().ok()?;
                if let Ok(size) = usize::try_from(size) {
                    replies = replies.get(size.checked_add(2)?..)?;
                }
            }
            b'-' | b'+' | b':' | b'_' | b',' | b'#' | b'(' | b'*' | b'%' | b'~' | b'>' | b'|' => {}
            _ => return None,
        }
    }
}
