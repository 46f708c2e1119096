# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#gc_needed?" do
  let(:one) { monitor(heartbeat_interval: 60) }

  it "is true when no run is recorded", :gc_stress do
    expect(one.gc_needed?).to be(true)
  end

  it "is false right after a run, for every process" do
    one.record_gc_run
    expect([one, monitor].map(&:gc_needed?)).to eq([false, false])
  end

  it "is true once heartbeat_interval has passed since the last run" do
    REDIS.call("SET", Registry::GC_LAST_RUN, server_ms - 60_001)
    expect(one.gc_needed?).to be(true)
  end

  it "is false until then" do
    REDIS.call("SET", Registry::GC_LAST_RUN, server_ms - 55_000)
    expect(one.gc_needed?).to be(false)
  end

  [9.9, Rational(99, 10), Registry::Duration.new(9.9)].each do |interval|
    it "knows a heartbeat_interval of #{interval.inspect}" do
      REDIS.call("SET", Registry::GC_LAST_RUN, server_ms - 9_901)
      due = monitor(heartbeat_interval: interval).gc_needed?
      REDIS.call("SET", Registry::GC_LAST_RUN, server_ms - 9_001)
      expect([due, monitor(heartbeat_interval: interval).gc_needed?]).to eq([true, false])
    end
  end

  it "raises ArgumentError for a heartbeat_interval that is NaN" do
    expect { monitor(heartbeat_interval: Float::NAN).gc_needed? }.to raise_error(ArgumentError)
  end
end

RSpec.describe "TaskMonitor#record_gc_run" do
  it "returns nil" do
    expect(monitor.record_gc_run).to be_nil
  end

  it "records the server's time in whole ms", :gc_stress do
    before = server_ms
    monitor.record_gc_run
    expect(Integer(REDIS.call("GET", Registry::GC_LAST_RUN), 10)).to be_between(before - Registry::CLOCK_ERROR, server_ms + Registry::CLOCK_ERROR)
  end

  it "replaces an earlier record" do
    REDIS.call("SET", Registry::GC_LAST_RUN, 1)
    monitor.record_gc_run
    expect(Integer(REDIS.call("GET", Registry::GC_LAST_RUN))).to be > server_ms - 5_000
  end

  {60 => 90, 61 => 92, 60.1 => 91, 0.3 => 1, Rational(61) => 92, Registry::Duration.new(61.0) => 92}.each do |interval, expected|
    it "keeps the record for #{expected} s with a heartbeat_interval of #{interval.inspect}" do
      monitor(heartbeat_interval: interval).record_gc_run
      expect(ttl(Registry::GC_LAST_RUN)).to eq(expected)
    end
  end

  it "raises ArgumentError for a heartbeat_interval that is NaN, and writes nothing" do
    expect { monitor(heartbeat_interval: Float::NAN).record_gc_run }.to raise_error(ArgumentError)
    expect(keys).to be_empty
  end
end
