# frozen_string_literal: true

require_relative "failure"

module Demo
  # Enqueues a fixed number of jobs, little by little: as many as keep both processes well filled and neither full.
  class Feeder
    TOTAL = 800
    # How many jobs may be unfinished at a time.
    UNFINISHED = 160
    # How many are added at a time.
    BATCH = 40

    attr_reader :seed, :enqueued

    def initialize
      @seed = Integer(ENV.fetch("SEED") { rand(100_000).to_s }, exception: false) or
        raise Failure, "SEED must be a whole number."
      @random = Random.new(seed)
      @enqueued = 0
    end

    def feed(finished)
      count = [BATCH, TOTAL - enqueued, UNFINISHED - (enqueued - finished)].min
      return unless count.positive?

      arguments = Array.new(count) { [@random.rand(REQUEST_SECONDS).round(2)] }
      @enqueued += Sidekiq::Client.push_bulk("class" => "Demo::SlowRequestJob", "args" => arguments).compact.size
    end
  end
end
