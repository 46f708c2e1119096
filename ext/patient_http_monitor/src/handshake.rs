//! How a connection is opened: Ruby's socket and TLS, the prelude, the role where Sentinel named the server, and a first look at the
//! server's clock.

use crate::connection::{Connection, Slot};
use crate::connector::Prelude;
use crate::pool::Pool;
use crate::session::{Failure, Session};
use inflight_registry::processes::TimeReading;
use inflight_registry::{self as core, LocalTime, entries};
use magnus::typed_data::Obj;
use magnus::{Error, Ruby};
use redis::{ConnectionLike, ServerError};

/// Why a new connection is of no use.
enum Refusal {
    /// Someone said so: the server, which closes the connection next, or Ruby.
    Said(Error),
    /// It broke, or made no sense.
    Broke(core::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}

impl From<core::Error> for Refusal {
    fn from(error: core::Error) -> Self {
        Self::Broke(error)
    }
}

impl Pool {
    /// Opens a connection: socket, TLS, prelude, role, and a first look at the server's clock.
    pub(crate) fn connect(&self, ruby: &Ruby) -> Result<Obj<Connection>, Error> {
        // The object comes first: it holds the place even if this fiber never comes back.
        let slot = Slot::take(&self.open.borrow());
        let connection = ruby.obj_wrap(Connection::new(slot));
        let opened = match self.connector.open(ruby) {
            Ok(opened) => opened,
            Err(error) => {
                Connection::close(ruby, connection)?;
                return Err(error);
            }
        };
        connection.set_sockets(opened.io, opened.ssl);
        let mut session = self.begin(ruby, connection)?;
        match self.introduce(ruby, &mut session) {
            Ok(()) => Ok(session.end()),
            Err(Refusal::Said(error)) => Err(session.abandon_because(error)),
            Err(Refusal::Broke(error)) => Err(match session.abandon() {
                Some(Failure::Interrupt(interrupt)) => interrupt,
                Some(Failure::Fault(fault, detail)) => self.connector.handshake_fault(ruby, fault, &detail),
                None => self.connector.core_error(ruby, &error),
            }),
        }
    }

    fn introduce(&self, ruby: &Ruby, session: &mut Session<'_>) -> Result<(), Refusal> {
        let Prelude { commands, optional } = self.connector.prelude(ruby)?;
        let packed: Vec<u8> = commands.iter().flat_map(|command| redis::pack_command(command)).collect();
        let (replies, outcome) = session.replies(&packed, commands.len());
        let required = commands.len().saturating_sub(optional);
        let refused = |error: &ServerError, command: Option<&Vec<Vec<u8>>>| {
            let message = [error.code(), error.details().unwrap_or_default()].join(" ");
            // Its name alone: the arguments hold the password.
            let name = command.and_then(|command| command.first()).map_or_else(String::new, |name| text(name));
            Refusal::Said(self.connector.handshake_server_error(ruby, message.trim_end(), &name))
        };
        let unanswered = commands.get(replies.len());
        for (reply, command) in replies.iter().zip(&commands).take(required) {
            if let redis::Value::ServerError(error) = reply {
                return Err(refused(error, Some(command)));
            }
        }
        outcome.map_err(|error| match ServerError::try_from(error.clone()) {
            Ok(error) => refused(&error, unanswered),
            Err(_) => core::Error::Connection(error).into(),
        })?;
        if self.connector.is_sentinel(ruby)? {
            let role = session.req_command(&redis::cmd("ROLE")).map_err(core::Error::Connection)?;
            self.connector.check_role(ruby, &first_text(role))?;
        }
        let sent = LocalTime::now();
        let server_us = entries::server_time(session)?;
        self.sample(TimeReading { sent, received: LocalTime::now(), server_us });
        Ok(())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn first_text(role: redis::Value) -> Vec<u8> {
    match role {
        redis::Value::Array(parts) => parts.into_iter().next().map(first_text).unwrap_or_default(),
        redis::Value::BulkString(text) => text,
        redis::Value::SimpleString(text) => text.into_bytes(),
        _ => Vec::new(),
    }
}
