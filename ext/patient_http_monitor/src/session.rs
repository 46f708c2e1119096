//! One checked-out connection at work: the core's requests go out and their replies come in, in blocking style, while every
//! wait is Ruby's.

use crate::connection::Connection;
use crate::connector::{Fault, symbol_name};
use crate::unreadable::Beginning;
use crate::wait::{self, Event};
use crate::{convert, fork, guard};
use magnus::typed_data::Obj;
use magnus::value::ReprValue;
use magnus::{Error, KwArgs, RHash, RString, Ruby, Value};
use redis::{ConnectionLike, RedisError, RedisResult};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

/// How much of a request goes into one TLS write: a copy is made for each.
const TLS_CHUNK: usize = 64 * 1024;

/// What a child is told that was forked in the middle of a call.
pub(crate) const FORKED: &str = "this process was forked in the middle of the call, which is its parent's";

/// Why a session cannot go on. Kept beside the connection while the Rust frames unwind, and raised then.
pub(crate) enum Failure {
    /// The connection failed.
    Fault(Fault, String),
    /// Something interrupted a wait: an exception, a kill, a signal. Its reply is still owed.
    Interrupt(Error),
}

enum Transport {
    Plain(RawFd),
    Tls { ssl: Value, no_exception: RHash },
}

/// A connection in use. Lives on the stack, where the garbage collector sees its values.
pub(crate) struct Session<'ruby> {
    ruby: &'ruby Ruby,
    connection: Obj<Connection>,
    parser: Box<redis::Parser>,
    stream: Stream<'ruby>,
}

struct Stream<'ruby> {
    ruby: &'ruby Ruby,
    io: Value,
    transport: Transport,
    read_timeout: Option<f64>,
    write_timeout: Option<f64>,
    generation: u32,
    failure: Option<Failure>,
    beginning: Beginning,
    /// Whether something came that the parser refused: it does not know where the next reply begins.
    lost: bool,
}

impl<'ruby> Session<'ruby> {
    /// Begins with a connection that has its sockets.
    ///
    /// # Errors
    /// IOError when the socket was closed by someone else.
    pub(crate) fn begin(
        ruby: &'ruby Ruby,
        connection: Obj<Connection>,
        read_timeout: Option<f64>,
        write_timeout: Option<f64>,
    ) -> Result<Self, Error> {
        let closed = || Error::new(ruby.exception_io_error(), "closed stream");
        let io = connection.io(ruby).ok_or_else(closed)?;
        let fd = wait::descriptor(io)?;
        let transport = match connection.ssl(ruby) {
            Some(ssl) => {
                let no_exception = ruby.hash_new();
                no_exception.aset(ruby.to_symbol("exception"), false)?;
                Transport::Tls { ssl, no_exception }
            }
            None => Transport::Plain(fd),
        };
        let stream = Stream {
            ruby,
            io,
            transport,
            read_timeout,
            write_timeout,
            generation: fork::generation(),
            failure: None,
            beginning: Beginning::default(),
            lost: false,
        };
        Ok(Self { ruby, connection, parser: connection.take_parser(), stream })
    }

    /// Ends with every reply read: the connection can serve another call.
    pub(crate) fn end(self) -> Obj<Connection> {
        self.connection.put_parser(self.parser);
        self.connection
    }

    /// Ends a session that failed: the connection is closed. Returns why.
    pub(crate) fn abandon(self) -> Option<Failure> {
        if let Some(Failure::Interrupt(interrupt)) = self.stream.failure {
            return Some(Failure::Interrupt(Self::abandon_for(self.ruby, self.connection, interrupt)));
        }
        match Connection::close(self.ruby, self.connection) {
            Err(interrupt) => Some(Failure::Interrupt(interrupt)),
            Ok(()) => self.stream.failure,
        }
    }

    /// Ends one that could go on, because of an error that came from elsewhere. Returns what goes on to the caller.
    pub(crate) fn abandon_because(self, error: Error) -> Error {
        Self::abandon_for(self.ruby, self.connection, error)
    }

    fn abandon_for(ruby: &Ruby, connection: Obj<Connection>, held: Error) -> Error {
        guard::clearing_away(held, || {
            Connection::close_elsewhere(ruby, connection);
            Ok(())
        })
    }

