# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor::REMOVE_IF_ORPHANED_SCRIPT" do
  def remove_if_orphaned(id, threshold)
    script = PatientHttp::Sidekiq::TaskMonitor::REMOVE_IF_ORPHANED_SCRIPT
    REDIS.call("EVAL", script, 2, Registry::INDEX, Registry::JOBS, id, threshold)
  end

  before { write_entry("web:1:00ff/other", payload: "{}", score: 1) }

  let(:id) { write_entry("web:1:00ff/1", payload: %({"args":["\u00e9\\n"]}), score: 1_700_000_000_000) }

  it "removes an entry below the threshold from both keys, and returns its job" do
    expect(remove_if_orphaned(id, 1_700_000_000_001)).to eq([1, %({"args":["\u00e9\\n"]})])
    expect(entries).to eq(["web:1:00ff/other"])
  end

  it "leaves an entry at the threshold" do
    expect(remove_if_orphaned(id, 1_700_000_000_000)).to eq([0, nil])
    expect([score(id), payload(id)]).to eq([1_700_000_000_000, %({"args":["\u00e9\\n"]})])
  end

  it "leaves an entry above the threshold" do
    expect(remove_if_orphaned(id, 1_699_999_999_999)).to eq([0, nil])
    expect([score(id), payload(id)]).to eq([1_700_000_000_000, %({"args":["\u00e9\\n"]})])
  end

  it "compares as numbers, not as text" do
    young = write_entry("web:1:00ff/2", payload: "{}", score: 1_700_000_000_000)
    expect(remove_if_orphaned(young, 2)).to eq([0, nil])
    expect(remove_if_orphaned(young, 10_000_000_000_000)).to eq([1, "{}"])
  end

  it "returns {0, nil} for an entry that is not there" do
    expect(remove_if_orphaned("web:1:00ff/gone", 1_700_000_000_000)).to eq([0, nil])
  end

  it "leaves a job without an index entry" do
    write_entry("web:1:00ff/3", payload: "{}", score: nil)
    expect(remove_if_orphaned("web:1:00ff/3", 1_700_000_000_000)).to eq([0, nil])
    expect(payload("web:1:00ff/3")).to eq("{}")
  end

  it "removes what an implementation registered" do
    (one = monitor).register(request = task)
    full_id = one.full_task_id(request.id)
    expect(remove_if_orphaned(full_id, server_ms + 1_000)).to eq([1, JSON.generate(request.task_handler.sidekiq_job)])
    expect(one.registered?(request)).to be(false)
  end
end
