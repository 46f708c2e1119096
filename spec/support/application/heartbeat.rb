# frozen_string_literal: true

module Application
  # The monitor thread: shows that the process and its requests are alive, and collects what dead processes left behind.
  class Heartbeat
    def initialize(monitor, processor)
      @monitor = monitor
      @processor = processor
      @stop = Queue.new
    end

    def start
      beat
      @thread = Thread.new { beat until @stop.pop(timeout: @monitor.config.heartbeat_interval) }
    end

    # A sweep that goes on is waited for, as its jobs are on lease. With Redis away the process does not wait to take itself out:
    # its proof of life runs out by itself.
    def stop
      @stop << true
      @thread.join
      @monitor.remove_process
    rescue RedisClient::Error => error
      Sidekiq.logger.error("The process is not taken out: #{error.class} - #{error.message}")
    end

    private

    def beat
      @monitor.ping_process
      @monitor.update_heartbeats(@processor.in_flight_ids)
      sweep if @monitor.gc_needed? && @monitor.acquire_gc_lock
    rescue => error
      # A thread that dies of one bad moment of Redis would make the process look dead.
      Sidekiq.logger.error("A heartbeat failed: #{error.class} - #{error.message}")
    end

    def sweep
      @monitor.cleanup_orphaned_requests(@monitor.config.orphan_threshold, Sidekiq.logger)
      @monitor.record_gc_run
    ensure
      @monitor.release_gc_lock
    end
  end
end
