# frozen_string_literal: true

require "redis_client"
require "socket"
require_relative "failure"

module Demo
  # A redis-server of the demo's own, on a free port, keeping everything in memory.
  class RedisServer
    # In s.
    START_TIMEOUT = 10
    # Somebody else may take the free port first.
    ATTEMPTS = 3

    attr_reader :port, :child

    def initialize(children, signals)
      @children = children
      @signals = signals
    end

    def start
      ATTEMPTS.times do
        @port = free_port
        @child = @children.start("redis-server", executable, "--port", port.to_s, "--bind", "127.0.0.1", "--save", "",
          "--appendonly", "no", "--dir", @children.folder)
        return self if answers?
      end
      raise Failure.of(child, "redis-server does not start: it #{child.fate}.")
    end

    def url
      "redis://127.0.0.1:#{port}/0"
    end

    private

    def executable
      %w[redis-server valkey-server].find { |name| system("command -v #{name} >/dev/null") } or
        raise Failure, "Neither redis-server nor valkey-server is on PATH: bin/setup says how to get one."
    end

    def free_port
      server = TCPServer.new("127.0.0.1", 0)
      server.local_address.ip_port
    ensure
      server&.close
    end

    def answers?
      client = RedisClient.new(url: url, timeout: 1, reconnect_attempts: 0)
      deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + START_TIMEOUT
      while child.running? && Process.clock_gettime(Process::CLOCK_MONOTONIC) < deadline
        begin
          return client.call("INFO", "server").include?("process_id:#{child.pid}")
        rescue RedisClient::Error
          @signals.pause(0.05)
        end
      end
      false
    ensure
      client&.close
    end
  end
end
