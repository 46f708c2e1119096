# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#acquire_gc_lock" do
  let(:one) { monitor }
  let(:another) { monitor }

  it "takes a lock that nobody holds, and writes whose it is" do
    expect(one.acquire_gc_lock).to be(true)
    expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(one))
  end

  it "is false for one who holds it already" do
    one.acquire_gc_lock
    expect(one.acquire_gc_lock).to be(false)
    expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(one))
  end

  it "is false while another holds it, who keeps it for as long as before" do
    one.acquire_gc_lock
    REDIS.call("EXPIRE", Registry::GC_LOCK, 50)
    expect(another.acquire_gc_lock).to be(false)
    expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(one))
    expect(ttl(Registry::GC_LOCK)).to eq(50)
  end

  it "is true for one of many" do
    expect(Array.new(5) { monitor }.map(&:acquire_gc_lock).count(true)).to eq(1)
  end

  it "takes a lock that has run out" do
    one.acquire_gc_lock
    REDIS.call("DEL", Registry::GC_LOCK)
    expect(another.acquire_gc_lock).to be(true)
  end

  {
    60 => 120, 10 => 120, 0.3 => 120, 60.25 => 121, 90.5 => 181, Rational(181, 2) => 181, Registry::Duration.new(90.25) => 181
  }.each do |interval, expected|
    it "holds it for #{expected} s with a heartbeat_interval of #{interval.inspect}" do
      monitor(heartbeat_interval: interval).acquire_gc_lock
      expect(ttl(Registry::GC_LOCK)).to eq(expected)
    end
  end

  it "raises ArgumentError for a heartbeat_interval that is NaN, and writes nothing" do
    expect { monitor(heartbeat_interval: Float::NAN).acquire_gc_lock }.to raise_error(ArgumentError)
    expect(keys).to be_empty
  end

  it "takes over from a member of the process set that has no capacity key", :gc_stress do
    one.ping_process
    one.acquire_gc_lock
    REDIS.call("EXPIRE", Registry::GC_LOCK, 50)
    expire_capacity(one)
    expect(another.acquire_gc_lock).to be(true)
    expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(another))
    expect(ttl(Registry::GC_LOCK)).to eq(120)
  end

  it "looks whether the holder is dead, and takes over, in one script" do
    one.ping_process
    one.acquire_gc_lock
    expire_capacity(one)
    last_script = redis_commands { another.acquire_gc_lock }.reverse.take_while { |source, _| source == "lua" }
    expect(last_script.map(&:last)).to include("GET", "SISMEMBER", "EXISTS", "SET")
  end

  it "does not take over from a holder that lives" do
    one.ping_process
    one.acquire_gc_lock
    expect(another.acquire_gc_lock).to be(false)
  end

  it "does not take over from a holder that is no member of the process set" do
    one.acquire_gc_lock
    expect(another.acquire_gc_lock).to be(false)
  end
end

RSpec.describe "TaskMonitor#release_gc_lock" do
  let(:one) { monitor }
  let(:another) { monitor }

  it "gives back its own lock", :gc_stress do
    one.acquire_gc_lock
    expect(one.release_gc_lock).to be(true)
    expect(keys).to be_empty
  end

  it "is false when nobody holds it" do
    expect(one.release_gc_lock).to be(false)
  end

  it "is false the second time" do
    one.acquire_gc_lock
    one.release_gc_lock
    expect(one.release_gc_lock).to be(false)
  end

  it "leaves another's lock alone" do
    one.acquire_gc_lock
    expect(another.release_gc_lock).to be(false)
    expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(one))
  end

  it "leaves a lock alone that another took after its own had run out" do
    one.acquire_gc_lock
    REDIS.call("DEL", Registry::GC_LOCK)
    another.acquire_gc_lock
    expect(one.release_gc_lock).to be(false)
    expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(another))
  end

  it "lets the next one take it" do
    one.acquire_gc_lock
    one.release_gc_lock
    expect([another.acquire_gc_lock, one.acquire_gc_lock]).to eq([true, false])
  end

  it "looks and deletes in one script" do
    one.acquire_gc_lock
    expect(one_step?(redis_commands { one.release_gc_lock }, "GET", "DEL")).to be(true)
  end
end
