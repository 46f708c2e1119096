# frozen_string_literal: true

require "spec_helper"
require "support/lane"
return unless Lane.has?("async", __FILE__)

require "support/certificates"
require "support/reactor"
require "support/ticker"

RSpec.describe "the tasks of an async reactor" do
  include_context "with a reactor"

  let(:registered) { monitor.registered_task_ids.map { |id| id.split("/").last.to_i }.sort }

  # @return [Ticker] that has ticked while nothing else went on
  def idle_ticker(reactor)
    # The first sleep loads what the others find.
    reactor.sleep(0.1)
    ticker = Ticker.start
    reactor.sleep(0.3)
    ticker.stop
  end

  it "register at the same time, 100 of them, at a server that is 1 ms away" do
    Sync do |reactor|
      barrier = Async::Barrier.new(parent: reactor)
      100.times { |number| start(barrier) { monitor.register(task(number.to_s)) } }
      barrier.wait
    end
    expect(registered).to eq((0...100).to_a)
    expect(all_connections_idle?).to be(true)
  end

  it "are each given their own answer, 300 at once" do
    150.times { |number| monitor.register(task((number * 2).to_s)) }
    answers = Sync do |reactor|
      Array.new(300) { |number| start(reactor) { monitor.registered?(task(number.to_s)) } }.map(&:wait)
    end
    expect(answers).to eq([true, false] * 150)
    expect(all_connections_idle?).to be(true)
  end

  # Were the thread held during each call, many of them would come between two ticks.
  it "tick nearly as in an idle reactor while 100 of them register" do
    idle = busy = nil
    Sync do |reactor|
      idle = idle_ticker(reactor)
      ticker = Ticker.start
      barrier = Async::Barrier.new(parent: reactor)
      100.times { |number| start(barrier) { 20.times { monitor.register(task(number.to_s)) } } }
      barrier.wait
      busy = ticker.stop
    end
    expect(busy.count).to be > 20
    expect(busy.late_by_own_fault(50)).to be < ((10 * idle.late_by_own_fault(50)) + 0.01)
    expect(busy.late_by_own_fault(90)).to be < ((10 * idle.late_by_own_fault(90)) + 0.1)
    expect(registered.size).to eq(100)
  end

  it "tick nearly as in an idle reactor while Redis is frozen for 1 s and 100 of them wait for it" do
    idle = frozen = nil
    Sync do |reactor|
      idle = idle_ticker(reactor)
      barrier = Async::Barrier.new(parent: reactor)
      server.freeze_for_a_while do
        thaw = Thread.new { sleep 1 and Process.kill(:CONT, server.pid) }
        ticker = Ticker.start
        100.times { |number| start(barrier) { monitor.register(task(number.to_s)) } }
        reactor.sleep(0.5)
        expect(barrier.size).to eq(100)
        barrier.wait
        frozen = ticker.stop
        thaw.join
      end
    end
    expect(frozen.count).to be > 50
    expect(frozen.late_by_own_fault(99)).to be < ((10 * idle.late_by_own_fault(99)) + 0.1)
    expect(frozen.late_by_own_fault(100)).to be < ((10 * idle.late_by_own_fault(100)) + 0.6)
    expect(registered.size).to eq(100)
    expect(all_connections_idle?).to be(true)
  end

  it "register, beat, ping, count and unregister side by side" do
    Sync do |reactor|
      30.times.map do |number|
        start(reactor) do
          own = another_monitor
          own.ping_process
          own.register(kept = task("kept-#{number}"))
          own.register(done = task("done-#{number}"))
          before = own.heartbeat_timestamp_for(kept)
          own.update_heartbeats([kept.id, done.id])
          expect(own.heartbeat_timestamp_for(kept)).to be >= before
          own.unregister(done)
          expect(own.registered_task_ids).to eq([own.full_task_id(kept.id)])
        end
      end.each(&:wait)
    end
    expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(30)
    expect(PatientHttp::Sidekiq::TaskMonitor.total_max_connections).to eq(300)
    expect(all_connections_idle?).to be(true)
  end

  it "sweep at the same time, each orphan once, while others register" do
    20.times { |number| monitor.register(task(number.to_s)) }
    monitor.registered_task_ids.each { |id| server.call("ZADD", "sidekiq:patient_http:inflight_index", "XX", 1, id) }
    busy = another_monitor
    counts = Sync do |reactor|
      50.times { |number| start(reactor) { 5.times { busy.register(task(number.to_s)) } } }
      sweepers = Array.new(3) { start(reactor) { another_monitor.cleanup_orphaned_requests(60, nil) } }
      sweepers.map(&:wait)
    end
    expect(counts.sum).to eq(20)
    expect(server.call("LLEN", "queue:default")).to eq(20)
    expect(busy.registered_task_ids.size).to eq(50)
  end

  it "open no more connections than a semaphore lets through" do
    Sync do |reactor|
      semaphore = Async::Semaphore.new(5, parent: reactor)
      100.times.map { |number| start(semaphore) { monitor.register(task(number.to_s)) } }.each(&:wait)
    end
    expect(registered.size).to eq(100)
    expect(pool_counts(pool).first).to be_between(1, 5)
  end

  it "share the connections with those of another reactor and with threads" do
    reactors = threads(2) do |reactor_number|
      Sync do |reactor|
        50.times.map { |number| start(reactor) { 5.times { monitor.register(task("#{reactor_number}-#{number}")) } } }.each(&:wait)
      end
    end
    (reactors + threads(5) { |number| 50.times { monitor.register(task("thread-#{number}")) } }).each(&:join)
    expect(monitor.registered_task_ids.size).to eq(105)
    expect(all_connections_idle?).to be(true)
  end

  it "are told by redis-client's own error that Redis is away, each of them, and go on when it is back" do
    impatient = Sidekiq::RedisConnection.create(url: server.url, timeout: 3, reconnect_attempts: 0)
    Sidekiq::Client.via(impatient) { monitor.register(task) }
    server.kill
    errors = Sync do |reactor|
      Array.new(20) { reactor.async { Sidekiq::Client.via(impatient) { raised { monitor.register(task) } } } }.map(&:wait)
    end
    # The one idle connection turns out to be dead.
    expect(errors).to all(be_a(RedisClient::ConnectionError))
    server.start
    Sync { Sidekiq::Client.via(impatient) { monitor.register(task("back")) } }
    expect(server.call("ZCARD", "sidekiq:patient_http:inflight_index")).to eq(1)
  end

  describe "whose Redis is behind TLS" do
    before(:context) do
      @dir = Dir.mktmpdir("patient_http_monitor")
      authority = Certificates.new(@dir, "authority")
      certificate, key = authority.issue("server", "DNS:localhost")
      @tls_port = RedisServer.free_port
      @ca_file = authority.ca_file
      @tls_server = RedisServer.start(tls_port: @tls_port, tls_cert_file: certificate, tls_key_file: key,
        tls_ca_cert_file: @ca_file, tls_auth_clients: "no")
    end

    after(:context) do
      @tls_server.stop
      FileUtils.rm_rf(@dir)
    end

    before { @tls_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }

    # A host name: the reactor resolves it.
    let(:settings) { {url: "rediss://localhost:#{@tls_port}", timeout: 10, pool_timeout: 10, ssl_params: {ca_file: @ca_file}} }

    it "register at the same time, 100 of them, and others go on while it is frozen" do
      frozen = nil
      Sync do |reactor|
        barrier = Async::Barrier.new(parent: reactor)
        100.times { |number| start(barrier) { monitor.register(task(number.to_s)) } }
        barrier.wait
        @tls_server.freeze_for_a_while do
          100.times { |number| start(barrier) { monitor.unregister(task(number.to_s)) } }
          ticker = Ticker.start
          reactor.sleep(0.5)
          frozen = ticker.stop
        end
        barrier.wait
      end
      expect(frozen.count).to be > 25
      expect(monitor.registered_task_ids).to be_empty
    end

    it "stop in the middle of a call, and the next one is given its own answer" do
      monitor.register(task("known"))
      Sync do |reactor|
        @tls_server.freeze_for_a_while do
          waiting = Array.new(10) { start(reactor) { monitor.registered?(task("known")) } }
          reactor.sleep(0.1)
          waiting.each(&:stop)
        end
      end
      expect(Array.new(20) { |number| monitor.registered?(task(number.even? ? "known" : "unknown")) }).to eq([true, false] * 10)
      total, idle = pool_counts(pool)
      expect(total).to eq(idle)
      expect(eventually { clients_of(@tls_server).size == total }).to be(true)
    end
  end
end
