# frozen_string_literal: true

# The application of both Sidekiq processes: `sidekiq -r ./examples/demo/app.rb`. It does what patient_http-sidekiq does in a real
# application, in as little code as possible: jobs hand long requests to an async processor and end at once, so that the requests
# are in nobody's queue; the monitor remembers them.

require "sidekiq"
require "patient_http_monitor"
require_relative "ledger"
require_relative "settings"
require_relative "app/async_processor"
require_relative "app/heartbeat"
require_relative "app/slow_request_job"

module Demo
  # What a process of the demo runs beside its jobs.
  module App
    class << self
      # @return [AsyncProcessor]
      attr_reader :processor

      def start
        monitor = PatientHttp::Sidekiq::TaskMonitor.new(MONITOR_CONFIG)
        @processor = AsyncProcessor.new(monitor)
        @heartbeat = Heartbeat.new(monitor, @processor)
        @processor.start
        @heartbeat.start
      end

      # The heartbeat goes on while the last requests end, or they would look orphaned.
      def stop
        @processor.stop
        @heartbeat.stop
      end
    end
  end
end

Sidekiq.configure_server do |config|
  config.server_middleware { |chain| chain.add(Demo::CurrentJob) }
  config.on(:startup) { Demo::App.start }
  config.on(:shutdown) { Demo::App.stop }
end
