# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "a call from a trap handler" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  # RSpec makes it behind a Mutex.
  before { monitor }

  # @yield in a trap handler
  # @return [Object] what the block returned there
  def in_trap_handler
    answers = Thread::Queue.new
    before = trap("USR2") { answers << [yield, nil] rescue answers << [nil, $!] } # standard:disable Style/RescueModifier
    Process.kill(:USR2, Process.pid)
    answer, error = answers.pop(timeout: 20) || raise("the trap handler did not end")
    error ? raise(error) : answer
  ensure
    trap("USR2", before || "DEFAULT")
  end

  # Threads do not inherit the pool: the handler runs in the main thread, as the example does.
  it "has its answers, whatever it asks, where the monitor was used before" do
    monitor.ping_process
    monitor.register(task("known"))
    answers = in_trap_handler do
      [monitor.registered?(task("known")), monitor.register(task("new")), monitor.unregister(task("known")),
        monitor.update_heartbeats(["new"]), monitor.registered_task_ids.size, monitor.acquire_gc_lock, monitor.release_gc_lock,
        monitor.class.inflight_count, monitor.remove_process]
    end

    expect(answers).to eq([true, nil, nil, nil, 1, true, true, 1, nil])
    expect(monitor.registered?(task("new"))).to be(true)
  end

  it "makes a new connection where the one it had is gone" do
    monitor.register(task("known"))
    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    expect(in_trap_handler { monitor.registered?(task("known")) }).to be(true)
    expect(monitor.registered?(task("unknown"))).to be(false)
  end

  it "raises what redis-client raises when Redis is away" do
    monitor.register(task("known"))
    server.kill
    expect { in_trap_handler { monitor.register(task) } }.to raise_error(RedisClient::CannotConnectError)
  end

  it "has its own answer in the middle of another call in the same thread, which has its own too" do
    monitor.register(task("known"))
    inner = []
    before = trap("USR2") do
      inner << monitor.registered?(task("known")) << monitor.registered?(task("unknown"))
      server.call("CLIENT", "UNPAUSE")
    end
    server.call("CLIENT", "PAUSE", 60_000, "WRITE")
    kicker = Thread.new do
      # Of writes that wait there is one: the call below.
      eventually { RedisClient.new(url: server.url).call("INFO", "clients")[/blocked_clients:(\d+)/, 1].to_i.positive? }
      Process.kill(:USR2, Process.pid)
    end
    monitor.register(task("waited"))
    kicker.join

    expect(inner).to eq([true, false])
    expect(monitor.registered_task_ids.size).to eq(2)
  ensure
    trap("USR2", before || "DEFAULT")
    server.call("CLIENT", "UNPAUSE")
  end

  describe "that is the very first use" do
    include RubyProcess

    let(:clear) { /patient_http_monitor cannot be called from a trap handler before.*Thread\.new/ }

    it "raises an error that says what to do, and that works then" do
      expect { in_trap_handler { monitor.register(task("a")) } }.to raise_error(ThreadError, clear)
      expect { in_trap_handler { PatientHttp::Sidekiq::TaskMonitor.inflight_count } }.to raise_error(ThreadError, clear)

      via = pool
      in_trap_handler { Thread.new { Sidekiq::Client.via(via) { monitor.register(task("by-a-thread")) } }.join }
      expect(in_trap_handler { monitor.registered?(task("by-a-thread")) }).to be(true)
      expect(monitor.registered_task_ids.size).to eq(1)
    end

    it "raises the same where Sentinel would have to be asked" do
      sentinels = [{host: "127.0.0.1", port: RedisServer.free_port}]
      via = Sidekiq::RedisConnection.create(url: "redis://the-master/0", sentinels: sentinels, timeout: 1, reconnect_attempts: 0)
      Sidekiq::Client.via(via) do
        expect { monitor.register(task) }.to raise_error(RedisClient::CannotConnectError)
        expect { in_trap_handler { monitor.register(task) } }.to raise_error(ThreadError, clear)
      end
    end

    it "needs nothing but what every process has: no pool set for the thread" do
      outcome = ruby(<<~RUBY, env: {"REDIS_URL" => server.url}, warnings: false)
        require "patient_http_monitor"
        require "support/tasks"
        include Tasks
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        monitor = monitor()
        trap("USR1") do
          monitor.register(task("from-trap"))
          puts "registered"
        rescue => error
          puts error.class, error.message
        end
        2.times do
          Process.kill(:USR1, Process.pid) and sleep 0.2
          monitor.register(task("outside"))
        end
      RUBY
      expect(outcome.status).to be_success, outcome.to_s
      expect(outcome.output.lines(chomp: true)).to match(["ThreadError", clear, "registered"]), outcome.to_s
    end
  end
end
