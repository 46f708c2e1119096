# frozen_string_literal: true

require "fileutils"
require "redis_client"
require "socket"
require "tmpdir"

# A real redis-server of the suite's own: free port, temporary folder, gone when it is stopped or when this process ends.
class RedisServer
  # In s; a machine under load is slow to start one.
  START_TIMEOUT = 20

  class << self
    # @param options [Hash] further settings of redis.conf, by name with underscores
    # @return [RedisServer] one that answers
    def start(**options)
      new(options).tap(&:start)
    end

    def free_port
      server = TCPServer.new("127.0.0.1", 0)
      server.local_address.ip_port
    ensure
      server&.close
    end

    def executable
      %w[redis-server valkey-server].find { |name| system("command -v #{name} >/dev/null") } ||
        raise("neither redis-server nor valkey-server is on PATH: run bin/setup")
    end
  end

  attr_reader :port, :pid, :dir

  def initialize(options = {})
    @options = options
    @port = self.class.free_port
    @dir = Dir.mktmpdir("patient_http_monitor")
    @owner = Process.pid
  end

  def url(db = 0)
    "redis://127.0.0.1:#{port}/#{db}"
  end

  def unix_path
    File.join(dir, "redis.sock")
  end

  def start
    arguments = {"port" => port, "bind" => "127.0.0.1", "dir" => dir, "unixsocket" => unix_path, "save" => "",
                 "appendonly" => "no", "logfile" => File.join(dir, "redis.log")}
    @options.each { |name, value| arguments[name.to_s.tr("_", "-")] = value }
    command = [self.class.executable] + arguments.flat_map { |name, value| ["--#{name}", value.to_s] }
    @pid = Process.spawn(*command, out: File::NULL, err: File::NULL, pgroup: true)
    at_exit { stop if Process.pid == @owner }
    wait_until_it_answers
  end

  # One command over a connection that is not the one under test.
  def call(...)
    client.call(...)
  end

  def client
    @client ||= RedisClient.config(host: "127.0.0.1", port: port, timeout: 5, reconnect_attempts: 1).new_client
  end

  # Freezes the server; what is sent to it waits.
  def freeze_for_a_while
    Process.kill(:STOP, pid)
    yield
  ensure
    Process.kill(:CONT, pid)
  end

  def kill
    signal(:KILL)
  end

  def stop
    signal(:TERM)
    FileUtils.rm_rf(dir)
  end

  private

  def signal(name)
    return unless @pid

    @client&.close
    @client = nil
    Process.kill(name, @pid)
    Process.wait(@pid)
  rescue Errno::ESRCH, Errno::ECHILD
    nil
  ensure
    @pid = nil
  end

  def wait_until_it_answers
    deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + START_TIMEOUT
    begin
      call("PING")
    rescue RedisClient::Error
      raise if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline

      sleep 0.02
      retry
    end
  end
end
