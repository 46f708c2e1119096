# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor.clear_all!" do
  subject(:clear) { PatientHttp::Sidekiq::TaskMonitor.clear_all! }

  def fill_the_registry
    one = monitor
    one.ping_process
    one.register(task)
    one.acquire_gc_lock
    one.record_gc_run
  end

  it "returns nil, whether there is a registry or not" do
    empty = PatientHttp::Sidekiq::TaskMonitor.clear_all!
    fill_the_registry
    expect([empty, clear]).to eq([nil, nil])
  end

  it "deletes the registry, the capacity keys of the members included", :gc_stress do
    fill_the_registry
    2.times { monitor.ping_process }
    expect { clear }.to change { keys.size }.from(8).to(0)
  end

  it "deletes what a sweep has left" do
    leave_orphans(task, task)
    monitor.cleanup_orphaned_requests(300, nil)
    clear
    expect(keys("sidekiq:patient_http:*")).to be_empty
  end

  it "deletes nothing else" do
    fill_the_registry
    %w[queue:default sidekiq:other sidekiq:patient_httpx other].each { |key| REDIS.call("SET", key, "kept") }
    clear
    expect(keys).to contain_exactly("queue:default", "sidekiq:other", "sidekiq:patient_httpx", "other")
  end

  it "lets a monitor go on" do
    (one = monitor).register(request = task)
    clear
    before = one.registered?(request)
    one.register(request)
    expect([before, one.registered?(request)]).to eq([false, true])
  end

  it "raises outside a test environment, and deletes nothing" do
    fill_the_registry
    allow(PatientHttp).to receive(:testing?).and_return(false) if PatientHttp.respond_to?(:testing?)
    outside_test_environment do
      expect { clear }
        .to raise_error(an_instance_of(RuntimeError).and(having_attributes(message: "clear_all! is only allowed in test environment")))
    end
    expect(keys.size).to eq(6)
  end
end