    /// Sends commands in one write and reads as many replies as come, with what ended them if it was too early.
    pub(crate) fn replies(&mut self, packed: &[u8], count: usize) -> (Vec<redis::Value>, RedisResult<()>) {
        let mut replies = Vec::with_capacity(count);
        let mut outcome = self.stream.write_all(packed);
        while outcome.is_ok() && replies.len() < count {
            match self.receive() {
                Ok(reply) => replies.push(reply),
                Err(error) => outcome = Err(error),
            }
        }
        (replies, outcome)
    }

    /// Whether the connection is of no more use, whatever the server said.
    pub(crate) fn is_lost(&self) -> bool {
        self.stream.lost
    }

    fn receive(&mut self) -> RedisResult<redis::Value> {
        loop {
            match self.parser.parse_value(&mut self.stream) {
                // Not a reply to anything that was asked.
                Ok(redis::Value::Push { .. }) => {}
                Ok(value) => return Ok(value),
                Err(error) => {
                    self.stream.lost = true;
                    let said = if self.stream.failure.is_none() { self.stream.beginning.error() } else { None };
                    return Err(said.unwrap_or(error));
                }
            }
        }
    }
}

impl ConnectionLike for Session<'_> {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<redis::Value> {
        self.stream.write_all(cmd)?;
        self.receive()
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<redis::Value>> {
        self.stream.write_all(cmd)?;
        for _ in 0..offset {
            self.receive()?;
        }
        (0..count).map(|_| self.receive()).collect()
    }

    fn get_db(&self) -> i64 {
        // Chosen by the prelude; nothing here depends on it.
        0
    }

    fn check_connection(&mut self) -> bool {
        self.req_command(&redis::cmd("PING")).is_ok()
    }

    fn is_open(&self) -> bool {
        self.stream.failure.is_none()
    }
}

