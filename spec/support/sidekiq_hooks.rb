# frozen_string_literal: true

require "logger"
require "sidekiq/api"
require "stringio"

# Takes part in the real Sidekiq: its client middleware, its death handlers, its logger.
module SidekiqHooks
  # Calls a block before each push; the push goes on unless the block answers `:stop`.
  class PushHook
    def initialize(hook)
      @hook = hook
    end

    def call(_job_class, job, _queue, _redis_pool)
      yield unless @hook.call(job) == :stop
    end
  end

  # @param hook [#call] is given each job that is about to be pushed during the block
  def on_push(hook)
    chain = Sidekiq.default_configuration.client_middleware
    chain.add(PushHook, hook)
    yield
  ensure
    chain.remove(PushHook)
  end

  # @return [Array<Array(Hash, Exception)>] what the death handlers were called with during the block
  def deaths
    called = []
    handler = ->(job, error) { called << [job, error] }
    Sidekiq.default_configuration.death_handlers << handler
    yield
    called
  ensure
    Sidekiq.default_configuration.death_handlers.delete(handler)
  end

  # @return [String] what Sidekiq logged during the block
  def sidekiq_log(level)
    output = StringIO.new
    before = Sidekiq.default_configuration.logger
    Sidekiq.default_configuration.logger = Logger.new(output, level: level)
    yield
    output.string
  ensure
    Sidekiq.default_configuration.logger = before
  end

  # @return [Array<Sidekiq::SortedEntry>]
  def dead_set
    Sidekiq::DeadSet.new.to_a
  end
end

RSpec.configure do |config|
  config.include SidekiqHooks

  # Each example begins as in a process that has said nothing yet.
  config.before do
    next unless defined?(PatientHttpMonitor) && PatientHttpMonitor.const_defined?(:Recovery)

    limit = PatientHttpMonitor.const_get(:Recovery).const_get(:LIMIT)
    %i[@last @left_out].each { |name| limit.instance_variable_get(name).clear }
  end
end
