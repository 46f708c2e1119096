# frozen_string_literal: true

require "spec_helper"
require "support/own_server"

RSpec.describe "the monitor's connections" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:ceiling) { 50 }

  def open_connections
    pool_counts(pool).first
  end

  def idle_connections
    pool_counts(pool).last
  end

  it "are none before the first call, and none for what needs no round trip" do
    expect(monitor.full_task_id("a")).to end_with("/a")
    monitor.update_heartbeats([])
    expect(pool_counts(pool)).to eq([0, 0])
    expect(clients_of(server)).to be_empty
  end

  it "are one for calls that follow each other, of any number of monitors and threads" do
    monitors = Array.new(5) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
    20.times { monitors.each { |one| one.register(task) } }
    10.times { threads(1) { monitor.registered?(task) }.each(&:join) }
    PatientHttp::Sidekiq::TaskMonitor.inflight_count

    expect(pool_counts(pool)).to eq([1, 1])
    expect(clients_of(server).size).to eq(1)
  end

  it "are Sidekiq's own never: its pool stays as it was" do
    threads(10) { 10.times { monitor.register(task) } }.each(&:join)
    expect(pool.available).to eq(pool.size)
  end

  it "serve 25 threads at once, each answer right" do
    answers = threads(25) do |number|
      40.times { |n| monitor.register(task("#{number}-#{n}")) }
      (0...40).map { |n| monitor.registered?(task("#{number}-#{n}")) } + [monitor.registered?(task("#{number}-40"))]
    end
    expect(answers.map(&:value)).to all(eq([true] * 40 + [false]))
    expect(monitor.registered_task_ids.size).to eq(1_000)
    expect(open_connections).to be <= ceiling
    expect(open_connections).to eq(idle_connections)
  end

  it "are at no moment more than 25 threads at full work need, by the server's own list" do
    done = false
    watcher = Thread.new { [].tap { |seen| seen << clients_of(server).size until done } }
    threads(25) { |number| 60.times { |n| monitor.register(task("#{number}-#{n}")) } }.each(&:join)
    done = true

    expect(watcher.value).to include(a_value > 0).and all(be <= 25)
    expect(monitor.registered_task_ids.size).to eq(1_500)
  end

  context "with a name in Sidekiq's settings" do
    let(:settings) { {url: server.url, timeout: 3, id: "billing-worker"} }

    def introductions
      clients_of(server).map { |client| client.values_at("name", "lib-name", "lib-ver") }
    end

    it "all have it, beside the gem's own and its version, also those that took a lost one's place" do
      ours = ["billing-worker", "patient_http_monitor", PatientHttpMonitor::VERSION]
      all_at_once(6) { monitor.register(task) }
      skip "this server does not know CLIENT SETINFO" unless clients_of(server).first.key?("lib-name")

      expect(introductions).to have_attributes(size: 2..6).and all(eq(ours))
      server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      monitor.register(task)
      expect(introductions).to eq([ours])
      Sidekiq.redis { |redis| redis.call("PING") }
      expect((introductions - [ours]).map(&:first)).to eq(%w[billing-worker])
    end
  end

  it "are no more than callers at the same moment, and never more than 50" do
    expect(all_at_once(7) { |number| monitor.register(task("seven-#{number}")) }).to all(be_nil)
    expect(clients_of(server).size).to be <= 7

    answers = all_at_once(60) { |number| monitor.register(task("sixty-#{number}")) }
    expect(answers).to all(be_nil)
    expect(monitor.registered_task_ids.size).to eq(67)
    expect(open_connections).to be_between(30, ceiling)
    expect(clients_of(server).size).to eq(open_connections)
  end

  context "when all of them are busy for longer than Sidekiq's pool would wait" do
    let(:settings) { {url: server.url, timeout: 10, pool_timeout: 0.4} }

    it "raise to further callers what Sidekiq's pool raises, and serve again afterwards" do
      server.freeze_for_a_while do
        callers = threads(ceiling) { monitor.register(task) }
        eventually { open_connections == ceiling }
        elapsed = seconds { expect { monitor.register(task) }.to raise_error(ConnectionPool::TimeoutError, /0\.4/) }
        expect(elapsed).to be_between(0.35, 2)
        Process.kill(:CONT, server.pid)
        callers.each(&:join)
      end
      monitor.register(task)
      expect(monitor.registered_task_ids.size).to eq(ceiling + 1)
    end
  end

  it "serve those who waited for one as soon as others give theirs back" do
    early = late = nil
    server.freeze_for_a_while do
      early = threads(ceiling) { monitor.register(task) }
      eventually { open_connections == ceiling && early.all?(&:stop?) }
      late = threads(15) { |number| monitor.register(task("late-#{number}")) }
      eventually { late.all?(&:stop?) }
    end
    expect((early + late).map(&:value)).to all(be_nil)
    expect(monitor.registered_task_ids.size).to eq(ceiling + 15)
    expect(open_connections).to be <= ceiling
  end

  context "when they were idle for longer than idle_timeout" do
    # A setting of later versions of redis-client; without it, it is 30 s. Nothing is repeated, so that a dead one would show.
    let(:settings) { {url: server.url, timeout: 3, reconnect_attempts: 0} }

    before { pool.with { |client| client.config.define_singleton_method(:idle_timeout) { 0.2 } } }

    it "are closed at the next call, but for one" do
      all_at_once(10) { monitor.register(task) }
      expect(idle_connections).to be > 5
      sleep 0.3
      monitor.registered?(task)

      expect(idle_connections).to eq(1)
      expect(eventually { clients_of(server).size == 1 }).to be(true)
    end

    it "are closed one after the other, but for one, by calls that follow each other sooner" do
      all_at_once(10) { monitor.register(task) }
      expect(idle_connections).to be > 5
      expect(eventually { monitor.ping_process || pool_counts(pool) == [1, 1] }).to be(true)
      expect(clients_of(server).size).to eq(1)
    end

    context "and the server says nothing" do
      let(:settings) { {url: server.url, timeout: 1, reconnect_attempts: 0} }

      it "cost the next call the time of one of them, and of one new one" do
        all_at_once(10) { monitor.register(task) }
        expect(idle_connections).to be > 5
        sleep 0.3
        server.freeze_for_a_while do
          expect(seconds { expect { monitor.register(task) }.to raise_error(RedisClient::ConnectionError) }).to be_between(0.9, 4)
        end
      end
    end

    it "are looked at before they are used" do
      all_at_once(10) { |number| monitor.register(task(number.to_s)) }
      server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      sleep 0.3
      expect(monitor.registered?(task("3"))).to be(true)
      expect(monitor.registered?(task("10"))).to be(false)
    end
  end

  describe "whose thread was killed in the middle of a call" do
    # Longer than an example takes: only the kill ends the calls.
    let(:settings) { {url: server.url, timeout: 30} }

    it "are closed and forgotten" do
      monitor.register(task)
      server.freeze_for_a_while do
        callers = threads(20) { monitor.register(task) }
        eventually { open_connections >= 20 }
        callers.each(&:kill).each(&:join)
      end
      expect(eventually { GC.start || clients_of(server).size <= 1 }).to be(true)
      # The collector may take an old value on the stack for a connection.
      expect(eventually { GC.start || open_connections <= 3 }).to be(true)
      expect(monitor.registered?(task)).to be(false)
    end

    it "leave room for others though the garbage collector does not run" do
      GC.disable
      server.freeze_for_a_while do
        3.times do
          callers = threads(30) { monitor.register(task) }
          eventually { callers.all?(&:stop?) }
          callers.each(&:kill).each(&:join)
        end
      end
      expect(eventually { open_connections.zero? }).to be(true)
      monitor.register(task)
      expect(open_connections).to eq(1)
    ensure
      GC.enable
    end
  end

  it "go with Sidekiq's pool when that is let go" do
    collected = lambda do
      Thread.new do
        10.times { Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: server.url)) { monitor.register(task) } }
      end.join
      GC.start
      # A new pool is the occasion on which the old ones are let go.
      Thread.new { Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: server.url)) { monitor.register(task) } }.join
      GC.start
      clients_of(server).size < 10
    end
    expect(eventually { collected.call }).to be(true)
  end

  it "are few though 100 of Sidekiq's pools came and went" do
    Thread.new do
      100.times { Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: server.url)) { monitor.register(task) } }
    end.join
    expect(eventually { GC.start || clients_of(server).size <= 10 }).to be(true)
  end
end
