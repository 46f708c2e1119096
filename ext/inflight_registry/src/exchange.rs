//! One request, one typed reply: commands, pipelines, transactions and scripts over any [`ConnectionLike`].

use crate::{Error, Result};
use redis::{Arg, Cmd, ConnectionLike, FromRedisValue, Pipeline, Value};
use std::borrow::Cow;
use std::sync::OnceLock;

/// Whether an operation is tried for the first time or again, after the answer to the first try was lost. Whatever it was
/// asked to do may have been done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Nothing was sent before.
    First,
    /// The same request was sent before; its answer is unknown.
    Repeat,
}

/// A Lua script and its SHA1, computed once.
pub(crate) struct Script {
    code: &'static str,
    sha: OnceLock<String>,
}

impl Script {
    pub(crate) const fn new(code: &'static str) -> Self {
        Self { code, sha: OnceLock::new() }
    }

    fn sha(&self) -> &str {
        self.sha.get_or_init(|| redis::Script::new(self.code).get_hash().to_owned())
    }
}

/// Sends one command.
pub(crate) fn command<T: FromRedisValue>(conn: &mut impl ConnectionLike, name: &'static str, cmd: &Cmd) -> Result<T> {
    let value = conn.req_packed_command(&cmd.get_packed_command()).map_err(|error| connection(name.into(), error))?;
    typed(name, value)
}

/// Sends commands in one write, without a transaction; the first error among the replies fails the whole.
pub(crate) fn pipeline(conn: &mut impl ConnectionLike, pipe: &Pipeline) -> Result<Vec<Value>> {
    let values = conn
        .req_packed_commands(&pipe.get_packed_pipeline(), 0, pipe.len())
        .map_err(|error| connection(name_of(pipe, 0), error))?;
    values.into_iter().enumerate().map(|(place, value)| refuse_error(|| name_of(pipe, place), value)).collect()
}

/// Sends commands as MULTI/EXEC in one write and returns the replies to them.
///
/// The errors that Redis puts into the reply of EXEC come back as values: each is looked at, and so are the replies to the
/// queueing, where a full memory shows, for instance.
pub(crate) fn transaction(conn: &mut impl ConnectionLike, pipe: &mut Pipeline) -> Result<Vec<Value>> {
    let essential = pipe.len();
    transaction_of(conn, pipe, essential)
}

/// The same, whose first `essential` commands alone must succeed: what the others cannot write is not written.
pub(crate) fn transaction_of(conn: &mut impl ConnectionLike, pipe: &mut Pipeline, essential: usize) -> Result<Vec<Value>> {
    pipe.atomic();
    let values = conn
        .req_packed_commands(&pipe.get_packed_pipeline(), 0, pipe.len() + 2)
        .map_err(|error| connection("MULTI".into(), error))?;
    let mut last = Value::Nil;
    for (place, value) in values.into_iter().enumerate() {
        last = refuse_error(|| queued_name(pipe, place), value)?;
    }
    match last {
        Value::Array(replies) if replies.len() == pipe.len() => {
            let essential = replies.into_iter().take(essential).enumerate();
            essential.map(|(place, value)| refuse_error(|| name_of(pipe, place), value)).collect()
        }
        _ => Err(Error::reply("EXEC", "the transaction did not answer each of its commands")),
    }
}

/// Whose reply stands at this place of those to a transaction: MULTI, the commands, EXEC.
fn queued_name(pipe: &Pipeline, place: usize) -> Cow<'static, str> {
    match place.checked_sub(1) {
        None => "MULTI".into(),
        Some(place) if place == pipe.len() => "EXEC".into(),
        Some(place) => name_of(pipe, place),
    }
}

/// The name of a command, without its arguments.
fn name_of(pipe: &Pipeline, place: usize) -> Cow<'static, str> {
    match pipe.cmd_iter().nth(place).and_then(|cmd| cmd.args_iter().next()) {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned().into(),
        _ => "".into(),
    }
}

/// Runs a script by its SHA1, with its full text where the server does not know it (a restart, a failover, SCRIPT FLUSH).
pub(crate) fn eval<T: FromRedisValue>(
    conn: &mut impl ConnectionLike,
    script: &Script,
    keys: &[&[u8]],
    args: &[&[u8]],
) -> Result<T> {
    let invocation = |name: &str, code: &str| {
        let mut cmd = redis::cmd(name);
        cmd.arg(code).arg(keys.len()).arg(keys).arg(args);
        cmd
    };
    match command(conn, "EVALSHA", &invocation("EVALSHA", script.sha())) {
        Err(error) if error.code() == Some("NOSCRIPT") => command(conn, "EVAL", &invocation("EVAL", script.code)),
        result => result,
    }
}

/// Turns a reply into what the command answers.
pub(crate) fn typed<T: FromRedisValue>(name: &'static str, value: Value) -> Result<T> {
    let value = refuse_error(|| name.into(), value)?;
    T::from_redis_value(value).map_err(|error| {
        // The crate's text quotes the reply, which may be a job.
        let _ = error;
        Error::reply(name, format!("not {}", std::any::type_name::<T>()))
    })
}

fn refuse_error(name: impl FnOnce() -> Cow<'static, str>, value: Value) -> Result<Value> {
    match value {
        Value::ServerError(error) => Err(Error::server(name(), &error)),
        value => Ok(value),
    }
}

/// A `ConnectionLike` may hand over the server's errors in either way.
fn connection(name: Cow<'static, str>, error: redis::RedisError) -> Error {
    match redis::ServerError::try_from(error.clone()) {
        Ok(error) => Error::server(name, &error),
        Err(_) => Error::Connection(error),
    }
}
