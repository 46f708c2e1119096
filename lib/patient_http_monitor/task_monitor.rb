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
    #   # Its SHA1, for EVALSHA.
    #   REMOVE_IF_ORPHANED_SHA = "..."
    #   # Lua: deletes the GC lock if a process holds it. KEYS: lock; ARGV: process id. Returns 1 or 0. For callers of their own.
    #   RELEASE_LOCK_SCRIPT = "..."
    #   # Its SHA1, for EVALSHA.
    #   RELEASE_LOCK_SHA = "..."
    #   # Hash in Redis: registry id to what people may see of the request, as JSON ("url", "method", "processor").
    #   INFLIGHT_DETAILS_KEY = "sidekiq:patient_http:inflight_details"
    #   # Sorted set in Redis: registry id, scored by when it was registered, in ms since the epoch.
    #   INFLIGHT_DETAILS_INDEX_KEY = "sidekiq:patient_http:inflight_details_index"
    #   # How many orphans a sweep leases at once, at most.
    #   ORPHAN_BATCH_SIZE = 100
    class TaskMonitor
      # How many characters of a URL the details of a request hold, at most.
      MAX_DISPLAY_URL_LENGTH = 500

      class << self
        # @!method inflight_count
        #   @return [Integer] how many requests are registered, by all processes
        #   @raise [RedisClient::Error]

        # The load of each live process. Members of the process set that are no longer alive leave it on the way.
        #
        # @return [Hash{String => Hash{Symbol => Integer, Hash}}] `"host:pid"` to `{inflight:, max_capacity:}`; two processes of the
        #   same host and pid are summed; empty when none is alive. With patient_http-sidekiq 1.4 or later each also has
        #   `processors:`, as {inflight_counts_by_processor} tells them, empty where the process told none.
        # @raise [RedisClient::Error]
        def inflight_counts_by_process
          internal(:Install).processors? ? loads_with_processors : loads(false)
        end

        # The load of each processor, by name, summed over the live processes.
        #
        # @param processes [Hash, nil] what {inflight_counts_by_process} answered, to ask Redis no second time; entries without
        #   `processors:` have none
        # @return [Hash{String => Hash{Symbol => Integer}}] name to `{inflight:, max_capacity:}`, sorted by name
        # @raise [RedisClient::Error]
        def inflight_counts_by_processor(processes = nil)
          loads = (processes || loads_with_processors).each_value.flat_map { |load| (load[:processors] || {}).to_a }
          names = loads.group_by { |name, _| name.to_s }.sort
          names.to_h { |name, each| [name, sum_of(each.map(&:last))] }
        end

        # What there is to see of the requests in flight, of those processes whose config answers true to `inflight_details?`.
        #
        # @param limit [Integer] how many at most
        # @return [Array<Hash{Symbol => Object}>] oldest first: `request_id:` (the task's id), `process_id:` (`"host:pid"`), `url:`,
        #   `http_method:` and `processor:` (Strings or nil), `age:` (Float, in s, to one decimal). Records that cannot be read are
        #   left out.
        # @raise [ArgumentError] for a limit that is no whole number, or negative
        # @raise [RedisClient::Error]
        def inflight_details(limit: 50)
          raise ArgumentError, "limit: must be a whole number of at least 0, got #{limit.inspect}" unless limit.is_a?(Integer) && limit >= 0

          internal(:InflightDetails).oldest(limit) { |offset, count| details_page(offset, count) }
        end

        # What may be shown of a URL. Where `config.inflight_url_sanitizer` is set, that is called for the details instead.
        #
        # @param url [#to_s]
        # @return [String] without user, password, query and fragment. Where a password may hide elsewhere (what is no URL by the book,
        #   or has an "@" in its path behind a user or a port), words that say so. Never raises.
        def sanitize_url(url)
          internal(:InflightDetails).sanitize(url)
        end

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

        private :clear_registry, :loads, :details_page

        private

        def loads_with_processors
          loads(true).each_value { |load| load[:processors] = internal(:ProcessLoad).merge(load[:processors]) }
        end

        # What this gem keeps to itself.
        def internal(name)
          ::PatientHttpMonitor.const_get(name)
        end

        def sum_of(loads)
          %i[inflight max_capacity].to_h { |key| [key, loads.sum { |load| load[key] || 0 }] }
        end
      end

      # A monitor with a process id of its own: host name (`:` and `/` turned to `-`), pid, 16 random hex digits. Forked children
      # have one of their own.
      #
      # @param config [#max_connections, #heartbeat_interval, #orphan_threshold] the capacity, and two times in s of any type with
      #   `to_f`; read at each call. Where it answers true to `inflight_details?`, {#register} writes what {.inflight_details} tells.
      # @param max_connections [#call, nil] answers the capacity at each ping, in place of `config.max_connections`
      # @param processors [#call, nil] answers at each ping a Hash, name to `{inflight:, max_capacity:}`, which is published. Its
      #   capacities, summed, are the process's, unless `max_connections:` is given. If it fails, the process pings without.
      # @raise [ArgumentError] for what does not answer `call`
      def initialize(config, max_connections: nil, processors: nil)
        set_up_natively(config, ::PatientHttpMonitor.const_get(:ProcessLoad).of(config, max_connections, processors))
      end

      # @!method config
      #   @return [Object] what it was made with

      # @!method full_task_id(id)
      #   @param id [String] a task's id
      #   @return [String] the registry id: `"PROCESS_ID/ID"`

      # Enters a request in one atomic step: index entry, job, TTL of both keys, and, where `config.inflight_details?`, what people may
      # see of it. In a process that has pinged it pings too when the last ping is older than heartbeat_interval, so that a process
      # that works never looks dead.
      #
      # @param task [#id, #task_handler] and, for the details, `request` with `url` and `http_method`; without them the request is
      #   registered all the same, and `config.logger` gets a warning
      # @param processor_name [String, Symbol, nil] the name of the one that carries the request out, for the details
      # @return [nil]
      # @raise [NoMethodError] for a task without `id` or `task_handler`; nothing is written
      # @raise [JSON::GeneratorError] for a job that JSON cannot express; nothing is written
      # @raise [ArgumentError, TypeError] when `config` answers something that is no number of seconds; nothing is written
      # @raise [RedisClient::Error]
      def register(task, processor_name: nil)
        register_natively(task, processor_name)
      end

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
        ::PatientHttpMonitor.const_get(:Recovery).new(self, orphan_threshold_seconds, logger).run
      end

      # A copy would be a second monitor with the same process id.
      #
      # @raise [TypeError] always
      def initialize_copy(_other)
        raise TypeError, "a #{self.class} cannot be copied: make a new one with its config"
      end

      private

      def marshal_dump
        raise TypeError, "a #{self.class} cannot be dumped: make a new one with its config"
      end
    end
  end
end
