# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"
require_relative "../support/wire_proxy"

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

  it "it takes none before one capacity TTL is over, though it leaves and comes back" do
    sweep
    collector.remove_process
    gone = sweep
    collector.ping_process
    expect([gone, sweep, queued]).to eq([0, 0, []])
  end
end

# Redis has seen the ping, and the capacity key is there again; the process that pinged does not know how it was before.
RSpec.describe "After an outage in which the answer to a ping was lost" do
  # A capacity TTL of 1 s.
  let(:collector) { monitor(heartbeat_interval: 0.5) }
  let(:peer) { monitor(heartbeat_interval: 0.5) }
  let(:capacity_ttl) { 1.0 }

  def via(**settings, &block)
    Sidekiq::Client.via(Sidekiq::RedisConnection.create({url: REDIS.url}.merge(settings)), &block)
  end

  before do
    [collector, peer].each(&:ping_process)
    peer.register(request = task)
    age(@entry = peer.full_task_id(request.id))
  end

  def expect_nothing_taken
    expect([collector.cleanup_orphaned_requests(300, nil), queued]).to eq([0, []])
    expect(entries).to include(@entry)
  end

  it "no orphan is taken after the next ping, when Redis stood still" do
    via(timeout: 0.2, reconnect_attempts: 0) do
      collector.ping_process
      REDIS.freeze_for_a_while do
        sleep capacity_ttl + 0.1
        expect { collector.ping_process }.to raise_error(RedisClient::ReadTimeoutError)
      end
      expect(REDIS.call("EXISTS", capacity_key(collector))).to eq(1)
      collector.ping_process
      expect_nothing_taken
    end
  end

  it "no orphan is taken after the next ping, when that was the due one of a registration" do
    via(timeout: 0.2, reconnect_attempts: 0) do
      collector.ping_process
      REDIS.freeze_for_a_while do
        sleep capacity_ttl + 0.1
        expect { collector.register(task) }.to raise_error(RedisClient::ReadTimeoutError)
      end
      expect(REDIS.call("EXISTS", capacity_key(collector))).to eq(1)
      collector.register(task)
      expect_nothing_taken
    end
  end

  {"a ping" => ->(process, _) { process.ping_process }, "a registration" => ->(process, task) { process.register(task) }}
    .each do |kind, call|
      it "no orphan is taken after #{kind} that was repeated by itself, since the wire broke" do
        WireProxy.open(REDIS.port) do |proxy|
          via(url: proxy.url, timeout: 2, reconnect_attempts: 1) do
            collector.ping_process
            sleep capacity_ttl + 0.1
            proxy.cut_next_reply
            call.call(collector, task)
            expect(proxy.connections).to be > 1
            expect_nothing_taken
          end
        end
      end

      it "no orphan is taken after #{kind} that was called again, since the wire broke" do
        WireProxy.open(REDIS.port) do |proxy|
          via(url: proxy.url, timeout: 2, reconnect_attempts: 0) do
            collector.ping_process
            sleep capacity_ttl + 0.1
            proxy.cut_next_reply
            expect { call.call(collector, task) }.to raise_error(RedisClient::ConnectionError)
            call.call(collector, task)
            expect_nothing_taken
          end
        end
      end
    end
end

RSpec.describe "In an outage of Redis in the middle of a sweep" do
  let(:collector) { monitor }
  let(:peer) { monitor }

  def stale_task_of(process)
    process.register(request = task)
    process.full_task_id(request.id).tap { |id| age(id) }
  end

  # The capacity keys run out while the first job is pushed.
  def outage
    happened = false
    lambda do |_|
      [collector, peer].each { |process| expire_capacity(process) } unless happened
      happened = true
    end
  end

  def sweep
    on_push(outage) { collector.cleanup_orphaned_requests(300, nil) }
  end

  before { [collector, peer].each(&:ping_process) }

  it "what the live peers have is left alone, and the count tells what was pushed" do
    kept = stale_task_of(peer)
    leave_orphans(task)
    expect([sweep, queued.size, entries]).to eq([1, 1, [kept]])
  end

  it "what was leased is pushed, and what was not is left alone" do
    leave_orphans(*Array.new(150) { task })
    re_enqueued = sweep
    expect(re_enqueued).to eq(queued.size).and be_between(1, 149)
    expect(entries.size).to eq(150 - re_enqueued)
    expect(entries.map { |id| score(id) }).to all(be < server_ms - 3_000_000)
  end

  it "the sweep ends with a line on Sidekiq's logger" do
    stale_task_of(peer)
    leave_orphans(task)
    expect(sidekiq_log(:info) { sweep }).to match(/WARN.*\[PatientHttp::Sidekiq\] .*proof of life/)
  end

  it "what the live peers have is left alone by the next sweep too" do
    kept = stale_task_of(peer)
    leave_orphans(task)
    sweep
    collector.ping_process
    expect([collector.cleanup_orphaned_requests(300, nil), entries]).to eq([0, [kept]])
  end

  it "what the live peers have is left alone, when Redis stood still so long that the keys ran out" do
    quick, quick_peer = Array.new(2) { monitor(heartbeat_interval: 0.5) }.each(&:ping_process)
    kept = stale_task_of(quick_peer)
    leave_orphans(task)
    standstill = nil
    hook = ->(_) { standstill ||= REDIS.freeze_for_a_while { sleep 1.2 } }
    expect(on_push(hook) { quick.cleanup_orphaned_requests(300, nil) }).to eq(1)
    expect([queued.size, entries]).to eq([1, [kept]])
  end
end
