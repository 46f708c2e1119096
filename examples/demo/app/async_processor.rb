# frozen_string_literal: true

require "securerandom"

module Demo
  # What the monitor calls a task: a request in flight, and the job that asked for it.
  Request = Struct.new(:id, :task_handler, :due_at)
  TaskHandler = Data.define(:sidekiq_job)

  # Keeps many requests in flight at once. They are simulated: nothing is sent, and one timer thread "answers" each request when
  # its time has come. What is shown is how they are registered, not HTTP.
  class AsyncProcessor
    # How often the timer looks for answers, in s.
    TICK = 0.02
    # How long the requests in flight may take at shutdown, in s: as long as the longest.
    PATIENCE = REQUEST_SECONDS.end + 1

    def initialize(monitor)
      @monitor = monitor
      @in_flight = {}
      @lock = Mutex.new
      @place_free = ConditionVariable.new
      @stopping = false
    end

    def start
      @timer = Thread.new do
        until @stopping && in_flight_ids.empty?
          due_requests.each { |request| answer(request) }
          sleep TICK
        end
      end
    end

    # Takes no more, and waits for the answers. What is still in flight then is left to the other processes.
    def stop
      @lock.synchronize do
        @stopping = true
        @place_free.broadcast
      end
      @timer.join(PATIENCE)
    end

    # Returns once the request is on its way. While all places are taken, the job waits for one.
    #
    # @raise [RuntimeError] during shutdown: Sidekiq tries the job again later
    def call(job, seconds)
      request = Request.new(SecureRandom.uuid, TaskHandler.new(sidekiq_job: job))
      take_place(request)
      begin
        @monitor.register(request)
        Ledger.registered(job["jid"])
      rescue
        free_place(request)
        raise
      end
      @lock.synchronize { request.due_at = now + seconds }
    end

    # @return [Array<String>]
    def in_flight_ids
      @lock.synchronize { @in_flight.keys }
    end

    private

    def take_place(request)
      @lock.synchronize do
        @place_free.wait(@lock) until @stopping || @in_flight.size < MONITOR_CONFIG.max_connections
        raise "the process is shutting down" if @stopping

        @in_flight[request.id] = request
      end
    end

    def free_place(request)
      @lock.synchronize do
        @in_flight.delete(request.id)
        @place_free.signal
      end
    end

    def due_requests
      @lock.synchronize { @in_flight.values.select { |request| request.due_at && request.due_at <= now } }
    end

    # First the result is safe, then the request is forgotten: a death in between repeats a job and loses none.
    def answer(request)
      Ledger.finished(request.id, request.task_handler.sidekiq_job["jid"])
      @monitor.unregister(request)
      free_place(request)
    rescue RedisClient::Error => error
      Sidekiq.logger.error("Could not record an answer, trying again: #{error.class} - #{error.message}")
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
