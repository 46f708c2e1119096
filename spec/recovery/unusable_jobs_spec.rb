# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"
require_relative "../support/sidekiq_web"

RSpec.describe "What can never be pushed" do
  let(:settings) { PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 3 } }
  let(:logger) { RecordingLogger.new }
  let(:id) { "dead:1:00ff/unusable" }

  before do
    allow(PatientHttpMonitor).to receive(:settings).and_return(settings)
    # Ruby's own, about a number in one of the texts below.
    allow(Warning).to receive(:warn).and_call_original
    allow(Warning).to receive(:warn).with(/Float 1e999 out of range/, any_args)
  end

  # As often as it may be refused, and once more.
  def sweep(times = 4)
    Array.new(times) do
      age(id)
      monitor.cleanup_orphaned_requests(300, logger)
    end
  end

  def dead_payloads
    REDIS.call("ZRANGE", "dead", 0, -1)
  end

  texts = {
    "text that is not JSON" => "{secret",
    "nothing" => "",
    "bytes that are not UTF-8" => "\xFFsecret\xFE\x00".b,
    "JSON with bytes in it that are not UTF-8" => "{\"class\":\"ReportJob\",\"jid\":\"1\",\"args\":[\"secret\xFF\"]}".b,
    "JSON that nests too deeply" => "#{"[" * 200}\"secret\"#{"]" * 200}"
  }
  values = {
    "a JSON Array" => "[\"secret\",{\"class\":\"ReportJob\"}]",
    "a JSON String" => "\"secret\"",
    "a JSON number" => "42.5",
    "a JSON null" => "null"
  }
  hashes = {
    "a job without class" => {"args" => ["secret"], "jid" => "b4a577edbccf1d805744efa9"},
    "a job without args" => {"class" => "SecretJob", "secret" => "secret"},
    "a job whose args are no Array" => {"class" => "ReportJob", "args" => "secret"},
    "a job whose class is no String" => {"class" => ["secret"], "args" => []},
    "a job whose retry_for is no number" => {"class" => "ReportJob", "args" => ["secret"], "retry_for" => [1]},
    "a job whose queue is empty" => {"class" => "ReportJob", "args" => ["secret"], "queue" => ""},
    "an empty job" => {}
  }
  # Sidekiq's pages cannot show these as they are.
  unshowable = {
    "a job whose queue is a number" => {"args" => ["secret"], "queue" => 5},
    "a job whose created_at is no number" => {"args" => ["secret"], "created_at" => "now"},
    "a job whose enqueued_at is no number" => {"args" => ["secret"], "enqueued_at" => ["now"]},
    "a job whose error_backtrace is none" => {"args" => ["secret"], "error_backtrace" => "secret"},
    "a job whose tags are no Array" => {"class" => "ReportJob", "args" => ["secret"], "tags" => "secret"},
    "an encrypted job without args" => {"class" => "ReportJob", "encrypt" => true, "secret" => "secret"},
    "an encrypted job whose args and queue are empty" =>
      {"class" => "ReportJob", "encrypt" => true, "args" => [], "queue" => "", "secret" => "secret"},
    "a job of ActiveJob without args" =>
      {"class" => "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper", "wrapped" => "ReportJob", "secret" => "secret"},
    "a job of Sidekiq's own wrapper for ActiveJob without args" =>
      {"class" => "Sidekiq::ActiveJob::Wrapper", "wrapped" => "ReportJob", "secret" => "secret"}
  }
  # Nor these, and Ruby cannot write them in a job that holds them.
  unwritable = {
    "a JSON Array that nests as deeply as can be read" => "#{"[" * 99}\"secret\"#{"]" * 99}",
    "a job that Ruby cannot write" => "{\"args\":[\"secret\",1e999],\"class\":\"ReportJob\"}",
    "a JSON Array that Ruby cannot write" => "[\"secret\",1e999]",
    "a job of ActiveJob without args that Ruby cannot write" =>
      "{\"class\":\"Sidekiq::ActiveJob::Wrapper\",\"wrapped\":\"ReportJob\",\"secret\":1e999}"
  }
  everything = texts.merge(values, unwritable, hashes.merge(unshowable).transform_values { |job| JSON.generate(job) })

  everything.each do |kind, text|
    describe "#{kind}," do
      before { write_entry(id, payload: text) }

      it "stays registered after three refusals, and goes to Sidekiq's dead set after the fourth" do
        sweep(3)
        expect([entries, dead_payloads]).to eq([[id], []])
        sweep(1)
        expect([entries, dead_payloads.size]).to eq([[], 1])
      end

      it "never counts as re-enqueued, and gets an error line each time" do
        expect(sweep).to eq([0, 0, 0, 0])
        expect(queued).to be_empty
        expect(logger.infos).to be_empty
        expect(logger.errors).to all(start_with("[PatientHttp::Sidekiq] Failed to re-enqueue orphaned request #{id}: "))
        expect(logger.errors.size).to eq(4)
      end

      it "shows in no line of any log" do
        log = sidekiq_log(:debug) { sweep }
        expect((logger.lines.map(&:last) + log.lines).join.downcase).not_to include("secret")
      end

      it "is tried for ever where there is no limit" do
        settings.recovery_limit = nil
        sweep(6)
        expect([entries, dead_payloads]).to eq([[id], []])
        expect(payload(id).b).to eq(text.b)
      end
    end
  end

  texts.each do |kind, text|
    it "goes to the dead set byte for byte, without death handlers, where it is #{kind}" do
      write_entry(id, payload: text)
      expect(deaths { sweep }).to be_empty
      expect(dead_payloads.map(&:b)).to eq([text.b])
    end
  end

  values.each do |kind, text|
    it "goes to the dead set as args of a Hash with a jid, with death handlers, where it is #{kind}" do
      write_entry(id, payload: text)
      called = deaths { sweep }
      buried = JSON.parse(dead_payloads.first)
      expect(buried).to include("class" => a_kind_of(String), "jid" => a_string_matching(/\A\h{24}\z/), "args" => [JSON.parse(text)])
      expect(called.map(&:first)).to contain_exactly(a_hash_including(buried.slice("class", "jid", "args")))
      expect(called.map(&:last)).to all(be_a(StandardError))
    end
  end

  hashes.each do |kind, job|
    it "goes to the dead set with all that it had and a jid, with death handlers, where it is #{kind}" do
      write_entry(id, payload: JSON.generate(job))
      called = deaths { sweep }
      expect(JSON.parse(dead_payloads.first)).to include(job).and include("jid" => a_kind_of(String))
      expect(called.map(&:first)).to contain_exactly(a_hash_including(job))
    end
  end

  unshowable.each do |kind, job|
    it "goes to the dead set with what it had in some form, where it is #{kind}" do
      write_entry(id, payload: JSON.generate(job))
      sweep
      expect(JSON.parse(dead_payloads.first).to_s).to include("secret")
    end
  end

  unwritable.each do |kind, text|
    it "goes to the dead set with what it had in some form, where it is #{kind}" do
      write_entry(id, payload: text)
      sweep
      expect(dead_payloads).to contain_exactly(a_string_including("secret"))
    end
  end

  it "is refused for as long as the limit says", :gc_stress do
    settings.recovery_limit = 1
    write_entry(id, payload: "{secret")
    sweep(1)
    expect(dead_payloads).to be_empty
    sweep(1)
    expect(dead_payloads).to eq(["{secret"])
  end

  it "counts once in a sweep where several requests of a job are refused" do
    ids = Array.new(5) do |number|
      write_entry("dead:1:00ff/#{number}", payload: JSON.generate({"jid" => "b4a577edbccf1d805744efa9", "args" => [number]}))
    end
    sizes = Array.new(4) do
      age(*ids)
      monitor.cleanup_orphaned_requests(300, logger)
      [entries.size, dead_payloads.size]
    end
    expect(sizes).to eq([[5, 0], [5, 0], [5, 0], [0, 5]])
  end

  it "is one dead job, though its entry is buried twice" do
    text = JSON.generate({"args" => ["secret"]})
    write_entry(id, payload: text)
    sweep(4)
    write_entry(id, payload: text)
    sweep(1)
    expect([entries, dead_payloads.size]).to eq([[], 1])
  end

  it "stays registered where its counter holds text, and does not stop the others" do
    write_entry(id, payload: JSON.generate({"jid" => "b4a577edbccf1d805744efa9", "args" => []}))
    before = keys
    sweep(1)
    (keys - before).each { |key| REDIS.call("SET", key, "many") }
    leave_orphans(task, task)
    age(id, seconds: 7_200)
    expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(2)
    expect(entries).to eq([id])
  end

  ["1e3", " 3", "1.5", "inf", "0x1F", "-5", "nan"].each do |text|
    it "is refused no longer than the limit says where its counter is #{text.inspect}" do
      write_entry(id, payload: JSON.generate({"jid" => "odd", "args" => []}))
      REDIS.call("SET", "sidekiq:patient_http:refusals:odd", text)
      sweep(3)
      expect(entries).to eq([id])
      sweep(1)
      expect([entries, dead_payloads.size]).to eq([[], 1])
    end
  end

  it "is counted for 72 hours from the first refusal on" do
    before = keys
    write_entry(id, payload: JSON.generate({"jid" => "b4a577edbccf1d805744efa9", "args" => []}))
    sweep(1)
    counter = keys - before - [Registry::INDEX, Registry::JOBS]
    expect(counter.map { |key| ttl(key) }).to eq([259_200])
    REDIS.call("EXPIRE", counter.first, 1_000)
    sweep(1)
    expect(counter.map { |key| ttl(key) }).to contain_exactly(be_within(10).of(1_000))
  end

  it "can be mended: a job that is no longer refused is re-enqueued" do
    write_entry(id, payload: JSON.generate({"jid" => "b4a577edbccf1d805744efa9", "args" => []}))
    sweep(3)
    write_entry(id, payload: JSON.generate({"jid" => "b4a577edbccf1d805744efa9", "args" => [], "class" => "ReportJob"}))
    expect(sweep(1)).to eq([1])
    expect(dead_payloads).to be_empty
  end

  it "stays registered, with a line, while the dead set cannot take it, and does not stop the others" do
    write_entry(id, payload: "{secret")
    sweep(3)
    leave_orphans(task, task)
    age(id, seconds: 7_200)
    REDIS.call("SET", "dead", "of another type")
    expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(2)
    expect([entries, logger.errors.size]).to eq([[id], 4])
    expect(logger.errors.last).to match(/#{id}: RedisClient::\w+ - /)
    REDIS.call("DEL", "dead")
    sweep(1)
    expect([entries, dead_payloads]).to eq([[], ["{secret"]])
  end

  it "does not stop the others" do
    write_entry(id, payload: "{secret")
    leave_orphans(task, task)
    expect(sweep.first).to eq(2)
  end

  [{"args" => ["secret"]}, {"class" => "ReportJob", "args" => [], "tags" => "secret"}].each do |job|
    it "is discarded with a line where a job with #{job.keys.join(" and ")} says `dead: false`" do
      write_entry(id, payload: JSON.generate(job.merge("dead" => false)))
      called = deaths { sweep }
      expect([entries, dead_payloads, called.size]).to eq([[], [], 1])
      expect(logger.errors.last).to include("discarded")
    end
  end

  everything.each do |kind, text|
    it "does not make Sidekiq's pages fail where it is #{kind}" do
      write_entry(id, payload: text)
      sweep
      expect(page_of_the_dead_set).to eq(200)
      # Sidekiq finds a job's own page by the jid, and what is no JSON has none.
      expect(pages_of_dead_jobs).to eq([200]) unless texts.key?(kind)
    end

    it "can be read by Sidekiq's API where it is #{kind}" do
      write_entry(id, payload: text)
      sweep
      reason = texts.key?(kind) ? {} : {"error_class" => "PatientHttpMonitor::UnusableJobError", "error_message" => /\S/}
      expect(shown_dead_jobs).to match([a_hash_including(reason.merge(error?: reason.any?))])
    end
  end
end
