# frozen_string_literal: true

require "spec_helper"
require_relative "../support/children"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "What a sweep says" do
  include Children

  def sweep(logger = nil)
    monitor.cleanup_orphaned_requests(300, logger)
  end

  def leave_work
    write_entry("dead:1:00ff/ghost", payload: nil)
    leave_orphans(task, task, task(args: ["bad"]))
  end

  let(:stubborn) { ->(job) { raise IOError, "disk full" if job["args"] == ["bad"] } }

  it "is one summary to Sidekiq's logger at info when it has recovered something" do
    leave_work
    log = sidekiq_log(:debug) { on_push(stubborn) { sweep } }
    expect(log.lines.size).to eq(1)
    expect(log).to match(/INFO.*\[PatientHttp::Sidekiq\] .*\b2\b/)
  end

  it "is one summary to Sidekiq's logger at debug when it has recovered nothing" do
    log = sidekiq_log(:debug) { sweep }
    expect(log.lines.size).to eq(1)
    expect(log).to match(/DEBUG.*\[PatientHttp::Sidekiq\] /)
  end

  it "is nothing to Sidekiq's logger at info when it has recovered nothing, though pushes failed" do
    leave_orphans(task(args: ["bad"]))
    expect(sidekiq_log(:info) { on_push(stubborn) { sweep(RecordingLogger.new) } }).to be_empty
  end

  it "is none of the lines for each job to Sidekiq's logger" do
    ids = leave_work
    log = sidekiq_log(:debug) { on_push(stubborn) { sweep(RecordingLogger.new) } }
    expect(ids.select { |id| log.include?(id) }).to be_empty
  end

  it "is a line for each job to the logger that was passed, and no summary" do
    leave_work
    logger = RecordingLogger.new
    sidekiq_log(:debug) { on_push(stubborn) { sweep(logger) } }
    expect([logger.infos.size, logger.errors.size]).to eq([2, 2])
  end

  it "is not suppressed for a job, whatever the level of Sidekiq's logger" do
    leave_work
    logger = RecordingLogger.new
    sidekiq_log(:fatal) { on_push(stubborn) { sweep(logger) } }
    expect(logger.lines.size).to eq(4)
  end

  it "is in lines of its own, whatever bytes an id, a class, or an error's message has" do
    leave_orphans(task("a\nb"), task("\xFF".b), task("\u00e9", class: "\u00c9t\u00e9"), task("\u00e8", args: ["bad"]))
    logger = RecordingLogger.new
    re_enqueued = on_push(->(job) { raise IOError, "\xFF\u00e9".b if job["args"] == ["bad"] }) { sweep(logger) }
    expect(re_enqueued).to eq(3)
    expect([logger.infos.size, logger.errors.size]).to eq([3, 1])
    lines = logger.lines.map(&:last)
    expect(lines).to all(be_valid_encoding.and(have_attributes(encoding: Encoding::UTF_8)))
    expect(lines.map { |line| line.lines.size }).to all(eq(1))
  end

  it "is a line of its own for a job whose class has several" do
    leave_orphans(task(class: "ReportJob\n[PatientHttp::Sidekiq] Re-enqueued\r\nall"))
    logger = RecordingLogger.new
    expect(sweep(logger)).to eq(1)
    expect(logger.lines.map { |_, line| line.lines.size }).to eq([1])
    expect(logger.infos.first).not_to match(/[[:cntrl:]]/)
  end

  it "is a line of its own for an error whose message has several" do
    leave_orphans(task)
    logger = RecordingLogger.new
    on_push(->(_) { raise IOError, "disk full\n[PatientHttp::Sidekiq] Re-enqueued\r\n" }) { sweep(logger) }
    expect(logger.lines.map { |_, line| line.lines.size }).to eq([1])
    expect(logger.errors.first).not_to match(/[[:cntrl:]]/)
  end

  {
    "the job as it was registered" => ->(job) { job.slice("class", "args", "jid", "queue") },
    "the job as it is pushed" => ->(job) { job },
    "the arguments" => ->(job) { job["args"].inspect },
    "the job as JSON" => ->(job) { JSON.generate(job) },
    "the arguments as JSON" => ->(job) { JSON.generate(job["args"]) },
    "an argument" => ->(job) { job["args"].first }
  }.each do |kind, quote|
    it "does not show the arguments where an error quotes #{kind}" do
      leave_orphans(task(args: ["s3cret", {"number" => 4711}]))
      logger = RecordingLogger.new
      log = sidekiq_log(:debug) { on_push(->(job) { raise ArgumentError, "not allowed: #{quote.call(job)}!" }) { sweep(logger) } }
      expect(logger.errors.size).to eq(1)
      expect(logger.errors.first).to include("ArgumentError - not allowed: ")
      expect(logger.errors.first + log).not_to match(/s3cret|4711/)
    end
  end

  it "tells Sidekiq's logger of jobs that lost their index entry" do
    write_entry("dead:1:00ff/lost", payload: "{}", score: nil)
    expect(sidekiq_log(:warn) { sweep(RecordingLogger.new) }).to match(/WARN.*\[PatientHttp::Sidekiq\] .*\b1\b/)
  end

  it "is one line a minute while Redis is away, that says so, and what was left out is counted in the next one" do
    gone = Class.new(RedisClient::CannotConnectError) { define_singleton_method(:name) { "GoneError" } }
    leave_orphans(task, task, task, task)
    logger = RecordingLogger.new
    log = sidekiq_log(:warn) do
      on_push(->(_) { raise gone, "nobody\nthere" }) { Array.new(3) { [sweep(logger), age(*entries)] } }
    end
    expect(log.lines.size).to eq(1)
    expect(log).to match(/ERROR.*\[PatientHttp::Sidekiq\] Sweep ended early.* - nobody there$/)
    # What concerns a job is never left out.
    expect(logger.errors.size).to eq(9)
    expect(entries.size).to eq(4)
  end

  it "is a line each time where Redis is there and refuses, whatever was said before" do
    ids = leave_orphans(task, task)
    log = sidekiq_log(:error) do
      2.times do
        on_push(->(_) { REDIS.call("RENAME", Registry::INDEX, "kept") && REDIS.call("SET", Registry::INDEX, "odd") }) { sweep }
        REDIS.call("RENAME", "kept", Registry::INDEX)
        age(*ids)
      end
    end
    expect(log.lines).to contain_exactly(*[a_string_including("Sweep ended early", "WRONGTYPE")] * 2)
  end

  it "is one line a minute while it waits for its peers" do
    collector = monitor
    collector.ping_process
    expire_capacity(collector)
    log = sidekiq_log(:warn) { 3.times { collector.cleanup_orphaned_requests(300, nil) } }
    expect(log.lines).to contain_exactly(a_string_matching(/WARN.*\[PatientHttp::Sidekiq\] No orphans are taken yet/))
  end

  describe "again and again" do
    let(:limit) { PatientHttpMonitor.const_get(:LineLimit).new(0.2) }

    def say(kind)
      said = nil
      limit.line(kind) { |note| said = note }
      said
    end

    it "is said by a forked child that has said nothing yet" do
      expect([say(:one), in_child { say(:one) }, say(:one)]).to eq(["", "", nil])
    end

    it "is left out within the period, by kind, and counted when it is said again" do
      expect([say(:one), say(:one), say(:one), say(:other)]).to eq(["", nil, nil, ""])
      sleep 0.25
      expect([say(:one), say(:one), say(:other)]).to eq([" (2 more like this were left out)", nil, ""])
    end
  end
end
