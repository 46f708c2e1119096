# frozen_string_literal: true

require "async"
require "async/barrier"
require "async/semaphore"
require "support/distance"
require "support/own_server"

# For examples that run in a reactor of the async gem, with a server of their own that is 1 ms away.
RSpec.shared_context "with a reactor" do
  around { |example| Distance.open(server.port) { |url| (@url = url) && example.run } }

  include_context "with a server of its own"

  let(:settings) { {url: @url, timeout: 10, pool_timeout: 10} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  def another_monitor
    PatientHttp::Sidekiq::TaskMonitor.new(config)
  end

  # A task whose calls use the example's server: `Sidekiq::Client.via` is a setting of one fiber.
  #
  # @param parent [#async] a task, a barrier, a semaphore
  # @return [Async::Task]
  def start(parent, &block)
    parent.async { |task| Sidekiq::Client.via(pool) { block.call(task) } }
  end

  # Whether the connections that the pool counts are those that the server has, and all of them idle.
  #
  # @return [Boolean]
  def all_connections_idle?
    total, idle = pool_counts(pool)
    total == idle && eventually { clients_of(server).size == total } && total <= 50
  end
end
