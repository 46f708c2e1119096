# frozen_string_literal: true

require "async"
require "async/semaphore"
require "securerandom"
require "socket"

module Application
  # A request in flight: what the monitor calls a task. Each attempt has an id of its own.
  Request = Struct.new(:id, :task_handler, :path, :handed_over, :asking)
  TaskHandler = Data.define(:sidekiq_job)

  # Keeps many HTTP requests in flight, each in a fiber of one reactor in a thread of its own, which registers it first and
  # unregisters it last.
  class Processor
    # How long the requests in flight may take at shutdown, in s, before they are given back. Sidekiq allows its jobs more.
    PATIENCE = 2
    # How long it takes at most to give them back: Sidekiq kills what is left after its own timeout.
    GIVING_BACK = 4
    # Between two tries of what Redis must be told, in s.
    PAUSE = 0.1

    def initialize(monitor, port)
      @monitor = monitor
      @port = port
      @inbox = Queue.new
      @shutdown = Queue.new
      @in_flight = {}
      @lock = Mutex.new
      @late = false
      @answers = 0
      @dies_after = Integer(ENV.fetch("DIES_AFTER", 0))
    end

    def start
      @thread = Thread.new { Sync { |reactor| run(reactor) } }
    end

    # Returns once the request is registered: the job may end then, since the request is lost no more. Were it to end at once, its
    # process could die before anybody knew of the request. While all places are taken, it waits for one.
    #
    # @raise [ClosedQueueError] when no more are taken
    def call(job, path)
      request = Request.new(SecureRandom.uuid, TaskHandler.new(sidekiq_job: job), path, Queue.new)
      @inbox << request
      error = request.handed_over.pop
      raise error if error
    end

    # Takes no more; those that it has go on.
    def close
      @inbox.close
    end

    # Waits for those in flight, and gives back to Sidekiq what takes too long. When not even that is possible, what is left stays
    # registered, and other processes recover it.
    #
    # @return [Boolean] whether nothing is left
    def stop
      close
      @shutdown << true
      !@thread.join(PATIENCE + GIVING_BACK).nil?
    end

    # @return [Array<String>]
    def in_flight_ids
      @lock.synchronize { @in_flight.keys }
    end

    private

    def run(reactor)
      places = Async::Semaphore.new(@monitor.config.max_connections, parent: reactor)
      while (request = @inbox.pop)
        places.async(request) { |task, taken| carry_out(taken, task) }
      end
      @shutdown.pop
      deadline = now + PATIENCE
      reactor.sleep(0.02) until @in_flight.empty? || now > deadline
      # Only those that wait for their answer, or are about to. One that has it is writing it down, and ends by itself, which the
      # reactor waits for.
      @late = true
      @in_flight.values.each { |request| request.asking&.stop }
    end

    def carry_out(request, task)
      # From now on its heartbeats are sent, also while it is being registered: Redis may know it before its answer is here.
      @lock.synchronize { @in_flight[request.id] = request }
      until_told { @monitor.register(request) }
      request.handed_over << nil
      answer = ask(request, task)
      # First the job is safe, be it as its answer or back in the queue, and then the request is forgotten. A process that dies in
      # between repeats a request; the other way round it would lose one.
      until_told { answer ? record(request, answer) : give_back(request) }
      until_told { @monitor.unregister(request) }
    rescue => error
      # Nothing that another try could mend. The job fails where it still waits; else the request stays registered, and others
      # recover it when this process is gone.
      request.handed_over << error
      Sidekiq.logger.error("A request failed: #{error.full_message(highlight: false)}")
    ensure
      @lock.synchronize { @in_flight.delete(request.id) }
    end

    # In a task of its own, which can be stopped without the steps before and after it being torn.
    #
    # @return [String, nil] nil when it was stopped, or failed
    def ask(request, task)
      return if @late

      request.asking = task.async { get(request.path) }
      request.asking.wait
    rescue SystemCallError, IOError => error
      Sidekiq.logger.error("No answer: #{error.class} - #{error.message}")
      nil
    ensure
      request.asking = nil
    end

    # As much of HTTP/1.1 as the server of the specs speaks.
    def get(path)
      Socket.tcp("127.0.0.1", @port) do |socket|
        socket.write("GET #{path} HTTP/1.1\r\nHost: 127.0.0.1:#{@port}\r\nConnection: close\r\n\r\n")
        head, body = socket.read.split("\r\n\r\n", 2)
        unless head&.start_with?("HTTP/1.1 200 ") && head[/^content-length: (\d+)/i, 1] == body.bytesize.to_s
          raise EOFError, "half an answer to #{path}"
        end

        body
      end
    end

    # For another application's Sidekiq, which is told each answer once: a push that is repeated since its own answer was lost has
    # the same jid.
    def record(request, answer)
      Sidekiq::Client.push("class" => "AnswerJob", "queue" => "answers", "jid" => request.id, "args" => [request.path, answer])
      die_where_told
    end

    # The job as it came. Repeated after a lost answer, it is there twice: at least once is what Sidekiq promises of any push.
    def give_back(request)
      Sidekiq::Client.push(request.task_handler.sidekiq_job)
      Sidekiq.logger.info("Given back: #{request.path}")
    end

    # At the one moment when a request is answered and in flight: no signal from outside finds it.
    def die_where_told
      @answers += 1
      Process.kill(:KILL, Process.pid) if @answers == @dies_after
    end

    # Each of these steps may be repeated after its answer was lost. Not for lost connections alone: a Redis that has just started
    # refuses commands while it loads what it had.
    def until_told
      yield
    rescue RedisClient::Error, ConnectionPool::TimeoutError
      sleep PAUSE
      retry
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
