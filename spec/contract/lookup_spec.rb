# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#registered?" do
  let(:one) { monitor }

  it "is true for a task that is registered, and false before and after", :gc_stress do
    request = task
    before = one.registered?(request)
    one.register(request)
    during = one.registered?(request)
    one.unregister(request)
    expect([before, during, one.registered?(request)]).to eq([false, true, false])
  end

  it "is false for a task of the same id that another monitor registered" do
    monitor.register(request = task)
    expect(one.registered?(request)).to be(false)
  end

  it "is true for a stale task" do
    one.register(request = task)
    age(one.full_task_id(request.id))
    expect(one.registered?(request)).to be(true)
  end
end

RSpec.describe "TaskMonitor#heartbeat_timestamp_for" do
  let(:one) { monitor }

  it "is the score of the index entry, as Integer", :gc_stress do
    one.register(request = task)
    REDIS.call("ZADD", Registry::INDEX, 1_700_000_000_123, one.full_task_id(request.id))
    expect(one.heartbeat_timestamp_for(request)).to be_an(Integer).and eq(1_700_000_000_123)
  end

  it "is an Integer also where another version wrote a fraction" do
    one.register(request = task)
    REDIS.call("ZADD", Registry::INDEX, "1700000000123.75", one.full_task_id(request.id))
    expect(one.heartbeat_timestamp_for(request)).to be_an(Integer).and eq(1_700_000_000_123)
  end

  it "is nil for a task that is not registered" do
    expect(one.heartbeat_timestamp_for(task)).to be_nil
  end

  it "is nil for a task of the same id that another monitor registered" do
    monitor.register(request = task)
    expect(one.heartbeat_timestamp_for(request)).to be_nil
  end
end

RSpec.describe "TaskMonitor#registered_task_ids" do
  let(:one) { monitor }

  it "is an empty Array for a monitor that registered nothing" do
    monitor.register(task)
    expect(one.registered_task_ids).to eq([])
  end

  it "has the registry ids of this process, and of no other", :gc_stress do
    another = monitor
    3.times { |number| one.register(task("mine-#{number}")) }
    3.times { |number| another.register(task("mine-#{number}")) }
    expect(one.registered_task_ids).to match_array((0..2).map { |number| "#{process_id(one)}/mine-#{number}" })
  end

  it "is not led astray by ids that contain the process id" do
    one.register(task("mine"))
    write_entry("x#{process_id(one)}/other", payload: "{}")
    write_entry("#{process_id(one)}0/other", payload: "{}")
    write_entry("other:1:ab/#{process_id(one)}/other", payload: "{}")
    expect(one.registered_task_ids).to eq([one.full_task_id("mine")])
  end

  it "finds all of its own among the many of others" do
    one.register(task("first"))
    2_500.times.each_slice(500) do |numbers|
      REDIS.call("ZADD", Registry::INDEX, *numbers.flat_map { |number| [number, "other:1:ab/#{number}"] })
    end
    mine = Array.new(600) { |number| "mine-#{number}" }
    mine.each { |id| one.register(task(id)) }
    expect(one.registered_task_ids).to match_array(["first", *mine].map { |id| one.full_task_id(id) })
  end
end
