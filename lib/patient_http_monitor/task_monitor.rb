# frozen_string_literal: true

# The namespace of the gems around patient_http.
module PatientHttp
  # The namespace of patient_http-sidekiq, which runs long HTTP requests of Sidekiq jobs.
  module Sidekiq
    # The registry of HTTP requests in flight, in the Redis that Sidekiq uses.
    #
    # A request that a Sidekiq process has handed to its async processor is in nobody's queue. This class remembers it: it is
    # registered when it starts, shows by heartbeats that it is alive, and is unregistered when it has ended. When its process
    # dies, any other process finds it ({#cleanup_orphaned_requests}) and gives its job back to Sidekiq.
    #
    # Words: a *task* answers `id` (String) and `task_handler.sidekiq_job` (Hash). A *process id* is `HOST:PID:HEX`, a *registry
    # id* `HOST:PID:HEX/TASK_ID`. A process is *alive* while its capacity key exists; an *orphan* is an entry whose heartbeat is
    # older than a threshold and whose process is not alive.
    #
    # Every method that talks to Redis raises what redis-client raises (`RedisClient::CannotConnectError`,
    # `RedisClient::ReadTimeoutError`, `RedisClient::CommandError` and its kind). In a plain thread a call waits with the GVL
    # released; under a Fiber scheduler only its fiber waits.
    #
    # @!parse
    #   # Sorted set in Redis: registry id, scored by its last heartbeat in ms since the epoch.
    #   INFLIGHT_INDEX_KEY = "sidekiq:patient_http:inflight_index"
    #   # Hash in Redis: registry id to the Sidekiq job as JSON.
    #   INFLIGHT_JOBS_KEY = "sidekiq:patient_http:inflight_jobs"
    #   # Set in Redis: the process ids to ask about.
    #   PROCESS_SET_KEY = "sidekiq:patient_http:processes"
    #   # String in Redis: process id of the one that holds the GC lock.
    #   GC_LOCK_KEY = "sidekiq:patient_http:gc_lock"
    #   # String in Redis: when the last sweep was recorded, in ms since the epoch.
    #   GC_LAST_RUN_KEY = "sidekiq:patient_http:gc_last_run"
    #   # Lua: removes one entry if its heartbeat is strictly older than a threshold. KEYS: index, jobs; ARGV: registry id,
    #   # threshold in ms since the epoch. Returns `{0, nil}` or `{1, payload}`. For callers of their own: this class leases,
    #   # pushes and removes in that order, so that nothing is lost in between.
    #   REMOVE_IF_ORPHANED_SCRIPT = "..."
    class TaskMonitor
      class << self
        # @!method inflight_count
        #   @return [Integer] how many requests are registered, by all processes
        #   @raise [RedisClient::Error]

        # @!method inflight_counts_by_process
        #   The load of each live process. Members of the process set that are no longer alive leave it on the way.
        #   @return [Hash{String => Hash{Symbol => Integer}}] `"host:pid"` to `{inflight:, max_capacity:}`; two processes of the
        #     same host and pid are summed; empty when none is alive
        #   @raise [RedisClient::Error]

        # @!method total_max_connections
        #   @return [Integer] the sum of the capacities of all live processes
        #   @raise [RedisClient::Error]

        # @!method registered_process_ids
        #   @return [Array<String>] the members of the process set, alive or not
        #   @raise [RedisClient::Error]

        # Deletes the registry: all keys of it, those of this gem's own and every capacity key included. For test suites.
        #
        # @return [nil]
        # @raise [RuntimeError] outside a test environment (see {PatientHttpMonitor.testing?})
        # @raise [RedisClient::Error]
        def clear_all!
          raise "clear_all! is only allowed in test environment" unless ::PatientHttpMonitor.testing?

          clear_registry
        end

        private :clear_registry
      end

      # @!method initialize(config)
      #   A monitor with a process id of its own: host name (`:` and `/` turned to `-`), pid, 16 random hex digits. Forked
      #   children have one of their own.
      #   @param config [#max_connections, #heartbeat_interval, #orphan_threshold] the capacity, and two times in s of any type
      #     with `to_f`; read at each call

      # @!method config
      #   @return [Object] what it was made with

      # @!method full_task_id(id)
      #   @param id [String] a task's id
      #   @return [String] the registry id: `"PROCESS_ID/ID"`

      # @!method register(task)
      #   Enters a request in one atomic step: index entry, job, TTL of both keys. In a process that has pinged it pings too when
      #   the last ping is older than heartbeat_interval, so that a process that works never looks dead.
      #   @param task [#id, #task_handler]
      #   @return [nil]
      #   @raise [NoMethodError] for a task without `id` or `task_handler`; nothing is written
      #   @raise [JSON::GeneratorError] for a job that JSON cannot express; nothing is written
      #   @raise [ArgumentError, TypeError] when `config` answers something that is no number of seconds; nothing is written
      #   @raise [RedisClient::Error]

      # @!method unregister(task)
      #   Takes a request out in one atomic step. One that is not registered is no error.
      #   @param task [#id]
      #   @return [nil]
      #   @raise [RedisClient::Error]

      # @!method update_heartbeats(ids)
      #   Shows that requests of this process are alive: refreshes those that are registered, and the TTL of the registry. Never
      #   adds one. An empty Array costs no round trip.
      #   @param ids [Array<String>, Enumerable<String>] task ids
      #   @return [nil]
      #   @raise [TypeError] for anything else, a Hash included
      #   @raise [RedisClient::Error]

      # @!method registered?(task)
      #   @param task [#id]
      #   @return [Boolean]
      #   @raise [RedisClient::Error]

      # @!method heartbeat_timestamp_for(task)
      #   @param task [#id]
      #   @return [Integer, nil] the last heartbeat in ms since the epoch, by the Redis server's clock; nil when not registered
      #   @raise [RedisClient::Error]

      # @!method registered_task_ids
      #   @return [Array<String>] the registry ids of this process, oldest heartbeat first
      #   @raise [RedisClient::Error]

      # @!method ping_process
      #   Shows that this process lives, in one atomic step: member of the process set, capacity with a TTL of
      #   2 x heartbeat_interval.
      #   @return [nil]
      #   @raise [ArgumentError] when max_connections is no whole number; nothing is written
      #   @raise [RedisClient::Error]

      # @!method remove_process
      #   Takes this process out, in one atomic step.
      #   @return [nil]
      #   @raise [RedisClient::Error]

      # @!method acquire_gc_lock
      #   Takes the lock that one collector at a time holds, for the larger of 2 x heartbeat_interval and 120 s. A lock whose holder
      #   is dead is taken over.
      #   @return [Boolean] false also when this monitor holds it already
      #   @raise [RedisClient::Error]

      # @!method release_gc_lock
      #   @return [Boolean] whether it was this monitor's, and is deleted
      #   @raise [RedisClient::Error]

      # @!method gc_needed?
      #   @return [Boolean] whether heartbeat_interval has passed since the last recorded run, or none is recorded
      #   @raise [RedisClient::Error]

      # @!method record_gc_run
      #   Records that a sweep has ended now, for 1.5 x heartbeat_interval.
      #   @return [nil]
      #   @raise [RedisClient::Error]

      # Gives every orphan's job back to Sidekiq by `Sidekiq::Client.push`, the Hash exactly as it was registered: at least once,
      # whatever dies or fails meanwhile. A job that was recovered too often goes to Sidekiq's dead set instead (see
      # {PatientHttpMonitor::Settings#recovery_limit}).
      #
      # @param orphan_threshold_seconds [#to_f] how old a heartbeat must be, in s; 0 or less takes everything before now
      # @param logger [#info, #error, nil] gets a line for each job, and nothing else
      # @return [Integer] how many jobs were handed to Sidekiq
      # @raise [ArgumentError, TypeError] for a threshold that is NaN, infinite, or no number at all
      # @raise [RedisClient::Error] when Redis fails at the start; later it ends the sweep, with what it did so far
      def cleanup_orphaned_requests(orphan_threshold_seconds, logger)
        ::PatientHttpMonitor.send(:recover, self, orphan_threshold_seconds, logger)
      end

      # A copy would be a second monitor with the same process id.
      #
      # @raise [TypeError] always
      def initialize_copy(_other)
        raise TypeError, "a #{self.class} cannot be copied: make a new one with its config"
      end
    end
  end
end
