# frozen_string_literal: true

# A process of a fleet, started by {Fleet}. It runs its heartbeat thread as applications do, and does what it is told: each line
# on its standard input is a call, each line on its standard output the answer. It ends with its input.

require "json"
require "sidekiq"
require_relative "plain_ruby_monitor"
require_relative "recording_logger"
require_relative "tasks"

# The calls that a member of a fleet answers.
class FleetMember
  include Tasks

  # A client middleware that lets no push through: its process hangs in the middle of a sweep.
  class Hang
    def initialize(reached)
      @reached = reached
    end

    def call(*)
      @reached << true
      sleep
    end
  end

  # A client middleware of an application in trouble.
  class Refuse
    def call(*)
      raise IOError, "nobody answers"
    end
  end

  # @param options [Hash{String => Object}] of the monitor's config, and of the gem's settings
  def initialize(options)
    @plain = options.delete("plain")
    require "patient_http_monitor" unless @plain
    options.delete("settings")&.each { |name, value| PatientHttpMonitor.settings.public_send(:"#{name}=", value) }
    @monitor = (@plain ? PlainRubyMonitor : PatientHttp::Sidekiq::TaskMonitor).new(config(**options.transform_keys(&:to_sym)))
    @logger = RecordingLogger.new
    @ids = []
    @deaths = []
    Sidekiq.default_configuration.death_handlers << ->(job, error) { @deaths << [job, error.class.name] }
  end

  # @return [String] its process id
  def process_id
    @monitor.full_task_id("").delete_suffix("/")
  end

  # @return [Float] what this process takes for the time, in s since the epoch
  def wall_clock
    Time.now.to_f
  end

  # Registers tasks, whose jobs hold their ids as args.
  def register(*ids)
    ids.each { |id| @monitor.register(task(id, args: [id])) }
    @ids += ids
    nil
  end

  # @return [Array<String>] which of its own tasks are registered
  def registered
    @ids.select { |id| @monitor.registered?(task(id)) }
  end

  def heartbeat
    @monitor.update_heartbeats(@ids)
  end

  # One round of the heartbeat thread.
  def beat
    @monitor.ping_process
    heartbeat
    collect if @monitor.gc_needed? && @monitor.acquire_gc_lock
  rescue RedisClient::Error
    nil
  end

  # From now on this process has a heartbeat thread.
  def live
    beat
    every(@monitor.config.heartbeat_interval) { beat }
  end

  # From now on it pings in time, and its heartbeat thread is stuck before the heartbeats.
  def only_ping
    live_otherwise(@monitor.config.heartbeat_interval) { @monitor.ping_process }
  end

  # From now on it has no heartbeat thread, and goes on working.
  def only_register
    number = 0
    live_otherwise(0.1) { register("further-#{number += 1}") }
  end

  # Sweeps once, whoever else may do so.
  def sweep(threshold)
    @monitor.cleanup_orphaned_requests(threshold, @logger)
  end

  # Sweeps once, and no push succeeds.
  def sweep_in_vain(threshold)
    chain.add(Refuse)
    sweep(threshold)
  ensure
    chain.remove(Refuse)
  end

  # Collects, and hangs while it hands the first orphan to Sidekiq; answers when it does.
  def hang_in_collecting
    reached = Queue.new
    chain.add(Hang, reached)
    Thread.new { collect if @monitor.acquire_gc_lock }
    reached.pop(timeout: 10) || false
  end

  # Takes whatever is in the queue, registers a request of each job, and dies of it.
  def take_jobs_and_die
    @monitor.ping_process
    while (payload = Sidekiq.redis { |redis| redis.call("RPOP", "queue:default") })
      job = JSON.parse(payload)
      id, keeps_jid = job["args"]
      job.delete("jid") unless keeps_jid
      @monitor.register(Task.new(id, TaskHandler.new(job)))
    end
    Process.kill(:KILL, Process.pid)
    sleep
  end

  # Any method of the monitor's, with arguments that JSON can express.
  def monitor_answers(name, *arguments)
    @monitor.public_send(name, *arguments)
  end

  # @return [Array<Array(String, String)>] what was logged for each job
  def lines
    @logger.lines
  end

  # @return [Array<Array(Hash, String)>] what the death handlers were called with
  def deaths
    @deaths
  end

  # @return [Hash{String => String}] the versions of the gems it runs with
  def gems
    Gem.loaded_specs.transform_values { |gem| gem.version.to_s }
  end

  private

  def collect
    @monitor.cleanup_orphaned_requests(@monitor.config.orphan_threshold, @logger)
    @monitor.record_gc_run
  ensure
    @monitor.release_gc_lock
  end

  def live_otherwise(interval, &block)
    @thread&.kill&.join
    every(interval, &block)
  end

  def every(interval)
    @stop = Queue.new
    @thread = Thread.new do
      yield until @stop.pop(timeout: interval)
    end
    # It waits for its first round now: who stops this process stops a wait, and not its beginning.
    sleep 0.001 until @thread.stop?
    nil
  end

  def chain
    Sidekiq.default_configuration.client_middleware
  end
end

if $PROGRAM_NAME == __FILE__
  answers = $stdout.dup
  answers.sync = true
  $stdout.reopen(IO::NULL)
  Sidekiq.default_configuration.logger.level = Logger::FATAL
  member = FleetMember.new(JSON.parse(ARGV.fetch(0)))
  $stdin.each_line do |line|
    answer = begin
      {answer: member.public_send(*JSON.parse(line))}
    rescue => error
      {error: error.full_message(highlight: false)}
    end
    answers.puts(JSON.generate(answer))
  end
  Process.exit!(true)
end
