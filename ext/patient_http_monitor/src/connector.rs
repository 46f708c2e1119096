//! What Ruby does for a connection: opens the socket by Sidekiq's settings and makes the exceptions that redis-client would
//! raise. Called once for each connection or error, never for a call that succeeds.

use crate::convert;
use inflight_registry as core;
use magnus::value::{InnerValue, Opaque, ReprValue};
use magnus::{Error, Exception, RArray, Ruby, Symbol, TryConvert, Value};

/// How a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server, or something between, closed it.
    Closed,
    /// No reply within read_timeout.
    ReadTimeout,
    /// The request could not be written within write_timeout.
    WriteTimeout,
    /// What came is not RESP.
    Protocol,
    /// The process was forked in the middle of the call.
    Forked,
}

impl Fault {
    fn class_name(self) -> &'static str {
        match self {
            Self::Closed | Self::Forked => "ConnectionError",
            Self::ReadTimeout => "ReadTimeoutError",
            Self::WriteTimeout => "WriteTimeoutError",
            Self::Protocol => "ProtocolError",
        }
    }
}

/// The `PatientHttpMonitor::Connector` of a pool.
#[derive(Clone, Copy)]
pub(crate) struct Connector(pub(crate) Opaque<Value>);

/// For how long to wait each time, in s; none: without limit.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) read: Option<f64>,
    pub(crate) write: Option<f64>,
}

/// The limits of a pool, in s.
pub(crate) struct Limits {
    pub(crate) timeouts: Timeouts,
    /// After which a connection is checked before use.
    pub(crate) idle_timeout: f64,
    /// For how long a caller waits for a connection.
    pub(crate) checkout_timeout: f64,
}

/// The commands that open a session.
pub(crate) struct Prelude {
    /// Each command with its arguments, the password of this moment among them.
    pub(crate) commands: Vec<Vec<Vec<u8>>>,
    /// How many of them, at the end, may fail.
    pub(crate) optional: usize,
}

/// What the connector opened.
pub(crate) struct Opened {
    /// The socket.
    pub(crate) io: Value,
    /// Its TLS layer, where there is one.
    pub(crate) ssl: Option<Value>,
}

impl Connector {
    fn get(self, ruby: &Ruby) -> Value {
        self.0.get_inner_with(ruby)
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// `RedisClient::CannotConnectError`, whatever Sentinel raises, and interrupts.
    pub(crate) fn open(self, ruby: &Ruby) -> Result<Opened, Error> {
        let (io, ssl): (Value, Value) = self.get(ruby).funcall("open", ())?;
        Ok(Opened { io, ssl: if ssl.is_nil() { None } else { Some(ssl) } })
    }

    /// The commands that open a session.
    ///
    /// # Errors
    /// Whatever a password callable raises.
    pub(crate) fn prelude(self, ruby: &Ruby) -> Result<Prelude, Error> {
        let (commands, optional): (RArray, usize) = self.get(ruby).funcall("prelude", ())?;
        let commands = convert::each(commands, |command| convert::byte_strings(RArray::try_convert(command)?))?;
        Ok(Prelude { commands, optional })
    }

    /// Whether the role of the server must be looked at.
    ///
    /// # Errors
    /// None of its own.
    pub(crate) fn is_sentinel(self, ruby: &Ruby) -> Result<bool, Error> {
        self.get(ruby).funcall("sentinel?", ())
    }

    /// Refuses a server whose role is not the one asked for.
    ///
    /// # Errors
    /// `RedisClient::FailoverError`.
    pub(crate) fn check_role(self, ruby: &Ruby, role: &[u8]) -> Result<(), Error> {
        self.get(ruby).funcall::<_, _, Value>("check_role", (convert::string(ruby, role),)).map(drop)
    }

    /// The limits that Sidekiq's settings name.
    ///
    /// # Errors
    /// TypeError for a timeout that is no number.
    pub(crate) fn limits(self, ruby: &Ruby) -> Result<Limits, Error> {
        let (read, write): (Option<f64>, Option<f64>) = self.get(ruby).funcall("timeouts", ())?;
        Ok(Limits {
            timeouts: Timeouts { read, write },
            idle_timeout: self.get(ruby).funcall("idle_timeout", ())?,
            checkout_timeout: self.get(ruby).funcall("pool_timeout", ())?,
        })
    }

    /// Whether an attempt that ended with `error` is made again, by the application's `reconnect_attempts`. May sleep.
    ///
    /// # Errors
    /// Interrupts.
    pub(crate) fn retry(self, ruby: &Ruby, attempt: usize, error: &Error) -> Result<bool, Error> {
        match exception(ruby, error) {
            Some(exception) => self.get(ruby).funcall("retry?", (attempt, exception)),
            None => Ok(false),
        }
    }

    /// Forgets which server is the master.
    ///
    /// # Errors
    /// None of its own.
    pub(crate) fn forget_master(self, ruby: &Ruby) -> Result<(), Error> {
        self.get(ruby).funcall::<_, _, Value>("forget_master", ()).map(drop)
    }

    /// The exception for a failed connection.
    pub(crate) fn fault(self, ruby: &Ruby, fault: Fault, detail: &str) -> Error {
        self.raise(self.get(ruby).funcall("connection_error", (fault.class_name(), detail)))
    }

    /// The exception for a connection that failed before it could be used.
    pub(crate) fn handshake_fault(self, ruby: &Ruby, fault: Fault, detail: &str) -> Error {
        self.raise(self.get(ruby).funcall("handshake_error", (fault.class_name(), detail)))
    }

    /// The exception for an error that the server sent.
    pub(crate) fn server_error(self, ruby: &Ruby, message: &str, command: &str) -> Error {
        self.raise(self.get(ruby).funcall("command_error", (message, command)))
    }

    /// The exception for an error that the server sent before the connection could be used.
    pub(crate) fn handshake_server_error(self, ruby: &Ruby, message: &str, command: &str) -> Error {
        self.raise(self.get(ruby).funcall("handshake_command_error", (message, command)))
    }

    /// The exception for a pool that had no connection to give.
    pub(crate) fn checkout_timeout(self, ruby: &Ruby, ceiling: usize) -> Error {
        self.raise(self.get(ruby).funcall("checkout_error", (ceiling,)))
    }

    /// The exception for an error of the core that is not the connection's.
    pub(crate) fn core_error(self, ruby: &Ruby, error: &core::Error) -> Error {
        match error {
            core::Error::Server { message, command } => self.server_error(ruby, message, command),
            // What the parser says explains nothing to an operator.
            core::Error::Connection(_) => self.fault(ruby, Fault::Protocol, "what the server sent is not the Redis protocol"),
            reply @ core::Error::Reply { .. } => self.fault(ruby, Fault::Protocol, &reply.to_string()),
        }
    }

    fn raise(self, made: Result<Exception, Error>) -> Error {
        match made {
            Ok(exception) => exception.into(),
            Err(error) => error,
        }
    }
}

fn exception(ruby: &Ruby, error: &Error) -> Option<Value> {
    let value = error.value()?;
    value.is_kind_of(ruby.exception_standard_error()).then_some(value)
}

/// What a nonblocking call of `OpenSSL::SSL::SSLSocket` answers instead of data.
pub(crate) fn symbol_name(value: Value) -> Option<String> {
    Symbol::from_value(value).and_then(|symbol| symbol.name().ok().map(std::borrow::Cow::into_owned))
}
