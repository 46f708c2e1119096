# frozen_string_literal: true

module PatientHttpMonitor
  # What can be set, at boot: `PatientHttpMonitor.settings.recovery_limit = 5`.
  class Settings
    # How often a job may be recovered within {#recovery_window}, unless set.
    DEFAULT_RECOVERY_LIMIT = 3
    # In s (72 hours), unless set.
    DEFAULT_RECOVERY_WINDOW = 259_200

    def initialize
      @recovery_limit = :default
      @recovery_window = DEFAULT_RECOVERY_WINDOW
    end

    # How often a job may be recovered, or refused by Sidekiq, within {#recovery_window}. The next time it goes to Sidekiq's
    # dead set: a job that kills each process it runs in would go round for ever.
    #
    # @return [Integer, nil] nil: no limit, which is the default in a test suite (see {PatientHttpMonitor.testing?})
    def recovery_limit
      return @recovery_limit unless @recovery_limit == :default

      PatientHttpMonitor.testing? ? nil : DEFAULT_RECOVERY_LIMIT
    end

    # @param limit [Integer, nil] at least 1, or nil for no limit
    # @raise [ArgumentError] for anything else
    def recovery_limit=(limit)
      unless limit.nil? || (limit.is_a?(Integer) && limit >= 1)
        raise ArgumentError, "recovery_limit must be a whole number of at least 1, or nil for no limit, got #{limit.inspect}"
      end

      @recovery_limit = limit
    end

    # For how long recoveries of a job are counted, from the first one on, in s.
    #
    # @return [Numeric]
    attr_reader :recovery_window

    # @param seconds [#to_f] more than 0
    # @raise [ArgumentError] for anything else
    def recovery_window=(seconds)
      value = seconds.respond_to?(:to_f) && !seconds.nil? && !seconds.is_a?(String) ? seconds.to_f : Float::NAN
      unless value.finite? && value.positive?
        raise ArgumentError, "recovery_window must be a number of seconds above 0, got #{seconds.inspect}"
      end

      @recovery_window = value
    end
  end
end
