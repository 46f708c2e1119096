# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/wire_proxy"

RSpec.describe "what goes over the wire" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  def through(proxy, &block)
    Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: proxy.url, timeout: 5), &block)
  end

  it "is read right when it arrives one byte at a time, from the greeting on" do
    WireProxy.open(server.port) do |proxy|
      proxy.crumble_replies
      through(proxy) do
        monitor.ping_process
        3.times { |number| monitor.register(task("task-#{number}", args: ["\u{1F4E6} \r\n $5\r\n", number])) }
        monitor.unregister(task("task-1"))

        expect(monitor.registered_task_ids.map { |id| id[%r{/(.*)}, 1] }).to contain_exactly("task-0", "task-2")
        expect(monitor.registered?(task("task-1"))).to be(false)
        expect(monitor.heartbeat_timestamp_for(task("task-0"))).to be_within(60_000).of(Time.now.to_f * 1_000)
        expect(PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process.values).to eq([{inflight: 2, max_capacity: 10}])
        expect([monitor.acquire_gc_lock, monitor.acquire_gc_lock, monitor.release_gc_lock]).to eq([true, false, true])
        expect(proxy.connections).to eq(1)
      end
    end
  end

  it "is sent at once with what is read, so that one call is one packet each way" do
    WireProxy.open(server.port) do |proxy|
      through(proxy) do
        monitor.ping_process
        before = proxy.requests
        10.times { monitor.register(task) }
        expect(proxy.requests - before).to eq(10)
      end
    end
  end

  it "may be a job of 5 MB, which comes back whole from a recovery" do
    large = "x\u00e9\u{1F4E6}" * 700_000
    expect(large.bytesize).to be_between(4_800_000, 5_000_000)
    WireProxy.open(server.port) do |proxy|
      through(proxy) do
        monitor.register(task("large", jid: "0123", args: [large]))
        expect(monitor.registered?(task("large"))).to be(true)
        sleep 0.005
        expect(monitor.cleanup_orphaned_requests(0, nil)).to eq(1)
      end
    end
    job = JSON.parse(server.call("LPOP", "queue:default"))
    expect(job).to include("jid" => "0123", "class" => "ReportJob", "args" => [large])
    expect(server.call("KEYS", "sidekiq:patient_http:inflight*")).to be_empty
  end

  it "may be thousands of ids in one call" do
    ids = Array.new(5_000) { |number| "task-#{number}" }
    ids.each { |id| monitor.register(task(id)) }
    WireProxy.open(server.port) do |proxy|
      through(proxy) do
        before = monitor.heartbeat_timestamp_for(task("task-4999"))
        sleep 0.005
        monitor.update_heartbeats(ids)
        expect(monitor.heartbeat_timestamp_for(task("task-4999"))).to be > before
        expect(monitor.registered_task_ids.size).to eq(5_000)
      end
    end
  end
end
