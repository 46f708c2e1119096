# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "An index entry without a job" do
  let(:collector) { monitor }
  let(:logger) { RecordingLogger.new }
  let!(:ghost) { write_entry("dead:1:00ff/ghost", payload: nil) }

  it "is removed once it is an orphan, with an error line" do
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(0)
    expect(entries).to be_empty
    expect(logger.lines.size).to eq(1)
    expect(logger.errors.first).to match(/\A\[PatientHttp::Sidekiq\] Failed to re-enqueue orphaned request #{ghost}: \S+ - \S/)
  end

  it "does not stop the others" do
    leave_orphans(task, task)
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(2)
    expect(entries).to be_empty
  end

  it "stays while it is fresh" do
    age(ghost, seconds: 5)
    collector.cleanup_orphaned_requests(300, logger)
    expect([entries, logger.lines]).to eq([[ghost], []])
  end

  it "stays while its process lives" do
    (live = monitor).ping_process
    id = write_entry(live.full_task_id("ghost"), payload: nil)
    collector.cleanup_orphaned_requests(300, logger)
    expect(entries).to eq([id])
  end

  it "is removed however many there are" do
    1_200.times { |number| write_entry("dead:1:00ff/ghost-#{number}", payload: nil, score: 1) }
    collector.cleanup_orphaned_requests(300, logger)
    expect(entries).to be_empty
    expect(logger.errors.uniq.size).to eq(1_201)
  end
end

RSpec.describe "A job without an index entry" do
  let(:collector) { monitor }
  let(:logger) { RecordingLogger.new }
  let(:job) { task.task_handler.sidekiq_job }
  let!(:lost) { write_entry("dead:1:00ff/lost", payload: JSON.generate(job), score: nil) }

  it "is put back into the index, with a heartbeat of now", :gc_stress do
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(0)
    expect(score(lost)).to be_within(5_000).of(server_ms)
    expect(JSON.parse(payload(lost))).to eq(job)
    expect(queued).to be_empty
  end

  it "is recovered once that heartbeat is stale" do
    collector.cleanup_orphaned_requests(300, logger)
    age(lost)
    expect(collector.cleanup_orphaned_requests(300, logger)).to eq(1)
    expect(queued.first).to include(job)
    expect(entries).to be_empty
  end

  it "gives an index that had to be made a TTL" do
    collector.cleanup_orphaned_requests(300, logger)
    expect(ttl(Registry::INDEX)).to eq(604_800)
  end

  it "gets no line from the logger that was passed" do
    collector.cleanup_orphaned_requests(300, logger)
    expect(logger.lines).to be_empty
  end

  it "is found among many that have one" do
    (live = monitor).ping_process
    600.times { live.register(task) }
    collector.cleanup_orphaned_requests(300, logger)
    expect(score(lost)).to be_within(5_000).of(server_ms)
    expect(REDIS.call("ZCARD", Registry::INDEX)).to eq(601)
  end

  it "leaves the heartbeats of the others as they are" do
    (live = monitor).ping_process
    live.register(request = task)
    age(live.full_task_id(request.id))
    expect { collector.cleanup_orphaned_requests(300, logger) }.not_to(change { score(live.full_task_id(request.id)) })
  end

  it "is found though a live process has an entry without a job, which makes up the number" do
    (live = monitor).ping_process
    write_entry(live.full_task_id("ghost"), payload: nil)
    3.times { collector.cleanup_orphaned_requests(300, logger) }
    expect(score(lost)).not_to be_nil
  end

  it "is found though an orphan without a job makes up the number" do
    write_entry("dead:1:00ff/ghost", payload: nil)
    2.times { collector.cleanup_orphaned_requests(300, logger) }
    expect(entries).to eq([lost])
    expect(score(lost)).to be_within(5_000).of(server_ms)
  end
end
