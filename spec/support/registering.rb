# frozen_string_literal: true

require "support/observing"
require "support/tasks"

# Threads that register without end, whatever happens to Redis, and remember what came of each call.
class Registering
  include Observing
  include Tasks

  # Between two registrations of a thread, in s: a few thousand a second from ten of them leave the machine time for Redis.
  PAUSE = 0.004
  Call = Struct.new(:id, :begun, :ended, :error)

  # @param monitor [PatientHttp::Sidekiq::TaskMonitor]
  # @param pool [ConnectionPool] Sidekiq's
  # @param threads [Integer]
  def initialize(monitor, pool, threads:)
    @monitor = monitor
    @pool = pool
    @stopped = false
    # One list for each thread: nothing is shared.
    @calls = Array.new(threads) { [] }
    @threads = @calls.map.with_index { |calls, number| Thread.new { Sidekiq::Client.via(pool) { work(number, calls) } } }
  end

  # @return [Boolean] whether each thread's last calls, of those that began since then, all were acknowledged
  def each_at_least?(count, since: 0)
    @calls.all? { |calls| calls.last(count).then { |last| last.size == count && last.first.begun > since && last.none?(&:error) } }
  end

  def stop
    @stopped = true
    @threads.each(&:join)
  end

  # @return [Array<String>] of the registrations that Redis acknowledged, those that began since then
  def acknowledged(since: 0)
    all.reject(&:error).select { |call| call.begun > since }.map(&:id)
  end

  # @return [Array<Exception>]
  def errors
    all.filter_map(&:error)
  end

  # @return [Float] for how long no call at all was acknowledged, at most, in s
  def longest_gap
    all.reject(&:error).map(&:ended).sort.each_cons(2).map { |before, after| after - before }.max
  end

  private

  def all
    @calls.flat_map(&:dup)
  end

  def work(number, calls)
    until @stopped
      calls << (call = Call.new("#{number}-#{calls.size}", monotonic))
      begin
        @monitor.register(task(call.id))
      rescue => error
        call.error = error
      end
      call.ended = monotonic
      sleep PAUSE
    end
  end
end
