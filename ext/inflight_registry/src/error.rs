//! What can go wrong when the registry is asked.

use redis::{RedisError, ServerError};
use std::borrow::Cow;

/// The result of an operation on the registry.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, and in which command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis answered with an error, alone or within a transaction.
    #[error("{message}")]
    Server {
        /// The error as Redis sent it, its code first (`WRONGTYPE Operation against ...`).
        message: String,
        /// The command that was refused, without its arguments: they may hold a job.
        command: Cow<'static, str>,
    },
    /// No answer could be had: the connection failed or spoke something other than RESP.
    #[error("{0}")]
    Connection(#[source] RedisError),
    /// Redis answered with something that this command never answers.
    #[error("unexpected reply to {command}: {detail}")]
    Reply {
        /// The command, without its arguments.
        command: &'static str,
        /// What was expected and what came, without any payload.
        detail: String,
    },
}

impl Error {
    /// The first word of the server's error, such as `WRONGTYPE`; none for other failures.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { message, .. } => message.split(' ').next(),
            Self::Connection(_) | Self::Reply { .. } => None,
        }
    }

    pub(crate) fn server(command: Cow<'static, str>, error: &ServerError) -> Self {
        let message = match error.details() {
            Some(details) => format!("{} {details}", error.code()),
            None => error.code().to_owned(),
        };
        Self::Server { message, command }
    }

    pub(crate) fn reply(command: &'static str, detail: impl Into<String>) -> Self {
        Self::Reply { command, detail: detail.into() }
    }
}
