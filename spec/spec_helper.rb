# frozen_string_literal: true

require "json"
require "sidekiq"
require_relative "support/redis_server"

# The suite owns its server: whatever REDIS_URL pointed at before is not touched.
REDIS = RedisServer.start
ENV["REDIS_URL"] = REDIS.url
ENV.delete("REDIS_PROVIDER")
ENV["RACK_ENV"] = "test"

# The contract specs run against any implementation of the class: the plain Ruby one can be the control.
require ENV.fetch("TASK_MONITOR_IMPLEMENTATION", "patient_http_monitor")

Sidekiq.default_configuration.logger.level = Logger::ERROR

require_relative "support/tasks"

RSpec.configure do |config|
  config.disable_monkey_patching!
  # A filter that nothing fits is a mistake, and no success.
  config.fail_if_no_examples = true
  config.order = :random
  Kernel.srand config.seed
  config.warnings = true
  config.raise_errors_for_deprecations!
  config.expect_with(:rspec) { |expectations| expectations.max_formatted_output_length = 2_000 }
  config.mock_with(:rspec) { |mocks| mocks.verify_partial_doubles = true }
  config.example_status_persistence_file_path = ".rspec_status"

  config.include Tasks

  config.before { REDIS.call("FLUSHALL") }
  config.after(:suite) { REDIS.stop }
end
