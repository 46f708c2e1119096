# frozen_string_literal: true

require "spec_helper"
require "support/fiber_scheduler"
require "support/own_server"
require "support/registry"

# What no example of the contract does; it is meant for the run under GC.stress (support/gc_stress).
RSpec.describe "The native methods" do
  include_context "with a server of its own"

  let(:settings) { {url: server.url, timeout: 60} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  it "serve fibers that wait at the same time, one of which is interrupted", gc_stress: 1 do
    monitor.register(task("known"))
    answers = []
    error = nil
    server.freeze_for_a_while do
      FiberScheduler.run do
        Fiber.schedule { Sidekiq::Client.via(pool) { answers << monitor.registered?(task("known")) } }
        waiting = Fiber.schedule { Sidekiq::Client.via(pool) { error = raised { monitor.registered?(task("unknown")) } } }
        sleep 0.05
        waiting.raise(KeyError, "enough")
        Process.kill(:CONT, server.pid)
      end
    end
    expect(error).to be_a(KeyError)
    expect(answers).to eq([true])
  end

  it "serve threads, one of which is killed", gc_stress: 1 do
    monitor.register(task("known"))
    callers = nil
    server.freeze_for_a_while do
      callers = threads(2) { monitor.registered?(task("known")) }
      eventually(within: 60) { callers.all?(&:stop?) }
      callers.first.kill
      eventually(within: 60) { !callers.first.alive? }
    end
    expect(callers.drop(1).map(&:value)).to eq([true])
  end

  it "renew the leases of a sweep, but for those that another has taken", gc_stress: 1 do
    tasks = Array.new(3) { |number| task(number.to_s) }
    tasks.each { |one| monitor.register(one) }
    monitor.registered_task_ids.each { |id| server.call("ZADD", Registry::INDEX, "XX", 1, id) }
    sweep = PatientHttpMonitor.const_get(:Sweep).begin(PatientHttp::Sidekiq::TaskMonitor.new(config), 300)
    # The first step reads a page, the second leases what is on it.
    sweep.claim
    lease, orphans, = sweep.claim
    ids = orphans.map(&:first)
    expect(ids).to match_array(monitor.registered_task_ids)
    monitor.unregister(tasks.first)
    _, kept = sweep.renew(lease, ids)
    expect(kept).to match_array(monitor.registered_task_ids).and have_attributes(size: 2)
  end
end
