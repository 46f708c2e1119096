# frozen_string_literal: true

require "spec_helper"
require "timeout"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

# Keys of another type than ours, as a stranger, a typo at a console or a restored dump may leave them. Odd ids and odd values
# are in odd_values_spec.rb.
RSpec.describe "Keys of another type" do
  # In s; no call may take longer, whatever it finds.
  limit = 5
  # Where what was there waits to be put back.
  kept = "kept"

  counters = %w[recoveries refusals].to_h { |name| [name, "sidekiq:patient_http:#{name}:orphaned"] }
  keys = {
    "index" => ["zset", ->(_) { Registry::INDEX }],
    "jobs" => ["hash", ->(_) { Registry::JOBS }],
    "process set" => ["set", ->(_) { Registry::PROCESSES }],
    "GC lock" => ["string", ->(_) { Registry::GC_LOCK }],
    "last run" => ["string", ->(_) { Registry::GC_LAST_RUN }],
    "own capacity" => ["string", ->(spec) { spec.capacity_key(spec.one) }],
    "recovery counter" => ["string", ->(_) { counters["recoveries"] }],
    "refusal counter" => ["string", ->(_) { counters["refusals"] }]
  }
  writes = {
    "string" => ->(key) { REDIS.call("SET", key, "odd") },
    "list" => ->(key) { REDIS.call("RPUSH", key, "odd") },
    "hash" => ->(key) { REDIS.call("HSET", key, "odd", "odd") },
    "set" => ->(key) { REDIS.call("SADD", key, "odd") },
    "zset" => ->(key) { REDIS.call("ZADD", key, 1, "odd") },
    "stream" => ->(key) { REDIS.call("XADD", key, "*", "odd", "odd") }
  }

  # Each method's call, and what it answers in a registry where all is well (see the `build` below).
  calls = {
    "register" => [->(spec) { spec.one.register(spec.task("new", jid: "new", args: ["secret"])) }, ->(_) {}],
    "unregister" => [->(spec) { spec.one.unregister(spec.task("mine")) }, ->(_) {}],
    "update_heartbeats" => [->(spec) { spec.one.update_heartbeats(%w[mine unknown]) }, ->(_) {}],
    "registered?" => [->(spec) { spec.one.registered?(spec.task("mine")) }, ->(_) { true }],
    "heartbeat_timestamp_for" =>
      [->(spec) { spec.one.heartbeat_timestamp_for(spec.task("mine")) }, ->(spec) { spec.be_within(60_000).of(spec.server_ms) }],
    "registered_task_ids" => [->(spec) { spec.one.registered_task_ids }, ->(spec) { [spec.one.full_task_id("mine")] }],
    "ping_process" => [->(spec) { spec.one.ping_process }, ->(_) {}],
    "remove_process" => [->(spec) { spec.one.remove_process }, ->(_) {}],
    "acquire_gc_lock" => [->(spec) { spec.one.acquire_gc_lock }, ->(_) { true }],
    "release_gc_lock" => [->(spec) { spec.one.release_gc_lock }, ->(_) { false }],
    "gc_needed?" => [->(spec) { spec.one.gc_needed? }, ->(_) { false }],
    "record_gc_run" => [->(spec) { spec.one.record_gc_run }, ->(_) {}],
    "cleanup_orphaned_requests" => [->(spec) { spec.one.cleanup_orphaned_requests(300, spec.logger) }, ->(_) { 1 }],
    "inflight_count" => [->(spec) { spec.one.class.inflight_count }, ->(_) { 3 }],
    "inflight_counts_by_process" => [->(spec) { spec.one.class.inflight_counts_by_process }, ->(spec) { spec.loads(20) }],
    "total_max_connections" => [->(spec) { spec.one.class.total_max_connections }, ->(_) { 20 }],
    "registered_process_ids" =>
      [->(spec) { spec.one.class.registered_process_ids }, ->(spec) { spec.match_array(spec.members) }],
    "clear_all!" => [->(spec) { spec.one.class.clear_all! }, ->(_) {}]
  }
  # Which of them need the key and say so; all others answer as if nothing were wrong.
  refused = {
    "index" => %w[register unregister update_heartbeats registered? heartbeat_timestamp_for registered_task_ids
      cleanup_orphaned_requests inflight_count inflight_counts_by_process],
    "jobs" => %w[register unregister cleanup_orphaned_requests],
    "process set" => %w[ping_process remove_process acquire_gc_lock cleanup_orphaned_requests inflight_counts_by_process
      total_max_connections registered_process_ids]
  }
  # A last run that is no text is none. A capacity that is no text proves life, and carries nothing.
  otherwise = {
    ["last run", "gc_needed?"] => ->(_) { true },
    ["own capacity", "total_max_connections"] => ->(_) { 10 },
    ["own capacity", "inflight_counts_by_process"] => ->(spec) { spec.loads(10) }
  }
  # The jids that the registry and the queue have together, in the end.
  ends_with = Hash.new(%w[live mine orphaned]).merge(
    "register" => %w[live mine new orphaned], "unregister" => %w[live orphaned], "clear_all!" => []
  )

  attr_reader :one, :logger, :members

  # One process that is asked and another one live with a request each, and a dead one with an orphan, who holds the GC lock.
  def build(counters)
    REDIS.call("FLUSHALL")
    @logger = RecordingLogger.new
    @one, live, dead = monitor, monitor, monitor
    {one => "mine", live => "live", dead => "orphaned"}.each do |process, name|
      process.ping_process
      process.register(task(name, jid: name, args: ["secret"]))
    end
    dead.acquire_gc_lock
    @members = [one, live, dead].map { |process| process_id(process) }
    expire_capacity(dead)
    age(dead.full_task_id("orphaned"))
    one.record_gc_run
    counters.each_value { |key| REDIS.call("SET", key, 1) }
  end

  def loads(capacity)
    {process_id(one).rpartition(":").first => {inflight: 2, max_capacity: capacity}}
  end

  def jids
    registered = REDIS.call("HVALS", Registry::JOBS).map { |job| JSON.parse(job)["jid"] }
    (registered + queued.map { |job| job["jid"] }).sort
  end

  def expect_wrong_type
    expect { yield }.to raise_error(RedisClient::CommandError) { |error|
      expect(error.message).to start_with("WRONGTYPE Operation against a key holding the wrong kind of value")
      expect(error.full_message + error.inspect).not_to include("secret")
    }
  end

  def spoil(key, kept, write)
    REDIS.call("RENAME", key, kept) if REDIS.call("EXISTS", key) == 1
    write.call(key)
  end

  def mend(key, kept)
    REDIS.call("DEL", key)
    REDIS.call("RENAME", kept, key)
  end

  keys.each do |name, (right, key_of)|
    writes.except(right).each do |type, write|
      calls.each do |method, (call, well)|
        refuses = refused.fetch(name, []).include?(method)

        it "#{refuses ? "are refused by" : "do not disturb"} #{method} where the #{name} is a #{type}, and cost nothing" do
          build(counters)
          spoil(key = key_of.call(self), kept, write)
          Timeout.timeout(limit) do
            if refuses
              expect_wrong_type { call.call(self) }
            else
              expect(call.call(self)).to match(otherwise.fetch([name, method], well).call(self))
            end
          end

          next expect(self.keys).to eq([kept]) if method == "clear_all!"

          mend(key, kept)
          again = Timeout.timeout(limit) { call.call(self) }
          expect(again).to match(well.call(self)) if refuses
          expect(jids).to eq(ends_with[method])
          expect(REDIS.call("ZRANGE", Registry::INDEX, 0, -1)).to match_array(REDIS.call("HKEYS", Registry::JOBS))
          one.ping_process
          expect(one.cleanup_orphaned_requests(300, nil)).to eq((method == "cleanup_orphaned_requests") ? 0 : 1)
        end
      end
    end
  end

  describe "in the middle of a sweep" do
    let(:ids) { leave_orphans(*Array.new(150) { |number| task(format("t%03d", number), jid: format("%024x", number)) }) }
    let(:log) { RecordingLogger.new }

    # Spoils the key before the third push.
    def sweep_while_spoiled(key, kept, write)
      pushes = 0
      result = nil
      sidekiq_log = sidekiq_log(:error) do
        on_push(->(_) { spoil(key, kept, write) if (pushes += 1) == 3 }) { result = monitor.cleanup_orphaned_requests(300, log) }
      end
      [result, sidekiq_log]
    end

    {"index" => Registry::INDEX, "jobs" => Registry::JOBS}.each do |name, key|
      writes.except(keys[name].first).each do |type, write|
        it "end it with a line where the #{name} becomes a #{type}, and the next sweep goes on where it ended" do
          ids
          result, sidekiq_log = Timeout.timeout(limit) { sweep_while_spoiled(key, kept, write) }
          expect([result, queued.size, log.infos.size, log.errors]).to eq([3, 3, 3, []])
          expect(sidekiq_log).to match(/\A.*Sweep ended early, the rest is left to the next one: RedisClient::\w+ - WRONGTYPE/)

          mend(key, kept)
          2.times { monitor.cleanup_orphaned_requests(-1, log) }
          # One was pushed and could not be taken out: that it comes twice is the price of not losing it.
          pushed = queued.map { |job| job["jid"] }
          expect([pushed.uniq.size, pushed.size, entries]).to eq([150, 151, []])
        end
      end
    end

    writes.except("string").each do |type, write|
      it "cost no job where the GC lock becomes a #{type}" do
        ids
        collector = monitor(heartbeat_interval: 0.001)
        collector.acquire_gc_lock
        pushes = 0
        sidekiq_log(:fatal) do
          on_push(->(_) { spoil(Registry::GC_LOCK, kept, write) if (pushes += 1) == 3 }) do
            expect(Timeout.timeout(limit) { collector.cleanup_orphaned_requests(300, log) }).to eq(queued.size)
          end
        end
        mend(Registry::GC_LOCK, kept)
        2.times { monitor.cleanup_orphaned_requests(-1, log) }
        expect([queued.map { |job| job["jid"] }.uniq.size, queued.size, entries]).to eq([150, 150, []])
      end
    end

    writes.except("set").each do |type, write|
      it "do not disturb it where the process set becomes a #{type} and no process has died since" do
        ids
        REDIS.call("SADD", Registry::PROCESSES, "gone:1:ff")
        result, sidekiq_log = Timeout.timeout(limit) { sweep_while_spoiled(Registry::PROCESSES, kept, write) }
        expect([result, sidekiq_log, queued.size, entries]).to eq([150, "", 150, []])
      end
    end
  end

  describe "among the counters of jobs" do
    before do
      settings = PatientHttpMonitor::Settings.new.tap { |changed| changed.recovery_limit = 3 }
      allow(PatientHttpMonitor).to receive(:settings).and_return(settings)
    end

    writes.except("string").each do |type, write|
      it "do not keep jobs from being recovered where a recovery counter is a #{type}" do
        write.call(counters["recoveries"])
        leave_orphans(task(jid: "orphaned"), task(jid: "another"))
        expect(Timeout.timeout(limit) { monitor.cleanup_orphaned_requests(300, nil) }).to eq(2)
        expect([queued.map { |job| job["jid"] }, entries, dead_set]).to match([contain_exactly("orphaned", "another"), [], []])
        # It begins anew, so that poison is contained.
        expect(REDIS.call("GET", counters["recoveries"])).to eq("1")
      end

      it "keep what can never be pushed in the registry for three refusals where its counter is a #{type}, and disturb no other" do
        write.call(counters["refusals"])
        unusable = write_entry("dead:1:00ff/unusable", payload: "{\"jid\":\"orphaned\",\"args\":[]}")
        leave_orphans(task, task)
        counts = Array.new(3) { age(unusable) && monitor.cleanup_orphaned_requests(300, nil) }
        expect([counts, entries, dead_set]).to eq([[2, 0, 0], [unusable], []])

        age(unusable) && monitor.cleanup_orphaned_requests(300, nil)
        expect([entries, dead_set.size]).to eq([[], 1])
      end
    end
  end

  writes.except("string").each do |type, write|
    it "prove the life of a process whose capacity key is a #{type}, until that is gone" do
      dead = monitor
      id = leave_orphans(task).first
      write.call(key = "#{Registry::PROCESSES}:#{id.partition("/").first}:max_connections")
      expect([dead.cleanup_orphaned_requests(300, nil), entries]).to eq([0, [id]])
      REDIS.call("DEL", key)
      expect([dead.cleanup_orphaned_requests(300, nil), entries, queued.size]).to eq([1, [], 1])
    end

    it "leave no trace of a capacity of #{type} once its process pings" do
      one = monitor
      one.ping_process
      REDIS.call("DEL", capacity_key(one))
      write.call(capacity_key(one))
      one.ping_process
      expect([REDIS.call("GET", capacity_key(one)), ttl(capacity_key(one))]).to eq(["10", 120])
    end
  end

  it "leave an entry without a job where register was refused for the jobs, which a sweep takes out with a line" do
    one = monitor
    REDIS.call("SET", Registry::JOBS, "odd")
    expect_wrong_type { one.register(task("new")) }
    REDIS.call("DEL", Registry::JOBS)
    age(one.full_task_id("new"))
    log = RecordingLogger.new
    expect([monitor.cleanup_orphaned_requests(300, log), entries, queued, log.errors.size]).to eq([0, [], [], 1])
  end
end
