# frozen_string_literal: true

require "json"
require "sidekiq"
require "patient_http_monitor/version"
require "patient_http_monitor/settings"
require "patient_http_monitor/errors"
require "patient_http_monitor/connector"
require "patient_http_monitor/pools"
require "patient_http_monitor/native"
require "patient_http_monitor/stored_job"
require "patient_http_monitor/dead_jobs"
require "patient_http_monitor/line_limit"
require "patient_http_monitor/recovery"
require "patient_http_monitor/inflight_details"
require "patient_http_monitor/process_load"
require "patient_http_monitor/install"

# Requiring this file puts the native {PatientHttp::Sidekiq::TaskMonitor} into place; nothing else is needed.
module PatientHttpMonitor
  class << self
    # The settings of this gem's own. Whatever concerns Redis comes from Sidekiq, and whatever concerns one monitor from the
    # `config` that it is made with.
    #
    # @return [Settings]
    def settings
      @settings ||= Settings.new
    end

    # Whether the application is under test: what `PatientHttp.testing?` says, where there is such a method; otherwise whether
    # RAILS_ENV, RACK_ENV or APP_ENV is "test". While it is, the registry's clock follows a stubbed `Time.now`, the recovery
    # limit is off unless it was set, and the registry may be cleared.
    #
    # @return [Boolean]
    def testing?
      return ::PatientHttp.testing? ? true : false if defined?(::PatientHttp) && ::PatientHttp.respond_to?(:testing?)

      TEST_VARIABLES.any? { |name| ENV[name] == "test" }
    end

    # Whether the native class stands under the name `PatientHttp::Sidekiq::TaskMonitor`. It does not where the environment
    # variable PATIENT_HTTP_MONITOR was "off" when this gem was required, which leaves the Ruby class alone.
    #
    # @return [Boolean]
    def installed?
      Install.installed?(task_monitor_class)
    end
  end

  TEST_VARIABLES = %w[RAILS_ENV RACK_ENV APP_ENV].freeze
  private_constant :TEST_VARIABLES
  private_class_method :task_monitor_class

  Install.call(task_monitor_class) unless Install.off?
end

require "patient_http_monitor/task_monitor" if PatientHttpMonitor.installed?
