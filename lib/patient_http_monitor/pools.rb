# frozen_string_literal: true

module PatientHttpMonitor
  # One pool of native connections for each pool of Sidekiq's, by identity: settings that change make Sidekiq a new pool, and
  # `Sidekiq::Client.via` and capsules bring their own.
  #
  # @api private
  module Pools
    # Where Sidekiq's pool keeps ours: so the two live and die together, and a map of them all needs neither weak references nor a
    # lock.
    PLACE = :@patient_http_monitor_pool
    # Stands for the pool behind `PatientHttp::Sidekiq.redis { |client| ... }`, of a version that does not name the pool itself.
    Behind = Struct.new(:namespace) do
      def with(&block)
        namespace.redis(&block)
      end
    end
    # What was found behind it: which config was lent while Sidekiq's pool was that one, and when, in s.
    Found = Struct.new(:pool, :config, :sidekiq_pool, :at)
    # For how long that holds, in s: each look takes a client out of both pools.
    HOLDS = 1.0
    private_constant :PLACE, :Behind, :Found, :HOLDS

    class << self
      # The pool that patient_http-sidekiq names for its Redis.
      #
      # @param namespace [Module] that answers `redis_pool`, or `redis` alone
      # @return [ConnectionPool, Behind, nil] nil where it is Sidekiq's own
      def of_namespace(namespace)
        return namespace.redis_pool if namespace.respond_to?(:redis_pool)

        sidekiq_pool = ::Sidekiq.redis_pool
        found = @found
        unless found && found.sidekiq_pool.equal?(sidekiq_pool) && now - found.at < HOLDS
          @found = found = look_behind(namespace, sidekiq_pool, found)
        end
        found.pool
      end

      # @param sidekiq_pool [ConnectionPool]
      # @return [Pool] always the same one for the same pool
      def for(sidekiq_pool)
        sidekiq_pool.instance_variable_get(PLACE) || add(sidekiq_pool)
      end

      private

      # Where it lends Sidekiq's own clients, Sidekiq's pool of the moment is the right one; also where it lends something else than
      # clients of redis-client.
      def look_behind(namespace, sidekiq_pool, last)
        config = namespace.redis { |client| client.config if client.respond_to?(:config) }
        own = config.nil? || config.equal?(sidekiq_pool.with { |client| client.config })
        pool = (last&.pool && config.equal?(last.config)) ? last.pool : Behind.new(namespace) unless own
        Found.new(pool, config, sidekiq_pool, now)
      end

      def now
        Process.clock_gettime(Process::CLOCK_MONOTONIC)
      end

      def add(sidekiq_pool)
        # May wait for a client of that pool, and another thread may be first.
        pool = Pool.new(Connector.new(sidekiq_pool))
        sidekiq_pool.instance_variable_get(PLACE) || sidekiq_pool.instance_variable_set(PLACE, pool)
      end
    end
  end
  private_constant :Pools
end
