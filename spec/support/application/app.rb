# frozen_string_literal: true

# An application as the Ruby gems make one, as small as it can be and still be careful: `sidekiq -r app.rb`. Its jobs hand HTTP
# requests to a processor and end; the requests are in nobody's queue then, and the monitor remembers them. What it is for is to be
# quieted, stopped, killed, and left without Redis, by the specs in spec/application, which count its answers.

require "sidekiq"
require "patient_http_monitor"
require_relative "processor"
require_relative "heartbeat"
require_relative "fetch_job"

# What a process of the application runs beside its jobs.
module Application
  Config = Data.define(:max_connections, :heartbeat_interval, :orphan_threshold)
  # Times (in s) that are far shorter than an application's own, so that an example takes seconds. Not shorter still: on a machine
  # under load a process may stand still for a second, and would look dead.
  CONFIG = Config.new(max_connections: 200, heartbeat_interval: 1, orphan_threshold: 3)

  class << self
    # @return [Processor]
    attr_reader :processor

    def start
      monitor = PatientHttp::Sidekiq::TaskMonitor.new(CONFIG)
      @processor = Processor.new(monitor, Integer(ENV.fetch("ANSWERING_PORT")))
      @heartbeat = Heartbeat.new(monitor, @processor)
      @processor.start
      # It has pinged when this returns: no request is registered by a process that nobody has seen alive.
      @heartbeat.start
      Sidekiq.logger.info("The application has started")
    end

    def quiet
      @processor.close
      Sidekiq.logger.info("The processor takes no more")
    end

    # The heartbeat goes on while the last requests end: without it they would be orphans, and be asked a second time.
    def stop
      ended = @processor.stop
      Sidekiq.logger.info(ended ? "The processor has ended" : "The processor is left with #{@processor.in_flight_ids}")
      @heartbeat.stop
    end
  end
end

Sidekiq.configure_server do |config|
  config.server_middleware { |chain| chain.add(Application::CurrentJob) }
  config.on(:startup) { Application.start }
  config.on(:quiet) { Application.quiet }
  config.on(:shutdown) { Application.stop }
end

# The specs hold the other end: it does not outlive them, however they end.
Thread.new { $stdin.read and exit!(1) }
