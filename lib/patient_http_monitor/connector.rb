# frozen_string_literal: true

require "openssl"
require "socket"

module PatientHttpMonitor
  # Connects to the Redis of one of Sidekiq's pools: the same host, user, database and TLS context that redis-client would use,
  # taken from the settings that it has resolved. Talking over the socket is Rust's.
  #
  # @api private
  class Connector
    # What redis-client takes, where it has no such setting, in s.
    IDLE_TIMEOUT = 30.0
    # What Sidekiq takes, in s.
    POOL_TIMEOUT = 1.0
    # The first probe of a silent connection, and the ones after it, in s.
    KEEP_ALIVE_INTERVAL = 15
    KEEP_ALIVE_PROBES = 7
    # Each as level, option and value: those that this platform knows.
    KEEP_ALIVE = [
      [:SOL_SOCKET, :SO_KEEPALIVE, 1],
      [:IPPROTO_TCP, :TCP_KEEPIDLE, KEEP_ALIVE_INTERVAL],
      [:IPPROTO_TCP, :TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL],
      [:IPPROTO_TCP, :TCP_KEEPCNT, KEEP_ALIVE_PROBES]
    ].select { |names| names.first(2).all? { |name| Socket.const_defined?(name) } }
      .map { |level, option, value| [Socket.const_get(level), Socket.const_get(option), value].freeze }.freeze
    # What opening a socket and shaking hands may raise. IOError is not among it: it would be someone's interrupt.
    CONNECT_ERRORS = [SystemCallError, SocketError, OpenSSL::OpenSSLError, (IO::TimeoutError if defined?(IO::TimeoutError))].compact.freeze
    # Of passwords that change so many are known again where a server shows one: those of connections that are still open.
    PASSWORDS = 10
    # This gem introduces itself with these; a Redis before 7.2 does not know them, which is no error.
    INTRODUCTION = [
      ["CLIENT", "SETINFO", "LIB-NAME", "patient_http_monitor"].freeze,
      ["CLIENT", "SETINFO", "LIB-VER", VERSION].freeze
    ].freeze
    private_constant :IDLE_TIMEOUT, :POOL_TIMEOUT, :KEEP_ALIVE_INTERVAL, :KEEP_ALIVE_PROBES, :KEEP_ALIVE, :CONNECT_ERRORS,
      :PASSWORDS, :INTRODUCTION

    # Reads the settings, for which it takes a client out of the pool; nothing is connected.
    #
    # @param sidekiq_pool [ConnectionPool] one of Sidekiq's
    # @raise [ArgumentError] for a Redis Cluster
    # @raise [ConnectionPool::TimeoutError] when the pool has no client to lend
    # @raise [ThreadError] in a trap handler
    def initialize(sidekiq_pool)
      refuse_trap_handlers
      @config = sidekiq_pool.with { |client| client.config }
      unless @config.respond_to?(:connection_prelude)
        raise ArgumentError, "patient_http_monitor cannot use a Redis Cluster (the `nodes:` setting of Sidekiq's Redis), " \
          "and neither can Sidekiq: give Sidekiq a single Redis, or one behind Sentinel"
      end
      @pool_timeout = sidekiq_pool.instance_variable_get(:@timeout) || POOL_TIMEOUT
      @passwords = []
    end

    # @return [Float] for how long a caller waits for a connection, in s
    attr_reader :pool_timeout

    # @return [Array(Float, Float)] of reading and writing, in s; nil for no limit
    def timeouts
      [@config.read_timeout, @config.write_timeout]
    end

    # @return [Float] after how long without use a connection is checked, in s
    def idle_timeout
      (@config.idle_timeout if @config.respond_to?(:idle_timeout)) || IDLE_TIMEOUT
    end

    # Opens a socket and its TLS layer.
    #
    # @return [Array(IO, OpenSSL::SSL::SSLSocket)] the second nil without TLS
    # @raise [RedisClient::CannotConnectError] naming host and port
    # @raise [ThreadError] in a trap handler, where Sentinel would have to be asked
    def open
      refuse_trap_handlers if sentinel?
      io = @config.path ? UNIXSocket.new(@config.path) : open_tcp
      tune(io) unless @config.path
      opened = [io, @config.ssl ? secure(io) : nil]
    rescue *CONNECT_ERRORS, ::RedisClient::ConnectionError => error
      # FailoverError and CannotConnectError stay what they are, as in redis-client.
      raise if error.is_a?(::RedisClient::FailoverError) || error.is_a?(::RedisClient::CannotConnectError)

      raise RedisErrors.connection("CannotConnectError", error.message, @config)
    rescue ::RedisClient::CommandError, ::RedisClient::UnsupportedServer => error
      # A sentinel's, made by redis-client: its command holds the password, and its cause may.
      raise RedisErrors.without_secrets(error) { |message| without_password(message) }, cause: nil
    ensure
      # An interrupt must not leave the socket behind, and a kill is rescued nowhere.
      io&.close unless opened
    end

    # @return [Array(Array<Array<String>>, Integer)] the commands that open a session, with the password of this moment, and how
    #   many of them at the end may fail
    def prelude
      commands = @config.connection_prelude.map { |command| command.map { |argument| resolve(argument) } }
      remember(commands.filter_map { |command| command.last if command.include?("AUTH") })
      informing, required = commands.partition { |command| command.first(2) == %w[CLIENT SETINFO] }
      required << ["CLIENT", "SETNAME", @config.id.to_s] if @config.id
      optional = informing + INTRODUCTION
      [required + optional, optional.size]
    end

    # @return [Boolean] whether the server was named by Sentinel
    def sentinel?
      @config.sentinel?
    end

    # @param role [String] as the server says
    # @raise [RedisClient::FailoverError] when another one was asked for
    def check_role(role)
      @config.check_role!(role)
    end

    # Makes Sentinel be asked again.
    def forget_master
      @config.reset if sentinel?
    end

    # Whether to try again, by the application's `reconnect_attempts`; sleeps as they say. What took its full time is not
    # repeated: a call ends by its timeout.
    #
    # @param attempt [Integer] how many tries were made again so far
    # @param error [Exception]
    # @return [Boolean]
    def retry?(attempt, error)
      return false unless error.is_a?(::RedisClient::ConnectionError) && !error.is_a?(::RedisClient::TimeoutError)

      if timed_out?(error.cause)
        # A master that is cut off says nothing, and the next call must not go there again: redis-client asks Sentinel, too.
        forget_master
        return false
      end

      @config.retry_connecting?(attempt, error)
    end

    # @param name [String] a class under RedisClient
    # @param message [String]
    # @return [RedisClient::Error]
    def connection_error(name, message)
      RedisErrors.connection(name, message, @config)
    end

    # @param name [String] a class under RedisClient: what went wrong before the connection could be used
    # @param message [String]
    # @return [RedisClient::CannotConnectError] caused by it
    def handshake_error(name, message)
      cannot_connect(connection_error(name, message), message)
    end

    # @param message [String] as the server sent it
    # @param command [String] its name
    # @return [RedisClient::Error] CannotConnectError where redis-client says so
    def handshake_command_error(message, command)
      message = without_password(RedisErrors.without_arguments(message))
      error = command_error(message, command)
      error.is_a?(::RedisClient::ConnectionError) ? cannot_connect(error, message) : error
    end

    # @param message [String] as the server sent it
    # @param command [String] its name
    # @return [RedisClient::Error]
    def command_error(message, command)
      if message.include?("unknown command") && command == "HELLO"
        return connection_error("UnsupportedServer", "Redis 6.2 or later is required, with its HELLO command")
      end

      RedisErrors.command(without_password(message), command, @config)
    end

    # @param ceiling [Integer] how many connections there are
    # @return [ConnectionPool::TimeoutError] what Sidekiq's own pool raises
    def checkout_error(ceiling)
      ::ConnectionPool::TimeoutError.new("Waited #{@pool_timeout} sec, 0/#{ceiling} available (patient_http_monitor's connections)")
    end

    # @return [String] without anything secret
    def inspect
      "#<#{self.class} #{@config.server_url if @config.resolved?}>"
    end

    private

    def remember(passwords)
      @passwords = (passwords | @passwords).first(PASSWORDS)
    end

    # Redis quotes a password in no other place, but not every server is Redis, and a proxy may say what it was sent.
    def without_password(message)
      passwords = @passwords + (sentinel? ? @config.sentinels.map(&:password).grep(String) : [])
      return message if passwords.none? { |password| !password.empty? && message.b.include?(password.b) }

      "#{message[/\A[A-Z]+\b/] || "ERR"} (not shown: the server's words hold the password)"
    end

    # Ruby says no more than that something "can't be called from trap context".
    def refuse_trap_handlers
      Thread::Mutex.new.synchronize { nil }
    rescue ThreadError
      raise ThreadError, "patient_http_monitor cannot be called from a trap handler before it has been used elsewhere: Sidekiq's " \
        "settings are behind a Mutex, which Ruby does not lock there. Call it once before, or from a thread: Thread.new { ... }.join"
    end

    # @return [RedisClient::CannotConnectError] with the other error as its cause
    def cannot_connect(error, message)
      raise error
    rescue ::RedisClient::Error
      begin
        raise connection_error("CannotConnectError", message)
      rescue ::RedisClient::CannotConnectError => caused
        caused
      end
    end

    def open_tcp
      timeout = @config.connect_timeout
      Socket.tcp(@config.host, @config.port, connect_timeout: timeout, resolv_timeout: timeout)
    end

    def tune(socket)
      socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
      KEEP_ALIVE.each { |level, option, value| socket.setsockopt(level, option, value) }
    end

    def secure(io)
      ssl = OpenSSL::SSL::SSLSocket.new(io, @config.ssl_context)
      ssl.hostname = @config.host if @config.host
      deadline = now + @config.connect_timeout if @config.connect_timeout
      loop do
        case ssl.connect_nonblock(exception: false)
        when :wait_readable then wait(io, deadline, :wait_readable)
        when :wait_writable then wait(io, deadline, :wait_writable)
        else return ssl
        end
      end
    end

    def wait(io, deadline, event)
      left = deadline && [deadline - now, 0].max
      # A Fiber scheduler may end it early: the caller tries again.
      return if io.public_send(event, left) || deadline.nil? || now < deadline

      raise Errno::ETIMEDOUT, "TLS handshake with #{@config.host}:#{@config.port}"
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end

    # redis-client before 0.23 leaves a password callable as it is.
    def resolve(argument)
      argument.respond_to?(:call) ? argument.call(@config.username).to_s : argument.to_s
    end

    def timed_out?(error)
      error.is_a?(Errno::ETIMEDOUT) || error.is_a?(::RedisClient::TimeoutError) || (defined?(IO::TimeoutError) && error.is_a?(IO::TimeoutError))
    end
  end
  private_constant :Connector
end
