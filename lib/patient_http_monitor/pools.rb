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
    private_constant :PLACE

    class << self
      # @param sidekiq_pool [ConnectionPool]
      # @return [Pool] always the same one for the same pool
      def for(sidekiq_pool)
        sidekiq_pool.instance_variable_get(PLACE) || add(sidekiq_pool)
      end

      private

      def add(sidekiq_pool)
        # May wait for a client of that pool, and another thread may be first.
        pool = Pool.new(Connector.new(sidekiq_pool))
        sidekiq_pool.instance_variable_get(PLACE) || sidekiq_pool.instance_variable_set(PLACE, pool)
      end
    end
  end
  private_constant :Pools
end
