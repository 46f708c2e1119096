# frozen_string_literal: true

# Clocks of processes that are set wrong by libfaketime.
module WrongClocks
  PLACES = %w[/usr/lib/*/faketime /usr/lib/faketime /usr/lib64/faketime /usr/local/lib/faketime].freeze

  class << self
    # @return [String]
    # @raise [RuntimeError] when this machine lacks it
    def library
      PLACES.filter_map { |place| Dir.glob(File.join(place, "libfaketime.so.1")).first }.first ||
        raise("libfaketime.so.1 is missing: run bin/setup (it works on Linux alone)")
    end
  end

  # @param minutes [Integer] how far the wall clock is ahead
  # @param fake_monotonic [Boolean] whether the monotonic clock is changed as well
  # @return [Hash{String => String}] the environment of a process that has this clock
  def wrong_clock(minutes, fake_monotonic:)
    {"LD_PRELOAD" => WrongClocks.library, "FAKETIME" => format("%+dm", minutes), "FAKETIME_NO_CACHE" => "1"}
      .merge(fake_monotonic ? {} : {"FAKETIME_DONT_FAKE_MONOTONIC" => "1"})
  end
end
