# frozen_string_literal: true

require "spec_helper"
require "support/own_server"

RSpec.describe "a Redis that comes back" do
  include_context "with a server of its own"

  let(:index) { "sidekiq:patient_http:inflight_index" }
  let(:jobs) { "sidekiq:patient_http:inflight_jobs" }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  def stored
    [server.call("ZRANGE", index, 0, -1), server.call("HKEYS", jobs)].map { |ids| ids.map { |id| id[%r{/(.*)}, 1] } }
  end

  def kill_connections
    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
  end

  # Lets calls that write begin, and not end, until the block has ended.
  def while_writes_wait
    server.call("CLIENT", "PAUSE", 60_000, "WRITE")
    yield
  ensure
    server.call("CLIENT", "UNPAUSE")
  end

  def waiting_for_redis(count)
    eventually { server.call("INFO", "clients")[/blocked_clients:(\d+)/, 1].to_i >= count }
  end

  describe "after our connections were killed in the middle of calls" do
    before { monitor.register(task("known")) }

    it "does each call once, as if nothing had happened" do
      callers = nil
      while_writes_wait do
        callers = threads(6) { |number| monitor.register(task("task-#{number}")) }
        expect(waiting_for_redis(6)).to be(true)
        expect(kill_connections).to be >= 6
        expect(waiting_for_redis(6)).to be(true)
      end
      expect(callers.map(&:value)).to all(be_nil)
      ids = ["known", *Array.new(6) { |number| "task-#{number}" }]
      expect(stored).to match([match_array(ids), match_array(ids)])
    end

    context "where nothing may be repeated" do
      let(:settings) { {url: server.url, timeout: 20, reconnect_attempts: 0} }

      it "raises ConnectionError at once, and gives the next calls their own answers" do
        callers = nil
        while_writes_wait do
          callers = threads(4) { |number| monitor.register(task("lost-#{number}")) }
          expect(waiting_for_redis(4)).to be(true)
          kill_connections
          elapsed = seconds { callers.each { |caller| expect { caller.value }.to raise_error(RedisClient::ConnectionError) } }
          expect(elapsed).to be < 5
        end
        expect(monitor.registered?(task("known"))).to be(true)
        expect(monitor.registered?(task("lost-0"))).to be(false)
        expect(stored).to eq([%w[known]] * 2)
      end
    end
  end

  it "answers rightly however often our connections are killed, at moments of chance" do
    seed = RSpec.configuration.seed
    random = Random.new(seed)
    tasks = Array.new(10) { |number| task("task-#{number}") }
    tasks.each_slice(2) { |even, _| monitor.register(even) }
    outcomes = Queue.new
    callers = threads(4) do |caller|
      numbers = Random.new(seed + caller)
      200.times do
        number = numbers.rand(tasks.size)
        outcomes << (monitor.registered?(tasks[number]) == number.even?)
      rescue RedisClient::ConnectionError
        outcomes << :raised
      end
    end
    killed = 0
    while callers.any?(&:alive?)
      killed += kill_connections
      sleep random.rand(0.003)
    end
    callers.each(&:value)
    tally = Array.new(outcomes.size) { outcomes.pop }.tally

    expect(tally).not_to include(false), "seed #{seed}: #{tally}, killed #{killed}"
    expect(tally[true]).to be > 50, "seed #{seed}: #{tally}, killed #{killed}"
    expect(killed).to be > 10, "seed #{seed}: #{tally}, killed #{killed}"
  end

  it "keeps whatever it has confirmed after a restart, and raises nothing but errors of the connection meanwhile" do
    monitor.ping_process
    confirmed = Queue.new
    stop = false
    callers = threads(6) do |caller|
      errors = []
      count = 0
      until stop
        begin
          monitor.register(task("#{caller}-#{count += 1}"))
          confirmed << "#{caller}-#{count}"
        rescue RedisClient::Error => error
          errors << error.class
          sleep 0.01
        end
      end
      errors
    end
    expect(eventually { confirmed.size > 50 }).to be(true)
    server.kill
    sleep 0.05
    server.start
    confirmed.clear
    expect(eventually { confirmed.size > 50 }).to be(true)
    stop = true
    errors = callers.flat_map(&:value)

    expect(errors.uniq - [RedisClient::CannotConnectError, RedisClient::ConnectionError]).to be_empty
    after = Array.new(confirmed.size) { confirmed.pop }
    expect(after - stored.first).to be_empty
    expect(after - stored.last).to be_empty
  end

  it "answers the same though it forgets its scripts between any two calls" do
    log = []
    ask = lambda do |one, name, *arguments|
      server.call("SCRIPT", "FLUSH")
      log << [name, one.public_send(name, *arguments)]
    end
    known, other = task("known"), PatientHttp::Sidekiq::TaskMonitor.new(config)
    ask.call(monitor, :ping_process)
    ask.call(monitor, :register, known)
    ask.call(monitor, :registered?, known)
    ask.call(monitor, :update_heartbeats, %w[known unknown])
    ask.call(monitor, :registered_task_ids)
    %i[acquire_gc_lock acquire_gc_lock release_gc_lock release_gc_lock].each { |name| ask.call(monitor, name) }
    ask.call(monitor, :acquire_gc_lock)
    ask.call(other, :acquire_gc_lock)
    ask.call(other, :release_gc_lock)
    # Its holder is dead now: the lock is taken over by a script of its own.
    server.call("DEL", "sidekiq:patient_http:processes:#{monitor.full_task_id("").chomp("/")}:max_connections")
    ask.call(other, :acquire_gc_lock)
    ask.call(monitor.class, :inflight_count)
    ask.call(monitor.class, :inflight_counts_by_process)
    ask.call(monitor.class, :total_max_connections)
    sleep 0.005
    ask.call(other, :cleanup_orphaned_requests, 0, nil)
    ask.call(monitor, :registered?, known)

    expect(log).to eq([
      [:ping_process, nil], [:register, nil], [:registered?, true], [:update_heartbeats, nil],
      [:registered_task_ids, [monitor.full_task_id("known")]],
      [:acquire_gc_lock, true], [:acquire_gc_lock, false], [:release_gc_lock, true], [:release_gc_lock, false],
      [:acquire_gc_lock, true], [:acquire_gc_lock, false], [:release_gc_lock, false], [:acquire_gc_lock, true],
      [:inflight_count, 1], [:inflight_counts_by_process, {}], [:total_max_connections, 0],
      [:cleanup_orphaned_requests, 1], [:registered?, false]
    ])
  end

  it "recovers each job once though it forgets its scripts all the time" do
    ids = Array.new(250) { |number| "job-#{number}" }
    ids.each { |id| monitor.register(task(id, jid: id)) }
    sleep 0.005
    forgetting = Thread.new do
      forgetful = RedisClient.new(url: server.url)
      loop { forgetful.call("SCRIPT", "FLUSH", "SYNC") }
    end
    recovered = PatientHttp::Sidekiq::TaskMonitor.new(config).cleanup_orphaned_requests(0, nil)
    forgetting.kill.join

    expect(recovered).to eq(250)
    jids = server.call("LRANGE", "queue:default", 0, -1).map { |job| JSON.parse(job)["jid"] }
    expect(jids).to match_array(ids)
    expect(stored).to eq([[], []])
  end

  describe "and has a great deal to load first" do
    before(:context) { @loading = RedisServer.start(enable_debug_command: "yes", loading_process_events_interval_bytes: 1_024) }
    after(:context) { @loading.stop }

    # It is loading from the moment the block begins until it ends.
    def while_loading(server)
      server.call("DEBUG", "POPULATE", 20_000)
      server.call("CONFIG", "SET", "key-load-delay", 1_000)
      reload = Thread.new { RedisClient.new(url: server.url, timeout: 60, reconnect_attempts: 0).call("DEBUG", "RELOAD") }
      expect(eventually { raised { server.call("PING") }&.message.to_s.start_with?("LOADING") }).to be(true)
      yield
    ensure
      server.call("CONFIG", "SET", "key-load-delay", 0)
      reload.value
    end

    it "raises what Sidekiq's connection raises (LOADING), once, over connections new and old, and works when it has loaded" do
      known, fresh = Array.new(2) { Sidekiq::RedisConnection.create(url: @loading.url, timeout: 5) }
      Sidekiq::Client.via(known) { monitor.register(task("known")) }
      while_loading(@loading) do
        [known, fresh].each do |pool|
          Sidekiq::Client.via(pool) do
            theirs = raised { Sidekiq.redis { |redis| redis.call("ZADD", index, 1, "x") } }
            calls = [-> { monitor.register(task("a")) }, -> { monitor.registered?(task("a")) }, -> { monitor.acquire_gc_lock }]
            calls.each do |call|
              ours = raised(&call)
              expect([ours.class, ours.message]).to eq([theirs.class, theirs.message]).and(include(/\ALOADING/))
            end
          end
        end
      end
      [known, fresh].each do |pool|
        Sidekiq::Client.via(pool) do
          expect(monitor.registered?(task("known"))).to be(true)
          monitor.register(task("afterwards"))
          expect(monitor.registered_task_ids.size).to eq(2)
        end
      end
    end
  end
end
