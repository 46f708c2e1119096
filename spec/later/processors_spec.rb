# frozen_string_literal: true

require "spec_helper"
require "support/registry"
require "support/sidekiq_hooks"

RSpec.describe PatientHttp::Sidekiq::TaskMonitor, "what a process says of itself" do
  include Registry

  def processors_key(monitor)
    "#{Registry::PROCESSES}:#{process_id(monitor)}:processors"
  end

  # As the Ruby gem of a version that knows of processors.
  def with_version(version)
    stub_const("PatientHttp::Sidekiq::VERSION", version)
    yield
  end

  it "is the capacity that max_connections: answers at each ping" do
    capacity = 5
    monitor = described_class.new(config, max_connections: -> { capacity })
    monitor.ping_process
    expect(REDIS.call("GET", capacity_key(monitor))).to eq("5")
    capacity = 9
    monitor.ping_process
    expect([REDIS.call("GET", capacity_key(monitor)), described_class.total_max_connections]).to eq(["9", 9])
    expect(REDIS.call("EXISTS", processors_key(monitor))).to eq(0)
  end

  it "is what processors: answer, published as JSON for as long as the capacity, their sum, and removed with it", gc_stress: 1 do
    loads = {llm: {inflight: 2, max_capacity: 8}, "web" => {"inflight" => 0, "max_capacity" => 4}}
    monitor = described_class.new(config(heartbeat_interval: 30), processors: -> { loads })
    monitor.ping_process
    expect(JSON.parse(REDIS.call("GET", processors_key(monitor)))).to eq(
      "llm" => {"inflight" => 2, "max_capacity" => 8}, "web" => {"inflight" => 0, "max_capacity" => 4}
    )
    expect(REDIS.call("GET", capacity_key(monitor))).to eq("12")
    expect([ttl(processors_key(monitor)), ttl(capacity_key(monitor))]).to eq([60, 60])
    monitor.remove_process
    expect(REDIS.call("EXISTS", processors_key(monitor), capacity_key(monitor))).to eq(0)
  end

  it "takes max_connections: before the sum of processors:" do
    monitor = described_class.new(config, max_connections: -> { 100 }, processors: -> { {a: {inflight: 1, max_capacity: 2}} })
    monitor.ping_process
    expect([described_class.total_max_connections, REDIS.call("EXISTS", processors_key(monitor))]).to eq([100, 1])
  end

  it "is told by a registration that pings, too" do
    monitor = described_class.new(config(heartbeat_interval: 0.01), processors: -> { {a: {inflight: 1, max_capacity: 2}} })
    monitor.ping_process
    REDIS.call("DEL", processors_key(monitor))
    sleep 0.05
    monitor.register(task)
    expect(REDIS.call("EXISTS", processors_key(monitor))).to eq(1)
  end

  it "is a proof of life still when the processors cannot be told, with one line a minute" do
    [-> { raise "broken" }, -> {}, -> { [1] }, -> { {a: 1} }, -> { {a: {inflight: "x", max_capacity: 1}} }, -> { {a: {inflight: 1}} },
      -> { {a: {inflight: 1, max_capacity: 2**70}} }]
      .each do |processors|
        monitor = described_class.new(config(max_connections: 7), processors: processors)
        lines = sidekiq_log(Logger::WARN) { 2.times { expect(monitor.ping_process).to be_nil } }
        expect(lines.scan(/pings without its processors/).size).to be <= 1
        expect(REDIS.call("GET", capacity_key(monitor))).to eq("7")
        expect(REDIS.call("EXISTS", processors_key(monitor))).to eq(0)
      end
  end

  it "raises what max_connections: raises, and says what it must answer; nothing is written" do
    expect { described_class.new(config, max_connections: -> { raise KeyError, "no" }).ping_process }.to raise_error(KeyError, "no")
    expect { described_class.new(config, max_connections: -> { 1.5 }).ping_process }.to raise_error(ArgumentError, /max_connections must be/)
    expect(keys).to eq([])
  end

  it "refuses what cannot be called" do
    expect { described_class.new(config, max_connections: 10) }.to raise_error(ArgumentError, /max_connections: must be .* Integer/)
    expect { described_class.new(config, processors: {}) }.to raise_error(ArgumentError, /processors: must be .* Hash/)
  end

  describe ".inflight_counts_by_processor" do
    before do
      described_class.new(config, processors: -> { {web: {inflight: 1, max_capacity: 4}, llm: {inflight: 2, max_capacity: 8}} }).ping_process
      described_class.new(config, processors: -> { {llm: {inflight: 3, max_capacity: 8}} }).ping_process
      described_class.new(config).ping_process
    end

    let(:sums) { {"llm" => {inflight: 5, max_capacity: 16}, "web" => {inflight: 1, max_capacity: 4}} }

    it "sums them over the live processes, sorted by name", gc_stress: 1 do
      counts = described_class.inflight_counts_by_processor
      expect(counts).to eq(sums)
      expect(counts.keys).to eq(%w[llm web])
    end

    it "takes what was asked before, whatever the version" do
      with_version("1.4.0") do
        processes = described_class.inflight_counts_by_process
        REDIS.call("FLUSHALL")
        expect(described_class.inflight_counts_by_processor(processes)).to eq(sums)
      end
      expect(described_class.inflight_counts_by_processor({})).to eq({})
      expect(described_class.inflight_counts_by_processor({"h:1" => {processors: {"a" => {inflight: 1}}}}))
        .to eq("a" => {inflight: 1, max_capacity: 0})
      expect(described_class.inflight_counts_by_processor({"h:1" => {inflight: 1, max_capacity: 2}})).to eq({})
    end

    it "leaves out what dead processes and other versions wrote that cannot be read" do
      REDIS.call("SADD", Registry::PROCESSES, "h:1:ff", "h:2:ee")
      REDIS.call("SET", "#{Registry::PROCESSES}:h:2:ee:processors", JSON.generate("llm" => {"inflight" => 9, "max_capacity" => 9}))
      REDIS.call("SET", "#{Registry::PROCESSES}:h:1:ff:max_connections", 3)
      ["text", "[]", "{\"llm\":1}", "{\"llm\":{\"inflight\":[]}}", "\xFF"].each do |text|
        REDIS.call("SET", "#{Registry::PROCESSES}:h:1:ff:processors", text)
        expect(described_class.inflight_counts_by_processor).to eq(sums)
      end
      REDIS.call("DEL", "#{Registry::PROCESSES}:h:1:ff:processors")
      REDIS.call("LPUSH", "#{Registry::PROCESSES}:h:1:ff:processors", "x")
      expect(described_class.inflight_counts_by_processor).to eq(sums)
    end
  end

  describe ".inflight_counts_by_process" do
    it "has processors: in each entry with a patient_http-sidekiq of 1.4 or later, and exactly two keys before" do
      described_class.new(config, processors: -> { {llm: {inflight: 3, max_capacity: 8}} }).ping_process
      REDIS.call("SADD", Registry::PROCESSES, "h:1:ff")
      REDIS.call("SET", "#{Registry::PROCESSES}:h:1:ff:max_connections", 3)
      ["1.4.0", "1.5.2", "2.0"].each do |version|
        with_version(version) do
          expect(described_class.inflight_counts_by_process.values).to contain_exactly(
            {inflight: 0, max_capacity: 3, processors: {}},
            {inflight: 0, max_capacity: 8, processors: {"llm" => {inflight: 3, max_capacity: 8}}}
          )
        end
      end
      ["1.0.2", "1.3.9", "no version"].each do |version|
        with_version(version) { expect(described_class.inflight_counts_by_process.values.flat_map(&:keys).uniq).to eq(%i[inflight max_capacity]) }
      end
      expect(described_class.inflight_counts_by_process.values.flat_map(&:keys).uniq).to eq(%i[inflight max_capacity])
    end
  end
end
