# frozen_string_literal: true

require "spec_helper"

RSpec.describe "The constants of PatientHttp::Sidekiq::TaskMonitor" do
  subject(:monitor_class) { PatientHttp::Sidekiq::TaskMonitor }

  {
    INFLIGHT_INDEX_KEY: "sidekiq:patient_http:inflight_index",
    INFLIGHT_JOBS_KEY: "sidekiq:patient_http:inflight_jobs",
    PROCESS_SET_KEY: "sidekiq:patient_http:processes",
    GC_LOCK_KEY: "sidekiq:patient_http:gc_lock",
    GC_LAST_RUN_KEY: "sidekiq:patient_http:gc_last_run"
  }.each do |name, key|
    it "name the key #{key} #{name}" do
      expect(monitor_class.const_get(name)).to eq(key).and be_frozen
    end
  end

  it "hold a script as a frozen String" do
    expect(monitor_class::REMOVE_IF_ORPHANED_SCRIPT).to be_a(String).and be_frozen
  end

  it "belong to a class of that name" do
    expect(monitor_class).to be_a(Class).and have_attributes(name: "PatientHttp::Sidekiq::TaskMonitor")
  end
end
