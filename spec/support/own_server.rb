# frozen_string_literal: true

require "support/observing"

# For examples that break their server, or count its clients: one of the file's own, empty and without clients at the start of
# each example, and used by Sidekiq for its duration.
RSpec.shared_context "with a server of its own" do
  include Observing

  attr_reader :server

  let(:settings) { {url: server.url, timeout: 3} }
  let(:pool) { Sidekiq::RedisConnection.create(settings) }

  before(:context) { @server = RedisServer.start }
  after(:context) { @server.stop }

  around { |example| Sidekiq::Client.via(pool) { example.run } }

  before do
    server.start unless server.pid
    server.call("FLUSHALL")
    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
  end

  # Lets many calls begin while the server does not answer, so that each has a connection, all of which are idle afterwards.
  #
  # @return [Array] what the calls returned
  def all_at_once(count, &block)
    callers = nil
    server.freeze_for_a_while do
      callers = threads(count, &block)
      eventually { callers.all?(&:stop?) }
    end
    callers.map(&:value)
  end

  # Threads do not inherit the pool that `Sidekiq::Client.via` set.
  #
  # @return [Array<Thread>]
  def threads(count)
    Array.new(count) do |number|
      Thread.new do
        Thread.current.report_on_exception = false
        Sidekiq::Client.via(pool) { yield number }
      end
    end
  end
end