impl Stream<'_> {
    /// Keeps the failure and gives the parser something to carry up.
    fn fail(&mut self, failure: Failure) -> io::Error {
        self.failure = Some(failure);
        io::Error::other("see Stream::failure")
    }

    fn fault(&mut self, fault: Fault, detail: impl Into<String>) -> io::Error {
        self.fail(Failure::Fault(fault, detail.into()))
    }

    fn wait(&mut self, event: Event) -> io::Result<()> {
        let (timeout, fault) = match event {
            Event::Readable => (self.read_timeout, Fault::ReadTimeout),
            Event::Writable => (self.write_timeout, Fault::WriteTimeout),
        };
        match wait::io_wait(self.ruby, self.io, event, timeout) {
            Ok(true) => self.look_again(),
            Ok(false) => {
                let detail = timeout.map_or_else(String::new, |seconds| format!("Waited {seconds} seconds"));
                Err(self.fault(fault, detail))
            }
            // Ruby says so when another thread closed the IO.
            Err(error) if error.is_kind_of(self.ruby.exception_io_error()) && wait::descriptor(self.io).is_err() => {
                Err(self.fault(Fault::Closed, error.to_string()))
            }
            Err(error) => Err(self.fail(Failure::Interrupt(error))),
        }
    }

    /// While Ruby ran anything may have happened: a fork, after which the socket is the parent's and this fiber a copy of the
    /// parent's; or the IO was closed, and its descriptor is another's now.
    fn look_again(&mut self) -> io::Result<()> {
        if self.generation != fork::generation() {
            return Err(self.fault(Fault::Forked, FORKED));
        }
        let fd = wait::descriptor(self.io).map_err(|error| self.fault(Fault::Closed, error.to_string()))?;
        if let Transport::Plain(known) = &mut self.transport {
            *known = fd;
        }
        Ok(())
    }

    fn write_all(&mut self, mut rest: &[u8]) -> RedisResult<()> {
        // Ruby may have run since the last look: a password callable, another thread.
        self.look_again().map_err(RedisError::from)?;
        self.beginning.clear();
        while !rest.is_empty() {
            let written = self.write_some(rest).map_err(RedisError::from)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = match self.transport {
            Transport::Plain(fd) => fd,
            Transport::Tls { ssl, no_exception } => return self.write_tls(ssl, no_exception, bytes),
        };
        match send(borrow(fd), bytes, send_flags()) {
            Ok(written) => Ok(written),
            // Nothing written: the caller tries again.
            Err(Errno::INTR) => Ok(0),
            Err(Errno::AGAIN) => self.wait(Event::Writable).map(|()| 0),
            Err(error) => Err(self.fault(Fault::Closed, describe(error))),
        }
    }

    fn write_tls(&mut self, ssl: Value, no_exception: RHash, bytes: &[u8]) -> io::Result<usize> {
        let chunk = self.ruby.str_from_slice(bytes.get(..TLS_CHUNK).unwrap_or(bytes));
        loop {
            let written = self.call_tls(ssl.funcall("write_nonblock", (chunk, KwArgs(no_exception))))?;
            match symbol_name(written).as_deref() {
                Some("wait_readable") => self.wait(Event::Readable)?,
                Some(_) => self.wait(Event::Writable)?,
                None => {
                    return <usize as magnus::TryConvert>::try_convert(written)
                        .map_err(|error| self.fault(Fault::Closed, error.to_string()));
                }
            }
        }
    }

    fn read_tls(&mut self, ssl: Value, no_exception: RHash, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.call_tls(ssl.funcall("read_nonblock", (buffer.len(), KwArgs(no_exception))))?;
            match symbol_name(read).as_deref() {
                Some("wait_writable") => self.wait(Event::Writable)?,
                Some(_) => self.wait(Event::Readable)?,
                None => {
                    let Some(data) = RString::from_value(read) else {
                        return Err(self.fault(Fault::Closed, "the server closed the connection"));
                    };
                    let data = convert::bytes(data);
                    return match buffer.get_mut(..data.len()) {
                        Some(start) => {
                            start.copy_from_slice(&data);
                            Ok(data.len())
                        }
                        None => Err(self.fault(Fault::Protocol, "TLS returned more than was asked for")),
                    };
                }
            }
        }
    }

    /// An error of OpenSSL or of the socket below ends the connection; everything else is an interrupt.
    fn call_tls(&mut self, result: Result<Value, Error>) -> io::Result<Value> {
        match result {
            Ok(value) => self.look_again().map(|()| value),
            Err(error) => {
                let of_the_connection = error.value().is_some_and(|value| {
                    value.is_kind_of(self.ruby.exception_io_error())
                        || value.is_kind_of(self.ruby.exception_system_call_error())
                        || is_openssl_error(self.ruby, value)
                });
                // An interrupt comes first: it must not get lost because the connection is of no use either.
                if !of_the_connection {
                    return Err(self.fail(Failure::Interrupt(error)));
                }
                self.look_again()?;
                Err(self.fault(Fault::Closed, error.to_string()))
            }
        }
    }
}

impl io::Read for &mut Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_some(buffer)?;
        self.beginning.add(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl Stream<'_> {
    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let fd = match self.transport {
                Transport::Plain(fd) => fd,
                Transport::Tls { ssl, no_exception } => return self.read_tls(ssl, no_exception, buffer),
            };
            match recv(borrow(fd), &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) if !buffer.is_empty() => return Err(self.fault(Fault::Closed, "the server closed the connection")),
                Ok((read, _)) => return Ok(read),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(Event::Readable)?,
                Err(error) => return Err(self.fault(Fault::Closed, describe(error))),
            }
        }
    }
}

fn send_flags() -> SendFlags {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    // Ruby ignores SIGPIPE already.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return SendFlags::DONTWAIT;
}

fn borrow<'fd>(fd: RawFd) -> BorrowedFd<'fd> {
    // SAFETY: the Ruby IO that owns the descriptor is alive on this stack (`Stream::io`). It was open when the descriptor was
    // asked for, at the beginning and again after each wait (`Stream::look_again`), and nothing of Ruby has run since.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn describe(error: Errno) -> String {
    io::Error::from(error).to_string()
}

fn is_openssl_error(ruby: &Ruby, value: Value) -> bool {
    use magnus::{Module, RClass, RModule};
    ruby.class_object()
        .const_get::<_, RModule>("OpenSSL")
        .and_then(|openssl| openssl.const_get::<_, RClass>("OpenSSLError"))
        .is_ok_and(|class| value.is_kind_of(class))
}
