# frozen_string_literal: true

require "securerandom"
require "socket"

# Looks at the registry from outside, and brings it into states that otherwise take a crash or a long time.
module Registry
  INDEX = "sidekiq:patient_http:inflight_index"
  JOBS = "sidekiq:patient_http:inflight_jobs"
  PROCESSES = "sidekiq:patient_http:processes"
  GC_LOCK = "sidekiq:patient_http:gc_lock"
  GC_LAST_RUN = "sidekiq:patient_http:gc_last_run"
  # In ms: how far the tracked clock may be off on a busy machine, where a round trip takes that long.
  CLOCK_ERROR = 100
  ENVIRONMENT_VARIABLES = %w[RAILS_ENV RACK_ENV APP_ENV].freeze

  # What answers `to_f` and nothing else of a number, as an ActiveSupport duration may.
  Duration = Struct.new(:to_f)

  def process_id(monitor)
    monitor.full_task_id("").delete_suffix("/")
  end

  def capacity_key(monitor)
    "#{PROCESSES}:#{process_id(monitor)}:max_connections"
  end

  # What a process leaves when it is killed after its last ping: it stays a member of the set.
  def expire_capacity(monitor)
    REDIS.call("DEL", capacity_key(monitor))
  end

  def score(id)
    REDIS.call("ZSCORE", INDEX, id)
  end

  def payload(id)
    REDIS.call("HGET", JOBS, id)
  end

  # @return [Array<String>] the registry ids that the index has, or the jobs
  def entries
    REDIS.call("ZRANGE", INDEX, 0, -1) | REDIS.call("HKEYS", JOBS)
  end

  def server_ms
    seconds, microseconds = REDIS.call("TIME")
    (Integer(seconds) * 1000) + (Integer(microseconds) / 1000)
  end

  # What is left of a key's TTL in s, a second that has begun counting as whole.
  def ttl(key)
    (REDIS.call("PTTL", key) / 1000.0).ceil
  end

  def keys(pattern = "*")
    REDIS.call("KEYS", pattern)
  end

  # Puts the last heartbeat of entries into the past.
  def age(*ids, seconds: 3600)
    last = server_ms - (seconds * 1000)
    REDIS.call("ZADD", INDEX, "XX", *ids.flat_map { |id| [last, id] })
  end

  # An entry as any version of the gem may have left it; a payload or a score of nil leaves that half out.
  def write_entry(id, payload:, score: 0)
    REDIS.call("HSET", JOBS, id, payload) if payload
    REDIS.call("ZADD", INDEX, score, id) if score
    id
  end

  # Registers tasks by a process that never showed that it lives, an hour ago.
  #
  # @return [Array<String>] their registry ids
  def leave_orphans(*tasks)
    dead = monitor
    tasks.each { |task| dead.register(task) }
    ids = tasks.map { |task| dead.full_task_id(task.id) }
    age(*ids)
    ids
  end

  # @return [Array<Hash>] the jobs in a queue of Sidekiq's, the first one pushed first
  def queued(queue = "default")
    REDIS.call("LRANGE", "queue:#{queue}", 0, -1).reverse.map { |job| JSON.parse(job) }
  end

  # @return [Array<Array(String, String)>] who sent each command that Redis carried out during the block, and its name; a script's
  #   commands are sent by "lua"
  def redis_commands
    observer = TCPSocket.new("127.0.0.1", REDIS.port)
    observer.write("MONITOR\r\n")
    observer.gets
    yield
    REDIS.call("ECHO", marker = SecureRandom.hex)
    lines = []
    while (line = observer.gets) && !line.include?(marker)
      lines << line
    end
    lines.filter_map { |line| line.match(/\[\d+ (\S+)\] "(\w+)"/)&.captures }
  ensure
    observer&.close
  end

  # @param commands [Array<Array(String, String)>] see {#redis_commands}
  # @return [Boolean] whether those of these names were all sent in one transaction or one script
  def one_step?(commands, *names)
    sent = commands.map { |_, name| name.upcase }
    first, last = sent.index { |name| names.include?(name) }, sent.rindex { |name| names.include?(name) }
    return false unless (names - sent).empty?

    by_script = commands[first..last].all? { |source, _| source == "lua" }
    by_script || (sent[...first].include?("MULTI") && !sent[first..last].include?("EXEC") && sent[last..].include?("EXEC"))
  end

  def outside_test_environment
    before = ENVIRONMENT_VARIABLES.to_h { |name| [name, ENV.fetch(name, nil)] }
    ENVIRONMENT_VARIABLES.each { |name| ENV[name] = "production" }
    yield
  ensure
    before.each { |name, value| ENV[name] = value }
  end
end

RSpec.configure { |config| config.include Registry }
