# frozen_string_literal: true

module Demo
  # What happened, in keys of the demo's own: the processes write it, the runner reads it. It counts jobs by jid, apart from the
  # monitor, so that the monitor's promise can be checked against it.
  module Ledger
    REGISTERED_KEY = "demo:registered"
    FINISHED_KEY = "demo:finished"
    SWEEPS_KEY = "demo:sweeps"

    class << self
      def registered(jid)
        Sidekiq.redis { |redis| redis.call("SADD", REGISTERED_KEY, jid) }
      end

      # By request, so that one that is written down twice still counts once; a job that was done twice has two.
      def finished(request_id, jid)
        Sidekiq.redis { |redis| redis.call("HSET", FINISHED_KEY, request_id, jid) }
      end

      def swept(pid, count)
        Sidekiq.redis { |redis| redis.call("RPUSH", SWEEPS_KEY, "#{pid} #{count}") }
      end

      # @return [Integer] how many jobs had a request in flight at least once
      def registered_count
        Sidekiq.redis { |redis| redis.call("SCARD", REGISTERED_KEY) }
      end

      # @return [Hash{String => Integer}] jid to how often it was finished
      def finished_jobs
        Sidekiq.redis { |redis| redis.call("HVALS", FINISHED_KEY) }.tally
      end

      # @return [Array<Array(Integer, Integer)>] each sweep that found something: pid of the collector, how many jobs it recovered
      def sweeps
        Sidekiq.redis { |redis| redis.call("LRANGE", SWEEPS_KEY, 0, -1) }.map { |line| line.split.map(&:to_i) }
      end
    end
  end
end
