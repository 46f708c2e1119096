//! A connection that remembers what went over it, loses answers, lets others be faster, hands errors over in the other of the two
//! ways, and refuses to queue like a full Redis 7.0.

use redis::{Connection, ConnectionLike, ErrorKind, RedisError, RedisResult, Value};

pub struct Wire {
    inner: Connection,
    /// Each write, byte for byte.
    pub sent: Vec<Vec<u8>>,
    /// So many of the next answers are lost: the server has done what it was asked for, and nobody learns it.
    pub answers_to_lose: usize,
    /// How many answers to let through before that.
    pub answers_to_spare: usize,
    /// What happens on the server before so many more writes have gone out: someone else is faster.
    pub meanwhile: Option<(usize, Box<dyn FnOnce()>)>,
    /// Errors of the server come as `Err` instead of as values: a `ConnectionLike` may do either.
    pub errors_as_err: bool,
    /// As Redis 7.0 does when its memory is full, no command of a transaction is queued.
    pub queues_nothing: bool,
}

impl Wire {
    pub fn over(inner: Connection) -> Self {
        Self {
            inner,
            sent: Vec::new(),
            answers_to_lose: 0,
            answers_to_spare: 0,
            meanwhile: None,
            errors_as_err: false,
            queues_nothing: false,
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        match self.meanwhile.take() {
            Some((0, happen)) => happen(),
            Some((writes, happen)) => self.meanwhile = Some((writes - 1, happen)),
            None => {}
        }
        self.sent.push(bytes.to_vec());
    }

    fn deliver<T>(&mut self, answer: RedisResult<T>) -> RedisResult<T> {
        if self.answers_to_spare > 0 {
            self.answers_to_spare -= 1;
        } else if self.answers_to_lose > 0 {
            self.answers_to_lose -= 1;
            return Err(RedisError::from((ErrorKind::Io, "the answer was lost")));
        }
        answer
    }
}

impl ConnectionLike for Wire {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        self.write(cmd);
        let answer = self.inner.req_packed_command(cmd);
        let answer = if self.errors_as_err { answer.and_then(Value::extract_error) } else { answer };
        self.deliver(answer)
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.write(cmd);
        if self.queues_nothing && cmd.starts_with(b"*1\r\n$5\r\nMULTI\r\n") {
            let refused = redis::parse_redis_value(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n")?;
            let aborted = redis::parse_redis_value(b"-EXECABORT Transaction discarded because of previous errors.\r\n")?;
            let queued = std::iter::repeat_n(refused, count.saturating_sub(2));
            return Ok(std::iter::once(Value::Okay).chain(queued).chain([aborted]).collect());
        }
        let answer = self.inner.req_packed_commands(cmd, offset, count);
        let answer = if self.errors_as_err {
            answer.and_then(|values| values.into_iter().map(Value::extract_error).collect())
        } else {
            answer
        };
        self.deliver(answer)
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.inner.check_connection()
    }

    fn is_open(&self) -> bool {
        self.inner.is_open()
    }
}
