# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor.inflight_count" do
  subject(:count) { PatientHttp::Sidekiq::TaskMonitor.inflight_count }

  it "is 0 when nothing is registered", :gc_stress do
    expect(count).to be_an(Integer).and eq(0)
  end

  it "counts the tasks of all processes, stale or not" do
    one, another = monitor, monitor
    2.times { one.register(task) }
    another.register(request = task)
    age(another.full_task_id(request.id))
    expect(count).to eq(3)
  end

  it "counts what is in the index" do
    write_entry("other:1:ab/1", payload: nil)
    write_entry("other:1:ab/2", payload: "{}", score: nil)
    expect(count).to eq(1)
  end
end

RSpec.describe "TaskMonitor.inflight_counts_by_process" do
  subject(:counts) { PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process }

  def ping_as(process_id, capacity)
    REDIS.call("SADD", Registry::PROCESSES, process_id)
    REDIS.call("SET", "#{Registry::PROCESSES}:#{process_id}:max_connections", capacity, "EX", 60)
  end

  def register_as(process_id, count)
    count.times { |number| write_entry("#{process_id}/#{number}", payload: "{}") }
  end

  it "is an empty Hash when no process lives" do
    monitor.register(task)
    expect(counts).to eq({})
  end

  it "has tasks in flight and capacity by host and pid", :gc_stress do
    one = monitor(max_connections: 25)
    one.ping_process
    3.times { one.register(task) }
    expect(counts).to eq({process_id(one).rpartition(":").first => {inflight: 3, max_capacity: 25}})
  end

  it "has a process without a task in flight" do
    ping_as("web:1:00ff", 10)
    expect(counts).to eq({"web:1" => {inflight: 0, max_capacity: 10}})
  end

  it "keeps processes apart" do
    ping_as("web:1:00ff", 10)
    ping_as("web:11:00ff", 20)
    register_as("web:1:00ff", 1)
    register_as("web:11:00ff", 2)
    expect(counts).to eq({"web:1" => {inflight: 1, max_capacity: 10}, "web:11" => {inflight: 2, max_capacity: 20}})
  end

  it "sums two processes of one host and pid" do
    ping_as("web:1:00ff", 10)
    ping_as("web:1:11ff", 20)
    register_as("web:1:00ff", 1)
    register_as("web:1:11ff", 2)
    expect(counts).to eq({"web:1" => {inflight: 3, max_capacity: 30}})
  end

  it "leaves out tasks of processes that do not live" do
    ping_as("web:1:00ff", 10)
    register_as("dead:2:00ff", 5)
    expect(counts).to eq({"web:1" => {inflight: 0, max_capacity: 10}})
  end

  it "removes members without a capacity key from the set, and only those" do
    ping_as("web:1:00ff", 10)
    REDIS.call("SADD", Registry::PROCESSES, "dead:2:00ff")
    register_as("dead:2:00ff", 5)
    expect(counts.keys).to eq(["web:1"])
    expect(REDIS.call("SMEMBERS", Registry::PROCESSES)).to eq(["web:1:00ff"])
    expect(REDIS.call("ZCARD", Registry::INDEX)).to eq(5)
  end

  it "finds a member dead and removes it in one script" do
    REDIS.call("SADD", Registry::PROCESSES, "dead:2:00ff")
    commands = redis_commands { PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process }
    expect(commands).to include(%w[lua SREM])
    expect(commands.map(&:last).select { |name| name.start_with?("EVAL") }.size).to be_between(1, 2)
  end

  it "counts the tasks of many processes" do
    1_200.times { |number| ping_as("web-#{number}:1:00ff", 2) }
    2_400.times.each_slice(600) do |numbers|
      REDIS.call("ZADD", Registry::INDEX, *numbers.flat_map { |number| [number, "web-#{number % 1_200}:1:00ff/#{number}"] })
    end
    expect(counts.size).to eq(1_200)
    expect(counts.values).to all(eq({inflight: 2, max_capacity: 2}))
  end
end

RSpec.describe "TaskMonitor.total_max_connections" do
  subject(:total) { PatientHttp::Sidekiq::TaskMonitor.total_max_connections }

  it "is 0 when no process lives" do
    expect(total).to be_an(Integer).and eq(0)
  end

  it "sums the capacities of all processes", :gc_stress do
    [10, 25, 256].each { |capacity| monitor(max_connections: capacity).ping_process }
    expect(total).to eq(291)
  end

  it "leaves out a process whose capacity key has run out" do
    monitor(max_connections: 10).ping_process
    (dead = monitor(max_connections: 25)).ping_process
    expire_capacity(dead)
    expect(total).to eq(10)
  end
end

RSpec.describe "TaskMonitor.registered_process_ids" do
  subject(:ids) { PatientHttp::Sidekiq::TaskMonitor.registered_process_ids }

  it "is an empty Array when no process has pinged" do
    monitor.register(task)
    expect(ids).to eq([])
  end

  it "has the members of the process set", :gc_stress do
    monitors = Array.new(3) { monitor.tap(&:ping_process) }
    expect(ids).to match_array(monitors.map { |one| process_id(one) })
  end

  it "has a member whose capacity key has run out as well" do
    (dead = monitor).ping_process
    expire_capacity(dead)
    expect(ids).to eq([process_id(dead)])
  end
end
