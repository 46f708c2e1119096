# frozen_string_literal: true

require "socket"

# An HTTP server whose answers take their time. The path says which request it is and how long its answer takes, in s, or that it
# is held until the server lets go: `/17/0.25`, `/17/held`. It counts what it is asked.
class AnsweringServer
  class << self
    # @param path [String]
    # @return [String] the answer's body
    def answer_to(path)
      "the answer to #{path}"
    end
  end

  attr_reader :port

  def initialize
    @listener = TCPServer.new("127.0.0.1", 0)
    # Many ask at once.
    @listener.listen(1024)
    @port = @listener.local_address.ip_port
    @lock = Mutex.new
    @let_go = ConditionVariable.new
    @holds = true
    @asked = Hash.new(0)
    @acceptor = Thread.new { loop { Thread.new(@listener.accept) { |client| serve(client) } } }
    @acceptor.report_on_exception = false
  end

  # @return [Hash{String => Integer}] path to how often it was asked for
  def asked
    @lock.synchronize { @asked.dup }
  end

  # From now on no answer is held.
  def let_go
    @lock.synchronize do
      @holds = false
      @let_go.broadcast
    end
  end

  def stop
    @acceptor.kill.join
    @listener.close
    let_go
  end

  private

  def serve(client)
    path = client.gets.split[1]
    nil until client.gets == "\r\n"
    @lock.synchronize do
      @asked[path] += 1
      @let_go.wait(@lock) while path.end_with?("/held") && @holds
    end
    sleep Float(path.split("/").last) unless path.end_with?("/held")
    body = self.class.answer_to(path)
    client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
  rescue SystemCallError, IOError, NoMethodError
    # Whoever asked is gone.
    nil
  ensure
    client.close
  end
end
