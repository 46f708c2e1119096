# frozen_string_literal: true

module Demo
  # Keeps the hash of the running job at hand. The monitor registers this very hash, and a recovery pushes it again, with its jid.
  class CurrentJob
    include Sidekiq::ServerMiddleware

    class << self
      def get
        Thread.current[:demo_current_job]
      end
    end

    def call(_instance, job, _queue)
      Thread.current[:demo_current_job] = job
      yield
    ensure
      Thread.current[:demo_current_job] = nil
    end
  end

  # Asks for a long request and ends, while the request goes on.
  class SlowRequestJob
    include Sidekiq::Job

    # @param seconds [Float] how long the request takes
    def perform(seconds)
      App.processor.call(CurrentJob.get, seconds)
    end
  end
end
