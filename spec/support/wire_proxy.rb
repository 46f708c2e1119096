# frozen_string_literal: true

require "socket"

# The wire between a client and a server, where it can be slow, deliver in crumbs, or break.
class WireProxy
  CHUNK = 65_536

  class << self
    # @param target [Integer] the server's port on this host
    def open(target)
      proxy = new(target)
      yield proxy
    ensure
      proxy&.close
    end
  end

  attr_reader :port

  def initialize(target)
    @target = target
    @server = TCPServer.new("127.0.0.1", 0)
    @port = @server.local_address.ip_port
    @mutex = Mutex.new
    @sockets = []
    @requests = 0
    @rules = {request: nil, reply: nil}
    @threads = [Thread.new { accept }]
  end

  def url
    "redis://127.0.0.1:#{port}/0"
  end

  # @return [Integer] how many connections were made so far
  def connections
    @mutex.synchronize { @sockets.size / 2 }
  end

  # @return [Integer] how many pieces the clients sent so far
  def requests
    @mutex.synchronize { @requests }
  end

  # Whatever the server sends arrives one byte at a time.
  #
  # @param pause [Float] between two of them, in s
  def crumble_replies(pause: 0.0001)
    rule(:reply) do |bytes, client|
      bytes.each_byte do |byte|
        client.write(byte.chr)
        sleep pause
      end
    end
  end

  # Whatever the server sends arrives later.
  #
  # @yieldreturn [Float] by how much, in s
  def delay_replies
    rule(:reply) do |bytes, client|
      sleep yield
      client.write(bytes)
    end
  end

  # Whatever is sent, either way, arrives one byte at a time.
  def crumble
    split { 1 }
  end

  # Whatever is sent, either way, arrives in pieces.
  #
  # @yieldreturn [Integer] how many bytes the next of them has, at least 1
  def split
    both_ways do |bytes, receiver|
      start = 0
      while start < bytes.bytesize
        receiver.write(piece = bytes.byteslice(start, yield))
        start += piece.bytesize
        Thread.pass
      end
    end
  end

  # Whatever is sent, either way, arrives later.
  #
  # @param seconds [Float] by how much each way
  def delay(seconds)
    both_ways do |bytes, receiver|
      sleep seconds
      receiver.write(bytes)
    end
  end

  # Of what is sent next only the beginning arrives, and nothing more over this connection.
  #
  # @param direction [Symbol] :request or :reply
  # @param after [Integer] how many bytes arrive
  # @return [Thread::Queue] has something in it once they have
  def hold_next(direction, after:)
    left = after
    Thread::Queue.new.tap do |held|
      rule(direction) do |bytes, receiver|
        receiver.write(bytes.byteslice(0, left))
        left -= [left, bytes.bytesize].min
        if left.zero?
          rule(direction)
          held << true
          sleep
        end
      end
    end
  end

  # The next request arrives; of its reply only the beginning comes back before the wire breaks.
  #
  # @param kept [Integer] how many bytes of it
  def cut_next_reply(kept: 0)
    cut(:reply, kept)
  end

  # The next request that matches arrives; its reply never comes back.
  #
  # @param pattern [Regexp]
  def cut_reply_to(pattern)
    rule(:request) do |bytes, server|
      if bytes.b.match?(pattern)
        rule(:request)
        cut(:reply, 0)
      end
      server.write(bytes)
    end
  end

  # Of the next request only the beginning arrives before the wire breaks.
  #
  # @param kept [Integer] how many bytes of it
  def cut_next_request(kept: 0)
    cut(:request, kept)
  end

  # New connections end at another server.
  #
  # @param target [Integer] its port
  def lead_to(target)
    @mutex.synchronize { @target = target }
  end

  def close
    @server.close
    @threads.each(&:kill).each(&:join)
    @mutex.synchronize { @sockets.each(&:close) }
  end

  private

  def rule(direction, &block)
    @mutex.synchronize { @rules[direction] = block }
  end

  def both_ways(&block)
    rule(:request, &block)
    rule(:reply, &block)
  end

  def cut(direction, kept)
    rule(direction) do |bytes, receiver|
      rule(direction)
      receiver.write(bytes.byteslice(0, kept))
      :cut
    end
  end

  def accept
    loop do
      client = @server.accept
      server = TCPSocket.new("127.0.0.1", @mutex.synchronize { @target })
      [client, server].each { |socket| socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1) }
      @mutex.synchronize { @sockets << client << server }
      @threads << Thread.new { forward(:request, client, server) } << Thread.new { forward(:reply, server, client) }
    rescue SystemCallError
      client&.close
    rescue IOError
      break
    end
  end

  def forward(direction, from, to)
    loop do
      bytes = from.readpartial(CHUNK)
      rule = @mutex.synchronize do
        @requests += 1 if direction == :request
        @rules[direction]
      end
      break if rule ? rule.call(bytes, to) == :cut : !to.write(bytes)
    end
  rescue IOError, SystemCallError
    nil
  ensure
    [from, to].each { |socket| hang_up(socket) }
  end

  # Ends the connection for both of its threads; who made the socket closes it.
  def hang_up(socket)
    socket.shutdown
  rescue IOError, SystemCallError
    nil
  end
end
