# frozen_string_literal: true

require "spec_helper"
require "support/registry"
require "support/sidekiq_hooks"

# Nothing that only shows something may cost a request its place in the registry, or a process its proof of life.
RSpec.describe PatientHttp::Sidekiq::TaskMonitor, "beside callables that fail" do
  include Registry

  let(:details_config) { Struct.new(:max_connections, :heartbeat_interval, :orphan_threshold, :inflight_details?) }
  let(:index) { "sidekiq:patient_http:inflight_details_index" }

  {"is no UTF-8" => {"\xFF" => {inflight: 1, max_capacity: 2}}, "is not implemented" => NotImplementedError}.each do |kind, answer|
    it "pings when the answer of processors: #{kind}" do
      one = described_class.new(config(max_connections: 7), processors: -> { answer.is_a?(Class) ? raise(answer) : answer })
      log = sidekiq_log(Logger::WARN) { expect(one.ping_process).to be_nil }
      expect(log).to match(/pings without its processors: (JSON::GeneratorError|NotImplementedError)/)
      expect([described_class.total_max_connections, keys.grep(/processors\z/)]).to eq([7, []])
    end
  end

  [-> { raise "stopped" }, -> {}, -> { 1.5 }].each_with_index do |broken, number|
    it "registers when max_connections: fails in the ping that is due (#{number + 1}), and pings again once it does not" do
      answer = -> { 5 }
      one = described_class.new(config(heartbeat_interval: 0.01), max_connections: -> { answer.call })
      one.ping_process
      answer = broken
      sleep 0.05
      expect(one.register(first = task)).to be_nil
      expect(one.registered?(first)).to be(true)
      expect { one.ping_process }.to raise_error(StandardError)
      answer = -> { 6 }
      one.register(task)
      expect(described_class.total_max_connections).to eq(6)
    end
  end

  it "registers a request whose details are not implemented" do
    request = Object.new
    def request.url = raise(NotImplementedError)
    one = described_class.new(details_config.new(10, 60, 300, true))
    log = sidekiq_log(Logger::WARN) { one.register(Struct.new(:id, :task_handler, :request).new("a", task.task_handler, request)) }
    expect(log).to include("registered without details: NotImplementedError")
    expect(described_class.inflight_count).to eq(1)
  end

  it "asks Redis a few times for a few details, however many records before them cannot be read" do
    3_000.times.each_slice(500) { |some| REDIS.call("ZADD", index, *some.flat_map { |number| [number, "h:1:ff/#{number}"] }) }
    REDIS.call("ZADD", index, 5_000, "h:1:ff/a", 5_001, "h:1:ff/b")
    %w[a b].each { |id| REDIS.call("HSET", "sidekiq:patient_http:inflight_details", "h:1:ff/#{id}", "{}") }
    found = nil
    commands = redis_commands { found = described_class.inflight_details(limit: 1) }
    expect(found.map { |one| one[:request_id] }).to eq(%w[a])
    expect(commands.count { |_, name| name.casecmp?("HMGET") }).to be <= 8
  end

  it "takes apart what stands before a query, whatever follows it" do
    {
      "https://user:pass@example.com/x?a b" => "https://example.com/x", "https://example.com/x#ü" => "https://example.com/x",
      "https://user:pass@example.com?a=b@c" => "(unreadable URL)", "https://example.com/x?a=b@c" => "https://example.com/x",
      "https://example.com/x?" => "https://example.com/x", "?" => "", "#a?b" => ""
    }.each { |url, shown| expect(described_class.sanitize_url(url)).to eq(shown), "of #{url}" }
  end
end
