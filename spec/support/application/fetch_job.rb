# frozen_string_literal: true

module Application
  # Keeps the Hash of the job that runs: it is what the monitor registers, and what a recovery pushes again.
  class CurrentJob
    include Sidekiq::ServerMiddleware

    def self.get
      Thread.current[:application_current_job]
    end

    def call(_instance, job, _queue)
      Thread.current[:application_current_job] = job
      yield
    ensure
      Thread.current[:application_current_job] = nil
    end
  end

  # Asks for an HTTP request and ends while the request goes on.
  class FetchJob
    include Sidekiq::Job

    # @param path [String]
    def perform(path)
      Application.processor.call(CurrentJob.get, path)
    rescue ClosedQueueError
      # Since this process was told to be quiet. A retry would wait for its time; another process can take the job at once.
      Sidekiq::Client.push(CurrentJob.get)
    end
  end
end
