# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "TaskMonitor#cleanup_orphaned_requests" do
  let(:collector) { monitor }
  let(:logger) { RecordingLogger.new }

  it "returns 0 when there is nothing, and leaves nothing" do
    expect(collector.cleanup_orphaned_requests(300, logger)).to be_an(Integer).and eq(0)
    expect(logger.lines).to be_empty
    expect(keys).to be_empty
  end

  it "returns how many it has re-enqueued" do
    leave_orphans(*Array.new(3) { task })
    expect(collector.cleanup_orphaned_requests(300, logger)).to be_an(Integer).and eq(3)
    expect(queued.size).to eq(3)
  end

  it "removes what it has re-enqueued from the registry" do
    leave_orphans(task, task)
    collector.cleanup_orphaned_requests(300, logger)
    expect(entries).to be_empty
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(0)
  end

  it "pushes the job exactly as it was registered" do
    request = task("task-1", args: ["\u00e9\u{1F680}", 1.5, nil, true, {"deep" => [1, 2**70]}], queue: "reports", retry: 3,
      wrapped: "Report", tags: %w[a b], custom: {"x" => nil}, created_at: 1_700_000_000)
    leave_orphans(request)
    collector.cleanup_orphaned_requests(300, logger)
    expect(queued("reports").map { |job| job.except("enqueued_at") }).to eq([request.task_handler.sidekiq_job])
    expect(Sidekiq::Queue.new("reports").first.jid).to eq(request.task_handler.sidekiq_job.fetch("jid"))
  end

  it "logs a line at info for each job that it has re-enqueued" do
    ids = leave_orphans(task(class: "ReportJob"), task(class: "Admin::MailJob"))
    collector.cleanup_orphaned_requests(300, logger)
    expect(logger.lines).to contain_exactly(
      [:info, "[PatientHttp::Sidekiq] Re-enqueued orphaned request #{ids.first} to ReportJob"],
      [:info, "[PatientHttp::Sidekiq] Re-enqueued orphaned request #{ids.last} to Admin::MailJob"]
    )
  end

  it "logs a line at error for a job that cannot be pushed, and goes on with the others", :gc_stress do
    good, bad, = leave_orphans(task, task(args: ["bad"]), task)
    re_enqueued = on_push(->(job) { raise IOError, "disk full" if job["args"] == ["bad"] }) do
      collector.cleanup_orphaned_requests(300, logger)
    end
    expect(re_enqueued).to eq(2)
    expect(logger.errors).to eq(["[PatientHttp::Sidekiq] Failed to re-enqueue orphaned request #{bad}: IOError - disk full"])
    expect(logger.infos).to include("[PatientHttp::Sidekiq] Re-enqueued orphaned request #{good} to ReportJob").and have_attributes(size: 2)
  end

  it "needs no logger" do
    leave_orphans(task, task(args: ["bad"]))
    re_enqueued = on_push(->(job) { raise IOError, "disk full" if job["args"] == ["bad"] }) do
      collector.cleanup_orphaned_requests(300, nil)
    end
    expect(re_enqueued).to eq(1)
  end

  it "leaves a fresh task alone" do
    (dead = monitor).register(request = task)
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(0)
    expect(dead.registered?(request)).to be(true)
    expect(queued).to be_empty
  end

  it "leaves the stale task of a live process alone" do
    (live = monitor).ping_process
    live.register(request = task)
    age(live.full_task_id(request.id))
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(0)
    expect(live.registered?(request)).to be(true)
    expect(queued).to be_empty
  end

  it "takes a task of its own, when its own process does not live" do
    collector.register(request = task)
    age(collector.full_task_id(request.id))
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(1)
  end

  it "takes what another version of the gem has written" do
    job = {"class" => "ReportJob", "args" => [1], "jid" => "b4a577edbccf1d805744efa9", "queue" => "default", "retry" => true}
    write_entry("web-1.example.com:4711:0a1b2c3d/f81d4fae", payload: JSON.generate(job), score: "1700000000000.25")
    REDIS.call("SADD", Registry::PROCESSES, "web-1.example.com:4711:0a1b2c3d")
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(1)
    expect(queued.first).to include(job)
  end

  [300, 300.0, Rational(300), Registry::Duration.new(300.0), "300"].each do |threshold|
    it "compares with a threshold of #{threshold.inspect}" do
      young, old = leave_orphans(task, task)
      age(young, seconds: 295)
      age(old, seconds: 301)
      expect(collector.cleanup_orphaned_requests(threshold, logger)).to eq(1)
      expect(entries).to eq([young])
    end
  end

  [0, -1, -0.5].each do |threshold|
    it "takes everything before now with a threshold of #{threshold}" do
      monitor.register(task)
      sleep 0.005
      expect(collector.cleanup_orphaned_requests(threshold, logger)).to eq(1)
      expect(entries).to be_empty
    end
  end

  it "raises ArgumentError for a threshold that is text and no number, and takes nothing", :gc_stress do
    ids = leave_orphans(task)
    expect { collector.cleanup_orphaned_requests("abc", logger) }.to raise_error(ArgumentError, /abc/)
    expect([entries, queued]).to eq([ids, []])
  end
end
