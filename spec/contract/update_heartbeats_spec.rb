# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#update_heartbeats" do
  let(:one) { monitor }

  def register(*ids)
    ids.each { |id| one.register(task(id)) }
    ids.map { |id| one.full_task_id(id) }
  end

  it "returns nil" do
    register("a")
    expect(one.update_heartbeats(["a"])).to be_nil
  end

  it "gives the named tasks the server's time as score", :gc_stress do
    full_ids = register("a", "b")
    age(*full_ids)
    before = server_ms
    one.update_heartbeats(%w[a b])
    expect(full_ids.map { |id| score(id) }).to all(be_between(before - Registry::CLOCK_ERROR, server_ms + Registry::CLOCK_ERROR))
  end

  it "leaves the others as old as they are" do
    named, other = register("a", "b")
    age(named, other)
    one.update_heartbeats(["a"])
    expect(score(other)).to be < server_ms - 3_000_000
    expect(score(named)).to be > server_ms - 5_000
  end

  it "leaves a task of the same id alone that another monitor registered" do
    full_id, = register("a")
    age(full_id)
    monitor.update_heartbeats(["a"])
    expect(score(full_id)).to be < server_ms - 3_000_000
  end

  it "never adds one" do
    register("a")
    one.update_heartbeats(%w[a gone])
    expect(entries).to eq([one.full_task_id("a")])
  end

  it "adds nothing to an empty registry" do
    one.update_heartbeats(["gone"])
    expect(keys).to be_empty
  end

  it "leaves the jobs as they are" do
    full_id, = register("a")
    before = payload(full_id)
    one.update_heartbeats(["a"])
    expect(payload(full_id)).to eq(before)
  end

  it "renews the TTL of both keys" do
    register("a")
    [Registry::INDEX, Registry::JOBS].each { |key| REDIS.call("EXPIRE", key, 100) }
    one.update_heartbeats(["a"])
    expect([ttl(Registry::INDEX), ttl(Registry::JOBS)]).to eq([604_800, 604_800])
  end

  it "gives a TTL by its own config" do
    register("a")
    one.config.orphan_threshold = 300_000.1
    one.update_heartbeats(["a"])
    expect([ttl(Registry::INDEX), ttl(Registry::JOBS)]).to eq([900_001, 900_001])
  end

  it "does nothing for an empty Array, without a round trip" do
    register("a")
    age(one.full_task_id("a"))
    expect(redis_commands { expect(one.update_heartbeats([])).to be_nil }).to be_empty
    expect(score(one.full_task_id("a"))).to be < server_ms - 3_000_000
  end

  it "refreshes 1,203 tasks at once" do
    full_ids = register(*(1..1_203).map { |number| "task-#{number}" })
    age(*full_ids)
    one.update_heartbeats((1..1_203).map { |number| "task-#{number}" })
    expect(REDIS.call("ZCOUNT", Registry::INDEX, server_ms - 5_000, "+inf")).to eq(1_203)
    expect(REDIS.call("ZCARD", Registry::INDEX)).to eq(1_203)
  end

  it "takes ids as string interpolation would" do
    full_ids = register("42", "symbol", "")
    age(*full_ids)
    one.update_heartbeats([42, :symbol, nil])
    expect(full_ids.map { |id| score(id) }).to all(be > server_ms - 5_000)
  end

  it "takes the same id twice" do
    full_id, = register("a")
    age(full_id)
    one.update_heartbeats(%w[a a])
    expect(score(full_id)).to be > server_ms - 5_000
  end

  it "takes the ids of a Set" do
    full_ids = register("a", "b")
    age(*full_ids)
    one.update_heartbeats(Set["a", "b"])
    expect(full_ids.map { |id| score(id) }).to all(be > server_ms - 5_000)
  end

  it "raises TypeError for a Hash, and refreshes nothing", :gc_stress do
    full_id, = register("a")
    age(full_id)
    expect { one.update_heartbeats({"a" => 1}) }.to raise_error(TypeError)
    expect(score(full_id)).to be < server_ms - 3_000_000
  end

  it "says what is wrong with nil" do
    register("a")
    expect { one.update_heartbeats(nil) }.to raise_error(StandardError, /nil/)
  end

  it "raises ArgumentError for an orphan_threshold that is NaN, and writes nothing" do
    full_id, = register("a")
    age(full_id)
    one.config.orphan_threshold = Float::NAN
    expect { one.update_heartbeats(["a"]) }.to raise_error(ArgumentError)
    expect(score(full_id)).to be < server_ms - 3_000_000
  end
end
