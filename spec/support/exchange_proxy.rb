# frozen_string_literal: true

require "digest"
require "socket"
require "strscan"

# The wire between clients and a server, looked at exchange by exchange: what a client sends until the server answers, a pipeline
# or a transaction being one exchange. Any of them can be cut on the way to the server, or on the way back.
class ExchangeProxy
  CHUNK = 1_048_576
  SCRIPT_FILES = Dir[File.expand_path("../../ext/inflight_registry/scripts/*.lua", __dir__)].freeze
  # By SHA1.
  SCRIPTS = SCRIPT_FILES.to_h { |path| [Digest::SHA1.hexdigest(File.binread(path)), File.basename(path, ".lua")] }.freeze
  # By the first command that is among these, in this order; of the others by the first of all.
  KINDS = {"HELLO" => "hello", "LPUSH" => "push", "HLEN" => "begin", "SADD" => "ping", "HSET" => "register",
           "HDEL" => "unregister", "SREM" => "remove"}.freeze

  # One exchange. `number` counts from 1, all connections together.
  Exchange = Struct.new(:number, :kind) do
    def to_s
      "exchange #{number} (#{kind})"
    end
  end

  class << self
    # @param target [Integer] the server's port on this host
    # @param plan [#call] is given each exchange before it goes on, and answers :request where that is not to arrive, :reply where
    #   the reply is not to come back, else nil
    # @param on_cut [#call, nil] is called where an exchange is cut, just before the connection is closed
    def open(target, plan, on_cut: nil)
      proxy = new(target, plan, on_cut)
      yield proxy
    ensure
      proxy&.close
    end

    # Makes the server know the scripts, so that none of them takes a second exchange.
    def load_scripts(server)
      SCRIPT_FILES.each { |path| server.call("SCRIPT", "LOAD", File.binread(path)) }
    end

    # @param bytes [String] as a client sent them
    # @return [Array<Array<String>>] the commands
    def commands(bytes)
      scanner = StringScanner.new(bytes.b)
      found = []
      while scanner.skip(/\*(\d+)\r\n/n)
        found << Array.new(Integer(scanner[1])) do
          return found unless scanner.skip(/\$(\d+)\r\n/n)

          size = Integer(scanner[1])
          scanner.pos += (text = scanner.peek(size)).bytesize
          scanner.skip(/\r\n/n)
          text
        end
      end
      found
    end

    # @return [String] what the exchange does, by the name of its script or by {KINDS}
    def kind(bytes)
      sent = commands(bytes)
      names = sent.map { |command| command.first.to_s.upcase }
      first = sent.first || ["?"]
      case names.first
      when "EVALSHA" then SCRIPTS.fetch(first[1], "another script")
      when "EVAL" then SCRIPTS.fetch(Digest::SHA1.hexdigest(first[1]), "another script")
      else KINDS.find { |name, _| names.include?(name) }&.last || first.first.downcase
      end
    end
  end

  # @return [Array<Exchange>] all so far, and those that were cut
  attr_reader :exchanges, :cuts

  attr_reader :port

  def initialize(target, plan, on_cut)
    @target = target
    @plan = plan
    @on_cut = on_cut
    @exchanges = []
    @cuts = []
    @mutex = Mutex.new
    @server = TCPServer.new("127.0.0.1", 0)
    @port = @server.local_address.ip_port
    @threads = [Thread.new { accept }]
  end

  def url
    "redis://127.0.0.1:#{port}/0"
  end

  # @param settings [Hash] of a client
  # @return [ConnectionPool] Sidekiq's, through this proxy
  def pool(**settings)
    Sidekiq::RedisConnection.create(url: url, timeout: 5, size: 5, **settings)
  end

  def close
    @server.close
    @threads.each(&:kill).each(&:join)
  end

  private

  def accept
    loop do
      client = @server.accept
      @threads << Thread.new { serve(client) }
    rescue IOError, SystemCallError
      break
    end
  end

  def serve(client)
    server = TCPSocket.new("127.0.0.1", @target)
    [client, server].each { |socket| socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1) }
    relay(client, server)
  rescue IOError, SystemCallError
    nil
  ensure
    [client, server].each { |socket| socket&.close }
  end

  def relay(client, server)
    exchange = fate = nil
    loop do
      readable, = IO.select([client, server])
      if readable.include?(server)
        bytes = server.readpartial(CHUNK)
        return cut(exchange) if fate == :reply

        exchange = fate = nil
        client.write(bytes)
      else
        bytes = client.readpartial(CHUNK)
        exchange, fate = begin_exchange(bytes) unless exchange
        return cut(exchange) if fate == :request

        server.write(bytes)
      end
    end
  end

  def begin_exchange(bytes)
    @mutex.synchronize do
      @exchanges << (exchange = Exchange.new(@exchanges.size + 1, self.class.kind(bytes)))
      [exchange, @plan.call(exchange)]
    end
  end

  def cut(exchange)
    @mutex.synchronize { @cuts << exchange }
    @on_cut&.call
  end
end
