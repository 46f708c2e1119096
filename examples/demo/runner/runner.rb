# frozen_string_literal: true

require "sidekiq"
require "sidekiq/api"
require "patient_http_monitor"
require_relative "../ledger"
require_relative "../settings"
require_relative "children"
require_relative "failure"
require_relative "feeder"
require_relative "redis_server"
require_relative "screen"
require_relative "sidekiq_process"
require_relative "verdict"

module Demo
  # The whole demo, from the start of its Redis to the closing line.
  class Runner
    # All in s. The first two count from the server's start; with the third they stay below 90 together.
    BOOT_TIMEOUT = 30
    TIME_LIMIT = 78
    STOP_TIMEOUT = 8
    ROW_EVERY = 0.5
    # For how long both processes are shown at work.
    PEACE = 5
    # The one to be killed has more in flight than the 50 that are promised, since some may end until it is dead.
    KILL_AT = 60
    PROMISED = 50

    # @param signals [Signals]
    def initialize(signals)
      @signals = signals
      @screen = Screen.new
      @recovered = 0
      @sweeps_seen = 0
    end

    # @return [Integer] exit status
    def run
      perform
    rescue Errno::EPIPE, Errno::EIO
      1 # Nobody reads any more.
    end

    private

    def perform
      in_a_clean_place { tell }
    rescue Signals::Stop => stop
      @screen.event("#{stop.message}: nothing is left running", :yellow)
      128 + stop.number
    rescue Failure => failure
      @screen.event(failure.message, :red)
      1
    end

    def in_a_clean_place
      @children = Children.new
      yield
    ensure
      @children&.clean_up
    end

    def tell
      @feeder = Feeder.new
      introduce
      boot
      watch
      wind_down
      Verdict.new(@feeder, @victim, @orphans, @recovered).announce(@screen)
    rescue RedisClient::Error => error
      raise Failure.of(@server.child, "redis-server #{@server.child.fate} and does not answer: #{error.class} - #{error.message}")
    end

    def introduce
      @screen.line(<<~TEXT)
        Two Sidekiq processes, A and B, keep up to #{MONITOR_CONFIG.max_connections} (simulated) HTTP requests in
        flight each and register every one with PatientHttp::Sidekiq::TaskMonitor.
        Then one of them is killed without warning: the other has to find the requests
        of the dead one and give their jobs back to Sidekiq.

      TEXT
    end

    def boot
      @server = RedisServer.new(@children, @signals).start
      @started = now
      use_server
      @processes = %w[A B].map { |letter| SidekiqProcess.new(letter, @children, @server.url) }
      wait_for_processes
      @screen.line("  redis-server  127.0.0.1:#{@server.port}, its own")
      @screen.line("  jobs          #{Feeder::TOTAL}, seed #{@feeder.seed} (once more: SEED=#{@feeder.seed} bin/demo)")
      @processes.each { |process| @screen.line("  #{process.name}     #{process.host_and_pid}") }
      @screen.header
    end

    # This process is a client of Sidekiq as well: it enqueues, and reads the registry.
    def use_server
      url = @server.url
      Sidekiq.configure_client do |config|
        config.logger.level = Logger::WARN
        config.redis = {url: url}
      end
    end

    def wait_for_processes
      until @processes.all?(&:booted?)
        raise late_process if time > BOOT_TIMEOUT

        @signals.pause(0.1)
        @processes.each(&:check)
        read_load
      end
    end

    def late_process
      process = @processes.find { |candidate| !candidate.booted? }
      Failure.of(process.child, "#{process.name} (pid #{process.pid}) did not boot within #{BOOT_TIMEOUT} s.")
    end

    def watch
      first_row = now
      loop do
        @processes.each(&:check)
        report_sweeps
        finished = Ledger.finished_jobs.size
        row(finished)
        return if finished == Feeder::TOTAL || time > TIME_LIMIT

        peace_is_over = !@victim && now - first_row > PEACE
        if peace_is_over && candidate
          kill(candidate)
        elsif !(peace_is_over && fullest.in_flight >= KILL_AT)
          # Otherwise nothing is added until all that was enqueued is registered.
          @feeder.feed(finished)
        end
        @signals.pause(ROW_EVERY)
      end
    end

    def row(finished)
      read_load
      entries = @processes.map { |process| process.killed? ? process.registered_requests : process.in_flight }
      @screen.row(time, @processes.zip(entries), Sidekiq::Queue.new.size, finished, @recovered)
    end

    # Not while a job is on its way from the queue to the registry: what a killed process holds there is lost by Sidekiq itself
    # (its basic fetch), before there is any request to register.
    def candidate
      fullest if fullest.in_flight >= KILL_AT && Ledger.registered_count == @feeder.enqueued
    end

    def fullest
      @processes.max_by(&:in_flight)
    end

    def kill(process)
      process.kill
      @victim = process
      @killed_at = now
      @orphans = process.registered_requests
      interval, threshold = MONITOR_CONFIG.to_h.values_at(:heartbeat_interval, :orphan_threshold)
      @screen.event(<<~TEXT, :red)
        SIGKILL to #{process.name} (#{process.host_and_pid}), with #{@orphans} requests in flight.
        It counts as dead #{2 * interval} s after its last sign of life, and each of its
        requests as an orphan #{threshold} s after its last heartbeat.
      TEXT
    end

    def report_sweeps
      Ledger.sweeps.drop(@sweeps_seen).each do |pid, count|
        @sweeps_seen += 1
        @recovered += count
        collector = @processes.find { |process| process.pid == pid }
        @screen.event("#{collector&.name || "pid #{pid}"} recovered #{count} orphans, #{since_death}:\n" \
          "their jobs are in Sidekiq's queue again.", :green)
      end
    end

    def since_death
      @killed_at ? "#{(now - @killed_at).round(1)} s after the death" : "though nobody had died"
    end

    # The survivors end as they do on every deploy.
    def wind_down
      survivors = @processes.reject(&:killed?)
      survivors.each { |process| process.child.terminate }
      deadline = now + STOP_TIMEOUT
      @signals.pause(0.05) while survivors.any? { |process| process.child.running? } && now < deadline
      report_sweeps
    end

    def read_load
      counts = PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process
      @processes.each { |process| process.read(counts) }
    end

    # @return [Float] s since the server's start
    def time
      now - @started
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
