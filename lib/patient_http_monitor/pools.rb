# frozen_string_literal: true

module PatientHttpMonitor
  # One pool of native connections for each pool of Sidekiq's, by identity: settings that change make Sidekiq a new pool, and
  # `Sidekiq::Client.via` and capsules bring their own.
  #
  # @api private
  module Pools
    # Sidekiq's pool to ours, neither kept alive by it.
    @by_sidekiq_pool = ObjectSpace::WeakMap.new
    # Ours, kept alive for as long as the pool it belongs to.
    @kept = []
    @mutex = Mutex.new

    class << self
      # @param sidekiq_pool [ConnectionPool]
      # @return [Pool] always the same one for the same pool
      def for(sidekiq_pool)
        @by_sidekiq_pool[sidekiq_pool] || add(sidekiq_pool)
      end

      private

      def add(sidekiq_pool)
        # May wait for a client of that pool, so not under the mutex.
        pool = Pool.new(Connector.new(sidekiq_pool))
        @mutex.synchronize do
          known = @by_sidekiq_pool[sidekiq_pool]
          return known if known

          alive = @by_sidekiq_pool.values
          @kept.select! { |kept| alive.any? { |other| other.equal?(kept) } }
          @kept << pool
          @by_sidekiq_pool[sidekiq_pool] = pool
        end
      end
    end
  end
  private_constant :Pools
end
