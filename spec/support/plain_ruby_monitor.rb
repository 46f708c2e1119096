# frozen_string_literal: true

require "json"
require "securerandom"
require "sidekiq"
require "socket"

# The registry in plain Ruby, by the wire format alone and in the manner of the older versions of the class: host clocks, one
# command after another through `Sidekiq.redis`, and an orphan's entry removed before its job is pushed. It is the control that
# shows what the tests can find, a peer in mixed fleets, and what the benchmarks compare with.
class PlainRubyMonitor
  INFLIGHT_INDEX_KEY = "sidekiq:patient_http:inflight_index"
  INFLIGHT_JOBS_KEY = "sidekiq:patient_http:inflight_jobs"
  PROCESS_SET_KEY = "sidekiq:patient_http:processes"
  GC_LOCK_KEY = "sidekiq:patient_http:gc_lock"
  GC_LAST_RUN_KEY = "sidekiq:patient_http:gc_last_run"
  REMOVE_IF_ORPHANED_SCRIPT = <<~LUA
    local score = redis.call("ZSCORE", KEYS[1], ARGV[1])
    if score and tonumber(score) < tonumber(ARGV[2]) then
      local payload = redis.call("HGET", KEYS[2], ARGV[1])
      redis.call("ZREM", KEYS[1], ARGV[1])
      redis.call("HDEL", KEYS[2], ARGV[1])
      return {1, payload}
    end
    return {0, false}
  LUA
  RELEASE_LOCK_SCRIPT = <<~LUA
    if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end
    return 0
  LUA
  private_constant :RELEASE_LOCK_SCRIPT

  class << self
    def inflight_count
      ::Sidekiq.redis { |redis| redis.call("ZCARD", INFLIGHT_INDEX_KEY) }
    end

    def registered_process_ids
      ::Sidekiq.redis { |redis| redis.call("SMEMBERS", PROCESS_SET_KEY) }
    end

    def inflight_counts_by_process
      counts = Hash.new { |hash, name| hash[name] = {inflight: 0, max_capacity: 0} }
      inflight = ::Sidekiq.redis { |redis| redis.call("ZRANGE", INFLIGHT_INDEX_KEY, 0, -1) }
        .map { |id| id.split("/", 2).first }.tally
      capacities.each do |process, capacity|
        entry = counts[process.rpartition(":").first]
        entry[:inflight] += inflight.fetch(process, 0)
        entry[:max_capacity] += capacity
      end
      counts.default = nil
      counts
    end

    def total_max_connections
      capacities.values.sum
    end

    def clear_all!
      raise "clear_all! is only allowed in test environment" unless ENV["RACK_ENV"] == "test"

      keys = registered_process_ids.map { |process| capacity_key(process) }
      ::Sidekiq.redis do |redis|
        redis.call("DEL", INFLIGHT_INDEX_KEY, INFLIGHT_JOBS_KEY, PROCESS_SET_KEY, GC_LOCK_KEY, GC_LAST_RUN_KEY, *keys)
      end
      nil
    end

    def capacity_key(process)
      "#{PROCESS_SET_KEY}:#{process}:max_connections"
    end

    private

    def capacities
      found = registered_process_ids.to_h do |process|
        [process, ::Sidekiq.redis { |redis| redis.call("GET", capacity_key(process)) }]
      end
      gone, alive = found.partition { |_, capacity| capacity.nil? }
      gone.each { |process, _| ::Sidekiq.redis { |redis| redis.call("SREM", PROCESS_SET_KEY, process) } }
      alive.to_h { |process, capacity| [process, capacity.to_i] }
    end
  end

  attr_reader :config

  def initialize(config)
    @config = config
    @process_id = "#{Socket.gethostname.tr(":/", "-")}:#{Process.pid}:#{SecureRandom.hex(8)}"
  end

  def full_task_id(id)
    "#{@process_id}/#{id}"
  end

  def register(task)
    payload = JSON.generate(task.task_handler.sidekiq_job)
    id = full_task_id(task.id)
    ::Sidekiq.redis do |redis|
      redis.multi do |transaction|
        transaction.call("ZADD", INFLIGHT_INDEX_KEY, now_ms, id)
        transaction.call("HSET", INFLIGHT_JOBS_KEY, id, payload)
        expire(transaction)
      end
    end
    nil
  end

  def unregister(task)
    id = full_task_id(task.id)
    ::Sidekiq.redis do |redis|
      redis.multi do |transaction|
        transaction.call("ZREM", INFLIGHT_INDEX_KEY, id)
        transaction.call("HDEL", INFLIGHT_JOBS_KEY, id)
      end
    end
    nil
  end

  def update_heartbeats(ids)
    return if ids.empty?

    ::Sidekiq.redis do |redis|
      redis.pipelined do |pipeline|
        ids.each { |id| pipeline.call("ZADD", INFLIGHT_INDEX_KEY, "XX", now_ms, full_task_id(id)) }
        expire(pipeline)
      end
    end
    nil
  end

  def registered?(task)
    !heartbeat_timestamp_for(task).nil?
  end

  def heartbeat_timestamp_for(task)
    ::Sidekiq.redis { |redis| redis.call("ZSCORE", INFLIGHT_INDEX_KEY, full_task_id(task.id)) }&.to_i
  end

  def registered_task_ids
    ids = ::Sidekiq.redis { |redis| redis.call("ZRANGE", INFLIGHT_INDEX_KEY, 0, -1) }
    ids.select { |id| id.start_with?("#{@process_id}/") }
  end

  def ping_process
    ::Sidekiq.redis do |redis|
      redis.multi do |transaction|
        transaction.call("SADD", PROCESS_SET_KEY, @process_id)
        transaction.call("SET", self.class.capacity_key(@process_id), @config.max_connections, "EX", ttl(2 * @config.heartbeat_interval))
      end
    end
    nil
  end

  def remove_process
    ::Sidekiq.redis do |redis|
      redis.multi do |transaction|
        transaction.call("SREM", PROCESS_SET_KEY, @process_id)
        transaction.call("DEL", self.class.capacity_key(@process_id))
      end
    end
    nil
  end

  def acquire_gc_lock
    time = [2 * @config.heartbeat_interval.to_f, 120].max
    ::Sidekiq.redis { |redis| redis.call("SET", GC_LOCK_KEY, @process_id, "NX", "EX", ttl(time)) } == "OK"
  end

  def release_gc_lock
    ::Sidekiq.redis { |redis| redis.call("EVAL", RELEASE_LOCK_SCRIPT, 1, GC_LOCK_KEY, @process_id) } == 1
  end

  def gc_needed?
    last = ::Sidekiq.redis { |redis| redis.call("GET", GC_LAST_RUN_KEY) }
    last.nil? || now_ms - last.to_i >= @config.heartbeat_interval.to_f * 1000
  end

  def record_gc_run
    ::Sidekiq.redis { |redis| redis.call("SET", GC_LAST_RUN_KEY, now_ms, "EX", ttl(1.5 * @config.heartbeat_interval)) }
    nil
  end

  # Removes an orphan, then pushes its job: what dies in between is lost.
  def cleanup_orphaned_requests(seconds, logger)
    threshold = now_ms - (seconds.to_f * 1000).round
    live = self.class.registered_process_ids
    stale = ::Sidekiq.redis { |redis| redis.call("ZRANGE", INFLIGHT_INDEX_KEY, "-inf", "(#{threshold}", "BYSCORE") }
    stale.reject { |id| live.include?(id.split("/", 2).first) }.count do |id|
      removed, payload = ::Sidekiq.redis do |redis|
        redis.call("EVAL", REMOVE_IF_ORPHANED_SCRIPT, 2, INFLIGHT_INDEX_KEY, INFLIGHT_JOBS_KEY, id, threshold)
      end
      removed == 1 && payload && re_enqueue(id, payload, logger)
    end
  end

  private

  def re_enqueue(id, payload, logger)
    job = JSON.parse(payload)
    ::Sidekiq::Client.push(job)
    logger&.info("[PatientHttp::Sidekiq] Re-enqueued orphaned request #{id} to #{job["class"]}")
    true
  rescue => error
    logger&.error("[PatientHttp::Sidekiq] Failed to re-enqueue orphaned request #{id}: #{error.class} - #{error.message}")
    false
  end

  def expire(redis)
    time = ttl([3 * @config.orphan_threshold.to_f, 3_600].max)
    redis.call("EXPIRE", INFLIGHT_INDEX_KEY, time)
    redis.call("EXPIRE", INFLIGHT_JOBS_KEY, time)
  end

  def ttl(seconds)
    [seconds.to_f.ceil, 1].max
  end

  def now_ms
    (Time.now.to_f * 1000).round
  end
end
