# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "A process that works, though its monitor thread has died," do
  let(:working) { monitor(max_connections: 25, heartbeat_interval: 0.05) }

  def capacity
    REDIS.call("GET", capacity_key(working))
  end

  it "pings by registering once heartbeat_interval has passed since its last ping" do
    working.ping_process
    REDIS.call("DEL", capacity_key(working), Registry::PROCESSES)
    sleep 0.06
    working.register(task)
    expect([capacity, ttl(capacity_key(working))]).to eq(["25", 1])
    expect(REDIS.call("SMEMBERS", Registry::PROCESSES)).to eq([process_id(working)])
  end

  it "pings and registers in one atomic step" do
    working.ping_process
    sleep 0.06
    expect(one_step?(redis_commands { working.register(task) }, "SADD", "SET", "ZADD", "HSET", "EXPIRE")).to be(true)
  end

  it "does not ping again before heartbeat_interval has passed" do
    busy = monitor(heartbeat_interval: 60)
    busy.ping_process
    expect(redis_commands { 3.times { busy.register(task) } }.map(&:last)).not_to include("SADD")
  end

  it "pings once in each interval, however much it registers" do
    working.config.heartbeat_interval = 0.3
    working.ping_process
    sleep 0.31
    expect(redis_commands { 3.times { working.register(task) } }.map(&:last).count("SADD")).to eq(1)
  end

  it "does not begin to ping by registering" do
    working.register(task)
    sleep 0.06
    working.register(task)
    expect(keys).to contain_exactly(Registry::INDEX, Registry::JOBS)
  end

  it "does not come back by registering after it was removed" do
    working.ping_process
    working.remove_process
    sleep 0.06
    working.register(task)
    expect(keys).to contain_exactly(Registry::INDEX, Registry::JOBS)
  end
end

RSpec.describe "A collector in a long sweep" do
  let(:slow) { ->(_) { sleep 0.03 } }

  def leave_many
    leave_orphans(*Array.new(10) { |number| task(args: [number]) })
  end

  it "goes on showing that it lives" do
    collector = monitor(heartbeat_interval: 0.2)
    leave_many
    collector.ping_process
    capacity_ttl = ttl(capacity_key(collector))
    alive = []
    on_push(->(_) { sleep 0.12 and alive << REDIS.call("EXISTS", capacity_key(collector)) }) do
      collector.cleanup_orphaned_requests(300, nil)
    end
    expect(capacity_ttl).to eq(1)
    expect(alive).to eq([1] * 10)
  end

  it "does not begin to show that it lives" do
    leave_many
    on_push(slow) { monitor(heartbeat_interval: 0.02).cleanup_orphaned_requests(300, nil) }
    expect(keys(Registry::PROCESSES)).to be_empty
  end

  it "keeps the GC lock" do
    collector = monitor(heartbeat_interval: 0.1)
    leave_many
    collector.acquire_gc_lock
    REDIS.call("EXPIRE", Registry::GC_LOCK, 20)
    on_push(slow) { collector.cleanup_orphaned_requests(300, nil) }
    expect(ttl(Registry::GC_LOCK)).to be_within(10).of(120)
    expect(collector.release_gc_lock).to be(true)
  end

  it "takes the GC lock neither from another nor when nobody has it" do
    collector = monitor(heartbeat_interval: 0.02)
    leave_many
    on_push(slow) { collector.cleanup_orphaned_requests(300, nil) }
    expect(keys(Registry::GC_LOCK)).to be_empty

    leave_many
    collector.acquire_gc_lock
    REDIS.call("SET", Registry::GC_LOCK, "another", "EX", 50)
    on_push(slow) { collector.cleanup_orphaned_requests(300, nil) }
    expect([REDIS.call("GET", Registry::GC_LOCK), ttl(Registry::GC_LOCK)]).to match(["another", be_within(10).of(50)])
  end

  it "keeps its GC lock though it never pinged and finds a stale task of its own" do
    collector = monitor
    collector.register(request = task)
    age(collector.full_task_id(request.id))
    collector.acquire_gc_lock
    collector.cleanup_orphaned_requests(300, nil)
    expect(collector.release_gc_lock).to be(true)
  end

  it "does not remove a task that has a heartbeat while its job is pushed" do
    other = monitor
    other.register(request = task)
    age(other.full_task_id(request.id))
    on_push(->(_) { sleep 0.005 and other.update_heartbeats([request.id]) }) { monitor.cleanup_orphaned_requests(300, nil) }
    expect(other.registered?(request)).to be(true)
    expect(payload(other.full_task_id(request.id))).not_to be_nil
  end

  it "does not push what has a heartbeat before its lease is renewed" do
    other = monitor
    2.times { |number| other.register(task("task-#{number}", args: [number])) }
    age(other.full_task_id("task-0"), seconds: 20)
    age(other.full_task_id("task-1"), seconds: 10)
    re_enqueued = on_push(->(_) { sleep 0.15 and other.update_heartbeats(["task-1"]) }) do
      monitor.cleanup_orphaned_requests(0.4, nil)
    end
    expect(re_enqueued).to eq(1)
    expect(queued.map { |job| job["args"] }).to eq([[0]])
    expect(entries).to eq([other.full_task_id("task-1")])
  end

  it "renews the leases of what it has not pushed yet" do
    leave_orphans(*Array.new(4) { |number| task(args: [number]) })
    sweeping = true
    rival = Thread.new { monitor.cleanup_orphaned_requests(0.9, nil) while sweeping && sleep(0.02) }
    re_enqueued = on_push(->(_) { sleep 0.35 unless Thread.current == rival }) { monitor.cleanup_orphaned_requests(0.9, nil) }
    sweeping = false
    rival.join
    expect(re_enqueued).to eq(4)
    expect(queued.map { |job| job["args"].first }).to match_array(0...4)
  end
end
