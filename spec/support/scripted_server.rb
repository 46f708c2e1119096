# frozen_string_literal: true

require "socket"

# What a real Redis cannot be brought to say: a TCP server that opens a session as Redis does and answers one command, in bytes,
# as it is told. Everything else of this suite talks to a real Redis.
class ScriptedServer
  GREETING = "%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n"
  OK = "+OK\r\n"

  class << self
    # @param command [String] the name of the command that is answered by the script; the others as in an empty Redis
    # @param answers [Array<String, Symbol, Proc>] what is answered, one after the other, the last one again and again; :close
    #   hangs up, :silence says nothing any more, a Proc is given the command
    def open(command, *answers)
      server = new(command, answers)
      yield server
    ensure
      server&.close
    end
  end

  attr_reader :port

  def initialize(command, answers)
    @command = command
    @answers = answers
    @asked = []
    @mutex = Mutex.new
    @server = TCPServer.new("127.0.0.1", 0)
    @port = @server.local_address.ip_port
    @threads = [Thread.new { accept }]
  end

  def url
    "redis://127.0.0.1:#{port}/0"
  end

  # @return [Array<Array<String>>] the commands that were answered by the script, with their arguments
  def asked
    @mutex.synchronize { @asked.dup }
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
    while (command = read_command(client))
      answer = answer_to(command)
      break if answer == :close

      sleep if answer == :silence
      client.write(answer)
    end
  rescue IOError, SystemCallError
    nil
  ensure
    client.close
  end

  def read_command(client)
    header = client.gets("\r\n") or return
    Array.new(Integer(header[1..])) do
      size = Integer(client.gets("\r\n")[1..])
      client.read(size + 2).byteslice(0, size)
    end
  end

  def answer_to(command)
    name = command.first.upcase
    return scripted(command) if name == @command

    case name
    when "HELLO" then GREETING
    when "TIME" then "*2\r\n$10\r\n#{Time.now.to_i}\r\n$1\r\n0\r\n"
    when "ZADD", "HSET", "EXPIRE", "ZREM", "HDEL" then "+QUEUED\r\n"
    else OK
    end
  end

  def scripted(command)
    @mutex.synchronize do
      @asked << command
      answer = (@answers.size > 1) ? @answers.shift : @answers.first
      answer.respond_to?(:call) ? answer.call(command) : answer
    end
  end
end
