# frozen_string_literal: true

module Demo
  # One thread for each process: shows that the process and its requests are alive, and looks for the orphans of others.
  class Heartbeat
    def initialize(monitor, processor)
      @monitor = monitor
      @processor = processor
      @stop = Queue.new
    end

    def start
      beat
      @thread = Thread.new do
        beat until @stop.pop(timeout: @monitor.config.heartbeat_interval)
      end
    end

    def stop
      @stop << true
      @thread.join
      @monitor.remove_process
    end

    private

    def beat
      @monitor.ping_process
      @monitor.update_heartbeats(@processor.in_flight_ids)
      sweep if @monitor.gc_needed? && @monitor.acquire_gc_lock
    rescue => error
      # A thread that dies of one bad moment of Redis would make the process look dead.
      Sidekiq.logger.error("Heartbeat failed: #{error.class} - #{error.message}")
    end

    def sweep
      count = @monitor.cleanup_orphaned_requests(@monitor.config.orphan_threshold, Sidekiq.logger)
      @monitor.record_gc_run
      Ledger.swept(Process.pid, count) if count.positive?
    ensure
      @monitor.release_gc_lock
    end
  end
end
