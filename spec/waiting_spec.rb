# frozen_string_literal: true

require "spec_helper"
require "support/fiber_scheduler"
require "support/own_server"
require "support/scripted_server"

RSpec.describe "callers that wait for a connection" do
  let(:ceiling) { 50 }

  # Each looks again now and then whether the collector has freed one, and must not lose its place by that.
  describe "because others have all there may be" do
    include Observing

    it "are served in the order of coming, however long they have waited" do
      heard = Thread::Queue.new
      first_ones, later_ones = Thread::Queue.new, Thread::Queue.new
      ScriptedServer.open("ZSCORE", "_\r\n") do |server|
        # Answers when it is told to, and each connection for itself.
        server.define_singleton_method(:scripted) do |command|
          name = command.last[%r{/(.*)}, 1]
          heard << name
          (name.start_with?("holder") ? first_ones : later_ones).pop
          "_\r\n"
        end
        pool = Sidekiq::RedisConnection.create(url: server.url, timeout: 60, pool_timeout: 60, reconnect_attempts: 0)
        monitor = monitor()
        call = ->(name) { Thread.new { Sidekiq::Client.via(pool) { monitor.registered?(task(name)) } } }
        callers = Array.new(ceiling) { |number| call.call("holder-#{number}") }
        ceiling.times { heard.pop(timeout: 20) }
        names = Array.new(8) { |number| "waiter-#{number}" }
        # So that they look again at different moments.
        names.each do |name|
          waiter = call.call(name)
          callers << waiter
          eventually { waiter.stop? }
          sleep 0.03
        end
        served = names.map do
          first_ones << true
          heard.pop(timeout: 20).tap { sleep 0.1 }
        end
        expect(served).to eq(names)
      ensure
        [first_ones, later_ones].each(&:close)
        callers&.each(&:join)
      end
    end
  end

  describe "beside a reactor that was killed while its fibers waited, too" do
    include_context "with a server of its own"

    let(:settings) { {url: server.url, timeout: 60, pool_timeout: 60} }
    let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
    # Its fibers are left where they are, and never run again.
    let(:abandoning) { Class.new(FiberScheduler) { def close = nil } }

    # A thread that died is a reason to run the collector, which may free a connection; that this one had none is known then.
    it "run the garbage collector because of it twice at most, and not again and again" do
      monitor.registered?(task)
      server.freeze_for_a_while do
        holders = threads(ceiling) { monitor.registered?(task) }
        eventually { pool_counts(pool).first == ceiling && holders.all?(&:stop?) }
        reactor = threads(1) do
          via, asked = pool, monitor
          Fiber.set_scheduler(abandoning.new)
          5.times { Fiber.schedule { Sidekiq::Client.via(via) { asked.registered?(task) } } }
          Fiber.scheduler.run
        end.first
        eventually { reactor.stop? }
        sleep 0.2
        expect(reactor.kill.join(10)).to be(reactor)
        GC::Profiler.enable
        GC::Profiler.clear
        waiters = threads(3) { monitor.registered?(task) }
        sleep 3.8
        runs = GC::Profiler.raw_data.count { |run| %i[capi method].include?(run.dig(:GC_FLAGS, :gc_by)) }
        expect(waiters).to all(be_alive)
        expect(runs).to be_between(1, 2)
        Process.kill(:CONT, server.pid)
        expect((holders + waiters).map(&:value)).to all(be(false))
      end
    ensure
      GC::Profiler.disable
    end
  end
end
