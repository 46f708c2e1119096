# frozen_string_literal: true

require "support/answering_server"
require "support/application_process"
require "support/observing"
require "support/registry"

# What was enqueued, and what became of it: path to how often.
RequestCounts = Struct.new(:enqueued, :asked, :answered) do
  # @return [Hash{String => Integer}] what was not answered exactly once, and how often it was
  def not_answered_once
    not_once(answered)
  end

  # @return [Hash{String => Integer}]
  def not_asked_once
    not_once(asked)
  end

  def lost
    enqueued - answered.keys
  end

  # @return [Array<String>] the paths that were answered more than once
  def repeated
    answered.select { |_, times| times > 1 }.keys
  end

  def asked_again
    asked.select { |_, times| times > 1 }.keys
  end

  def to_s
    "requests #{enqueued.size}, answered #{answered.size}, repeated #{repeated.size}, lost #{lost.size}, " \
      "asked #{asked.values.sum} times"
  end

  private

  def not_once(counts)
    (enqueued | counts.keys).to_h { |path| [path, counts.fetch(path, 0)] }.reject { |_, times| times == 1 }
  end
end

# For examples with real Sidekiq processes of an application (application/app.rb), the server that they ask, and a Redis of their
# own that keeps what it has when it is killed. What is promised is counted from outside: what was enqueued, what the server was
# asked, and what another application's queue was told.
RSpec.shared_context "with an application" do
  include Observing

  attr_reader :redis

  let(:pool) { Sidekiq::RedisConnection.create(url: redis.url, timeout: 5) }
  let(:server) { AnsweringServer.new }
  let(:processes) { [] }
  let(:enqueued) { [] }
  # Whoever holds it keeps new jobs out of the queue.
  let(:enqueuing) { Mutex.new }
  # Longer with SOAK=1 (`rake soak:application`).
  let(:scale) { ENV["SOAK"] ? 10 : 1 }
  # RSpec prints the seed.
  let(:random) { Random.new(RSpec.configuration.seed) }

  # What was appended is the kernel's before a command is answered: it outlives the server's death, though not the machine's.
  before(:context) { @redis = RedisServer.start(appendonly: "yes", appendfsync: "no") }
  after(:context) { @redis.stop }

  before do
    redis.start unless redis.pid
    redis.call("FLUSHALL")
    @started = monotonic
  end

  after do |example|
    processes.each(&:kill)
    server.stop
    pool.shutdown(&:close)
    next unless example.exception

    processes.each do |process|
      # Without a line for each job that went well.
      report("the log of #{process.pid}:\n#{process.log.lines.grep_v(/: (start|done)$/).join}")
    end
  end

  # Several whole processes, on a machine that may be under load.
  def eventually(within: 30)
    super
  end

  # @param options [Hash] see {ApplicationProcess#initialize}
  # @return [ApplicationProcess] which may still be starting
  def start_process(**options)
    log = File.join(redis.dir, "application-#{processes.size}.log")
    ApplicationProcess.new(redis, server, log, **options).tap { |process| processes << process }
  end

  # @return [Array<ApplicationProcess>] which take requests
  def start_processes(count)
    Array.new(count) { start_process }.each(&:booted)
  end

  # Enqueues a job of one request.
  #
  # @param time [Float, String] how long its answer takes, in s, or "held"
  # @return [String] its path
  def enqueue(time)
    enqueuing.synchronize do
      path = "/#{enqueued.size}/#{time}"
      # Before it is there: an answer must not come to what nobody knows of.
      enqueued << path
      Sidekiq::Client.via(pool) { Sidekiq::Client.push("class" => "Application::FetchJob", "args" => [path]) }
      path
    end
  end

  # Enqueues steadily while the block runs.
  #
  # @param per_second [Integer]
  # @yieldparam the time of each request, see {#enqueue}
  def under_load(per_second, times:)
    ends = false
    load = Thread.new do
      started = monotonic
      until ends
        enqueue(times.call)
        pause = started + (enqueued.size / per_second.to_f) - monotonic
        sleep(pause) if pause.positive?
      end
    end
    yield
  ensure
    ends = true
    load&.join
  end

  # @return [Hash{String => Integer}] path to how often its answer was told: a push that was repeated has the same jid
  def answered
    jobs = redis.call("LRANGE", "queue:answers", 0, -1).map { |job| JSON.parse(job) }.uniq { |job| job["jid"] }
    wrong = jobs.reject { |job| job["args"].last == AnsweringServer.answer_to(job["args"].first) }
    raise "wrong answers: #{wrong}" if wrong.any?

    jobs.map { |job| job["args"].first }.tally
  end

  # @return [Array<String>] the paths whose jobs are in the queue
  def queued
    redis.call("LRANGE", "queue:default", 0, -1).map { |job| JSON.parse(job)["args"].first }
  end

  # @return [Hash{String => String}] registry id to path
  def in_flight
    redis.call("HGETALL", Registry::JOBS).transform_values { |job| JSON.parse(job)["args"].first }
  end

  def counts
    RequestCounts.new(enqueued.dup, server.asked, answered)
  end

  # Waits until nothing is left to do.
  #
  # @return [RequestCounts]
  def settled
    eventually(within: 60) { queued.empty? && in_flight.empty? && (enqueued - answered.keys).empty? }
    counts
  end

  # Whether the processes that have ended left nothing behind.
  #
  # @return [Array<String>] what they did leave
  def left_behind
    pool.shutdown(&:close)
    eventually { clients_of(redis).empty? }
    # When the last sweep was is remembered for a moment; how often a job was recovered, for its window.
    keys = redis.call("KEYS", "sidekiq:patient_http:*").grep_v(/:gc_last_run\z|:recoveries:/)
    keys + redis.call("KEYS", "*").intersection(%w[retry schedule dead]) + clients_of(redis).map(&:to_s)
  end

  # Tells figures beside the results.
  def report(line)
    RSpec.configuration.reporter.message("  #{line}")
  end

  def report_counts(what, counts, *further)
    took = (monotonic - @started).round(1)
    report([what, [counts.to_s, *further, "#{took} s"].join(", ")].join(": "))
  end
end
