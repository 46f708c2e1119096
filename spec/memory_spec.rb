# frozen_string_literal: true

require "spec_helper"
require "support/ruby_process"

RSpec.describe "The memory of a process" do
  include RubyProcess

  # `rake soak:memory` runs a million.
  pairs = ENV["SOAK"] ? 1_000_000 : 50_000

  it "stays as it is over #{pairs} requests that were registered and unregistered" do
    outcome = ruby(<<~RUBY, env: {"REDIS_URL" => REDIS.url}, limit: 600)
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      MONITOR = monitor
      JOB = task(args: ["x" * 200])

      def pairs(count)
        count.times do
          MONITOR.register(JOB)
          MONITOR.unregister(JOB)
        end
        GC.start
      end

      def resident = Integer(File.read("/proc/self/status")[/^VmRSS:\\s+(\\d+)/, 1])

      MONITOR.ping_process
      pairs(20_000)
      before = resident
      pairs(#{pairs})
      print resident - before
    RUBY
    growth = Integer(outcome.output, exception: false) or raise outcome.to_s
    RSpec.configuration.reporter.message("      #{pairs} pairs: RSS grew by #{growth} kB")
    expect(growth).to be < 5_000
  end
end
