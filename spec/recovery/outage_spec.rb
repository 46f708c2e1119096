# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

# The capacity keys run out while Redis is away, and then everyone looks dead.
RSpec.describe "After an outage of Redis that outlasted the capacity keys" do
  # A capacity TTL of 1 s.
  let(:collector) { monitor(heartbeat_interval: 0.5) }
  let(:peer) { monitor(heartbeat_interval: 0.5) }
  let(:capacity_ttl) { 1.0 }

  def stale_task_of(process)
    process.register(request = task)
    process.full_task_id(request.id).tap { |id| age(id) }
  end

  def redis_is_back
    [collector, peer].each { |process| expire_capacity(process) }
  end

  def sweep
    collector.cleanup_orphaned_requests(300, nil)
  end

  before do
    [collector, peer].each(&:ping_process)
    stale_task_of(peer)
    redis_is_back
  end

  it "an instance that finds its own key gone takes no orphans" do
    expect([sweep, queued]).to eq([0, []])
    expect(entries.size).to eq(1)
  end

  it "it takes none after its next ping either, but those of the dead once one capacity TTL is over" do
    mine = entries
    leave_orphans(task)
    sweep
    [collector, peer].each(&:ping_process)
    right_after = sweep
    before_the_end = []
    6.times do |number|
      sleep capacity_ttl / 5
      [collector, peer].each(&:ping_process)
      before_the_end << sweep if number < 2
    end
    expect([right_after, *before_the_end, sweep]).to eq([0, 0, 0, 1])
    expect(entries).to eq(mine)
  end

  it "it takes none when its next ping comes before its next sweep" do
    collector.ping_process
    expect([sweep, queued]).to eq([0, []])
  end

  it "it takes none for as long as it does not ping" do
    sweep
    sleep capacity_ttl + 0.05
    expect([sweep, queued]).to eq([0, []])
  end

  it "it takes none again when its key runs out a second time" do
    collector.ping_process
    sleep capacity_ttl + 0.05
    expect([sweep, queued]).to eq([0, []])
  end

  it "it says so to Sidekiq's logger, and nothing to the one that was passed" do
    logger = RecordingLogger.new
    log = sidekiq_log(:info) { collector.cleanup_orphaned_requests(300, logger) }
    expect(log).to match(/WARN.*\[PatientHttp::Sidekiq\] /)
    expect(logger.lines).to be_empty
  end

  it "an instance that never pinged sweeps at once" do
    expect(monitor.cleanup_orphaned_requests(300, nil)).to eq(1)
  end

  it "an instance whose key is still there sweeps at once" do
    (survivor = monitor).ping_process
    expect(survivor.cleanup_orphaned_requests(300, nil)).to eq(1)
  end

  it "an instance that pinged for the first time since sweeps at once" do
    (fresh = monitor).ping_process
    expect(fresh.cleanup_orphaned_requests(300, nil)).to eq(1)
  end

  it "a ping that came with a registration counts as one" do
    quick = monitor(heartbeat_interval: 0.02)
    quick.ping_process
    expire_capacity(quick)
    sleep 0.03
    quick.register(task)
    expect(quick.cleanup_orphaned_requests(300, nil)).to eq(0)
  end

  it "a registry that was cleared by a test suite is no outage" do
    PatientHttp::Sidekiq::TaskMonitor.clear_all!
    leave_orphans(task)
    expect(sweep).to eq(1)
  end
end
