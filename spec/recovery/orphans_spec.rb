# frozen_string_literal: true

require "spec_helper"
require "timeout"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "Who is an orphan" do
  let(:collector) { monitor }

  def sweep(threshold = 300)
    Timeout.timeout(20) { collector.cleanup_orphaned_requests(threshold, nil) }
  end

  it "is a task of a process whose capacity key has run out, though it is still a member of the set" do
    (dead = monitor).ping_process
    dead.register(request = task)
    age(dead.full_task_id(request.id))
    expire_capacity(dead)
    expect(sweep).to eq(1)
    expect(queued.first).to include(request.task_handler.sidekiq_job)
  end

  it "makes its process leave the set" do
    (dead = monitor).ping_process
    dead.register(request = task)
    age(dead.full_task_id(request.id))
    expire_capacity(dead)
    sweep
    expect(REDIS.call("SMEMBERS", Registry::PROCESSES)).to be_empty
  end

  [300, 1, 0.001, 0, -1, -1_000_000].each do |threshold|
    it "is no task of a live process with a threshold of #{threshold}" do
      (live = monitor).ping_process
      ids = Array.new(3) { live.register(request = task) || live.full_task_id(request.id) }
      age(*ids)
      expect(sweep(threshold)).to eq(0)
      expect(entries).to match_array(ids)
      expect(queued).to be_empty
    end
  end

  it "is no task of a process that has a capacity key, though it is no member of the set" do
    (live = monitor).ping_process
    live.register(request = task)
    age(live.full_task_id(request.id))
    REDIS.call("DEL", Registry::PROCESSES)
    expect(sweep(-1)).to eq(0)
    expect(live.registered?(request)).to be(true)
  end

  it "is no task of a process that shows during the sweep that it lives" do
    leave_orphans(*Array.new(100) { task })
    back = monitor
    late = Array.new(10) { back.register(request = task) || back.full_task_id(request.id) }
    age(*late, seconds: 600)
    re_enqueued = on_push(->(_) { back.ping_process }) { sweep }
    expect(re_enqueued).to eq(100)
    expect(entries).to match_array(late)
  end

  it "is no task that ends during the sweep" do
    leave_orphans(*Array.new(100) { task })
    other = monitor
    other.register(request = task("late"))
    age(other.full_task_id("late"), seconds: 600)
    re_enqueued = on_push(->(_) { other.unregister(request) }) { sweep }
    expect(re_enqueued).to eq(100)
    expect(queued.size).to eq(100)
  end

  it "is no task that has a heartbeat during the sweep" do
    leave_orphans(*Array.new(100) { task })
    other = monitor
    other.register(task("late"))
    age(other.full_task_id("late"), seconds: 600)
    re_enqueued = on_push(->(_) { other.update_heartbeats(["late"]) }) { sweep }
    expect(re_enqueued).to eq(100)
    expect(entries).to eq([other.full_task_id("late")])
  end

  it "is found behind any number of stale entries of live processes, and among any number of one age" do
    (live = monitor).ping_process
    kept = Array.new(700) { |number| write_entry(live.full_task_id("kept-#{number}"), payload: "{}", score: 1) }
    jids = Array.new(1_300) do |number|
      write_entry("dead:1:00ff/#{number}", payload: JSON.generate(task(jid: "jid-#{number}").task_handler.sidekiq_job), score: 2)
      "jid-#{number}"
    end
    expect(sweep).to eq(1_300)
    expect(queued.map { |job| job["jid"] }).to match_array(jids)
    expect(entries).to match_array(kept)
  end

  it "is found among entries of one age whose ids mix live and dead processes" do
    (live = monitor).ping_process
    ids = Array.new(600) { |number| ["#{number}:1:00ff/x", live.full_task_id("kept-#{number}")] }
    ids.flatten.each { |id| write_entry(id, payload: JSON.generate(task.task_handler.sidekiq_job), score: 2) }
    expect(sweep).to eq(600)
    expect(entries).to match_array(ids.map(&:last))
  end

  it "is re-enqueued in the order of its last heartbeat, the oldest first" do
    ids = leave_orphans(*%w[c a b].map { |name| task(args: [name]) })
    ids.zip([100, 300, 200]) { |id, seconds| age(id, seconds: 1_000 + seconds) }
    sweep
    expect(queued.map { |job| job["args"] }).to eq([["a"], ["b"], ["c"]])
  end

  it "is recovered whatever its size" do
    requests = Array.new(12) { |number| task(args: [number.to_s * 300_000]) }
    leave_orphans(*requests)
    expect(sweep).to eq(12)
    expect(queued.map { |job| job["args"] }).to match_array(requests.map { |request| request.task_handler.sidekiq_job["args"] })
  end

  [%(quotes " and '), "line\nend", "\u{1F680}", "a/b/c", "", "\xFF\x00".b].each do |id|
    it "is recovered with the task id #{id.inspect}" do
      leave_orphans(task(id))
      expect(sweep).to eq(1)
      expect(entries).to be_empty
    end
  end

  it "is an entry whose registry id names no process" do
    write_entry("odd", payload: JSON.generate(task.task_handler.sidekiq_job))
    expect(sweep).to eq(1)
  end

  it "renews the registry's TTL by looking" do
    (live = monitor).ping_process
    live.register(task)
    [Registry::INDEX, Registry::JOBS].each { |key| REDIS.call("EXPIRE", key, 100) }
    sweep
    expect([ttl(Registry::INDEX), ttl(Registry::JOBS)]).to eq([604_800, 604_800])
  end

  [Float::NAN, Float::INFINITY, nil, Object.new].each do |threshold|
    it "is not asked for with a threshold of #{threshold.class} #{threshold unless threshold.instance_of?(Object)}" do
      ids = leave_orphans(task)
      expect { sweep(threshold) }.to raise_error(StandardError, /orphan_threshold_seconds|number/)
      expect(entries).to eq(ids)
      expect(queued).to be_empty
    end
  end
end
