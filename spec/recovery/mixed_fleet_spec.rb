# frozen_string_literal: true

require "spec_helper"
require_relative "../support/plain_ruby_monitor"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "In a fleet that is half-way through a deploy" do
  let(:native) { monitor }
  let(:plain) { PlainRubyMonitor.new(config) }

  def stale_task_of(process)
    process.register(request = task)
    age(process.full_task_id(request.id))
    request
  end

  it "a native collector recovers what an older version registered" do
    request = stale_task_of(plain)
    expect(native.cleanup_orphaned_requests(300, nil)).to eq(1)
    expect(queued.first).to include(request.task_handler.sidekiq_job)
    expect(plain.registered?(request)).to be(false)
  end

  it "an older collector recovers what a native one registered" do
    request = stale_task_of(native)
    expect(plain.cleanup_orphaned_requests(300, nil)).to eq(1)
    expect(queued.first).to include(request.task_handler.sidekiq_job)
    expect(native.registered?(request)).to be(false)
  end

  it "each leaves the other's tasks alone while it lives" do
    [native, plain].each(&:ping_process)
    requests = [native, plain].map { |process| stale_task_of(process) }
    expect([native, plain].map { |collector| collector.cleanup_orphaned_requests(300, nil) }).to eq([0, 0])
    expect([native.registered?(requests.first), plain.registered?(requests.last)]).to eq([true, true])
  end

  it "an older collector leaves alone what a native one has leased" do
    leave_orphans(*Array.new(10) { |number| task(args: [number]) })
    taken = []
    re_enqueued = on_push(->(_) { taken << PlainRubyMonitor.new(config).cleanup_orphaned_requests(300, nil) }) do
      native.cleanup_orphaned_requests(300, nil)
    end
    expect([re_enqueued, taken.sum]).to eq([10, 0])
    expect(queued.map { |job| job["args"].first }).to match_array(0...10)
  end

  it "each counts the other's load" do
    native.ping_process
    plain.ping_process
    native.register(task)
    2.times { plain.register(task) }
    counts = {"#{process_id(native).rpartition(":").first}" => {inflight: 3, max_capacity: 20}}
    classes = [native.class, plain.class]
    expect(classes.map(&:inflight_counts_by_process)).to eq([counts, counts])
    expect(classes.map(&:total_max_connections)).to eq([20, 20])
    expect(classes.map(&:inflight_count)).to eq([3, 3])
  end

  it "there is one GC lock" do
    expect([native, plain, native, plain].map(&:acquire_gc_lock)).to eq([true, false, false, false])
    native.release_gc_lock
    expect([plain, native].map(&:acquire_gc_lock)).to eq([true, false])
  end

  it "there is one record of the last sweep" do
    native.record_gc_run
    after_native = [native, plain].map(&:gc_needed?)
    REDIS.call("DEL", Registry::GC_LAST_RUN)
    plain.record_gc_run
    expect([after_native, [native, plain].map(&:gc_needed?)]).to eq([[false, false], [false, false]])
  end
end
