# frozen_string_literal: true

require "support/tasks"

# Where the monitor and Sidekiq's own connection meet: in this thread, at this moment.
module Meeting
  include Tasks

  # Registers a task, and lets Sidekiq's own connection look for it.
  #
  # @param monitor [PatientHttp::Sidekiq::TaskMonitor]
  # @return [Array(Integer, Integer), nil] port and db of the server where both are; nil when they are not at the same one
  def meet(monitor)
    task = task()
    monitor.register(task)
    client, found = Sidekiq.redis do |redis|
      [redis.call("CLIENT", "INFO"), redis.call("ZSCORE", "sidekiq:patient_http:inflight_index", monitor.full_task_id(task.id))]
    end
    [Integer(client[/ laddr=\S+:(\d+)/, 1]), Integer(client[/ db=(\d+)/, 1])] if found
  ensure
    monitor.unregister(task)
  end
end
