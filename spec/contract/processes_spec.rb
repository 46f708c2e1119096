# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#ping_process" do
  let(:one) { monitor(max_connections: 25) }

  it "returns nil" do
    expect(one.ping_process).to be_nil
  end

  it "makes the process a member of the set, and records its capacity", :gc_stress do
    one.ping_process
    expect(REDIS.call("SMEMBERS", Registry::PROCESSES)).to contain_exactly(process_id(one))
    expect(REDIS.call("GET", capacity_key(one))).to eq("25")
    expect(keys).to contain_exactly(Registry::PROCESSES, capacity_key(one))
  end

  it "leaves the set without a TTL" do
    one.ping_process
    expect(REDIS.call("TTL", Registry::PROCESSES)).to eq(-1)
  end

  it "does it in one atomic step" do
    one.ping_process
    expect(one_step?(redis_commands { one.ping_process }, "SADD", "SET")).to be(true)
  end

  it "records a capacity that has changed" do
    one.ping_process
    one.config.max_connections = 50
    one.ping_process
    expect(REDIS.call("GET", capacity_key(one))).to eq("50")
  end

  it "renews the TTL" do
    one.ping_process
    REDIS.call("EXPIRE", capacity_key(one), 5)
    one.ping_process
    expect(ttl(capacity_key(one))).to eq(120)
  end

  {
    60 => 120, 60.0 => 120, 90.25 => 181, 0.3 => 1, 0 => 1, Rational(181, 4) => 91, Registry::Duration.new(45.25) => 91
  }.each do |interval, expected|
    it "gives the capacity a TTL of #{expected} s for a heartbeat_interval of #{interval.inspect}" do
      pinging = monitor(heartbeat_interval: interval)
      pinging.ping_process
      expect(ttl(capacity_key(pinging))).to eq(expected)
    end
  end

  [Float::NAN, Float::INFINITY].each do |interval|
    it "raises ArgumentError for a heartbeat_interval of #{interval}, and writes nothing" do
      expect { monitor(heartbeat_interval: interval).ping_process }.to raise_error(ArgumentError)
      expect(keys).to be_empty
    end
  end
end

RSpec.describe "TaskMonitor#ping_process with max_connections of 10.7" do
  it "raises ArgumentError, and writes nothing" do
    expect { monitor(max_connections: 10.7).ping_process }.to raise_error(ArgumentError, /max_connections.*10\.7/)
    expect(keys).to be_empty
  end
end

RSpec.describe "TaskMonitor#remove_process" do
  let(:one) { monitor }

  it "returns nil, whether the process had pinged or not" do
    not_pinged = one.remove_process
    one.ping_process
    expect([not_pinged, one.remove_process]).to eq([nil, nil])
  end

  it "removes membership and capacity", :gc_stress do
    one.ping_process
    one.remove_process
    expect(keys).to be_empty
  end

  it "does it in one atomic step" do
    one.ping_process
    expect(one_step?(redis_commands { one.remove_process }, "SREM", "DEL")).to be(true)
  end

  it "leaves the other processes alone" do
    one.ping_process
    another = monitor
    another.ping_process
    one.remove_process
    expect(PatientHttp::Sidekiq::TaskMonitor.registered_process_ids).to eq([process_id(another)])
    expect(REDIS.call("EXISTS", capacity_key(another))).to eq(1)
  end

  it "leaves its tasks registered" do
    one.ping_process
    one.register(request = task)
    one.remove_process
    expect(one.registered?(request)).to be(true)
  end

  it "lets the process ping again" do
    one.ping_process
    one.remove_process
    one.ping_process
    expect(PatientHttp::Sidekiq::TaskMonitor.registered_process_ids).to eq([process_id(one)])
  end
end
