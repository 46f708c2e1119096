# frozen_string_literal: true

require "spec_helper"
require "timeout"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "A sweep whose pushes fail" do
  let(:collector) { monitor }
  let(:logger) { RecordingLogger.new }
  let(:broken) { ->(_) { raise IOError, "disk full" } }

  def sweep(threshold = 300)
    Timeout.timeout(20) { collector.cleanup_orphaned_requests(threshold, logger) }
  end

  def stubborn_every_third
    ->(job) { raise IOError, "disk full" if (job["args"].first % 3).zero? }
  end

  describe "for every third job" do
    let!(:ids) { leave_orphans(*Array.new(300) { |number| task(args: [number]) }) }
    let(:refused) { ids.each_slice(3).map(&:first) }

    it "re-enqueues the others" do
      expect(on_push(stubborn_every_third) { sweep }).to eq(200)
      expect(queued.map { |job| job["args"].first }).to match_array((0...300).reject { |number| (number % 3).zero? })
    end

    it "logs one error line for each" do
      on_push(stubborn_every_third) { sweep }
      lines = refused.map { |id| "[PatientHttp::Sidekiq] Failed to re-enqueue orphaned request #{id}: IOError - disk full" }
      expect(logger.errors).to match_array(lines)
    end

    it "keeps them registered, on a fresh lease" do
      before = refused.to_h { |id| [id, payload(id)] }
      on_push(stubborn_every_third) { sweep }
      expect(entries).to match_array(refused)
      expect(refused.to_h { |id| [id, payload(id)] }).to eq(before)
      expect(refused.map { |id| score(id) }).to all(be_within(10_000).of(server_ms))
    end

    it "leaves them alone until the lease has run out, and recovers them then" do
      on_push(stubborn_every_third) { sweep }
      too_early = sweep
      age(*refused)
      expect([too_early, sweep]).to eq([0, 100])
      expect(queued.map { |job| job["args"].first }).to match_array(0...300)
      expect(entries).to be_empty
    end
  end

  [1, 0.001, 0, -1, -3_600].each do |threshold|
    it "ends with a threshold of #{threshold}, having tried each job once" do
      leave_orphans(*Array.new(150) { |number| task(args: [number]) })
      tried = []
      on_push(->(job) { tried << job["args"].first and raise IOError, "disk full" }) { sweep(threshold) }
      expect(tried).to match_array(0...150)
      expect(entries.size).to eq(150)
    end
  end

  # A lease as far ahead would keep the job from everyone.
  it "leases for no later than about now, however far ahead the threshold reaches" do
    id, = leave_orphans(task)
    on_push(broken) { sweep(-1e10) }
    expect(score(id)).to be_between(server_ms - 5_000, server_ms + 1_500)
  end

  {
    "an error whose message is nil" => Class.new(StandardError) { def message = nil },
    "a ScriptError" => NotImplementedError
  }.each do |kind, error|
    it "goes on with the others, with a line, when a client middleware raises #{kind}" do
      stub_const("OddError", error)
      bad, = leave_orphans(task(args: ["bad"]), task, task)
      age(bad, seconds: 7_200)
      expect(on_push(->(job) { raise OddError if job["args"] == ["bad"] }) { sweep }).to eq(2)
      expect([entries, logger.errors.size]).to eq([[bad], 1])
      expect(logger.errors.first).to include("#{bad}: #{error.name} - ")
    end
  end

  %i[info error].each do |level|
    it "goes on with the others when the logger raises on #{level}, and says so to Sidekiq's" do
      bad, = leave_orphans(task(args: ["bad"]), task, task)
      age(bad, seconds: 7_200)
      logger.define_singleton_method(level) { |_| raise IOError, "disk full" }
      log = sidekiq_log(:info) do
        expect(on_push(->(job) { raise "not this one" if job["args"] == ["bad"] }) { sweep }).to eq(2)
      end
      expect([queued.size, entries]).to eq([2, [bad]])
      expect(log).to match(/ERROR.*\[PatientHttp::Sidekiq\] .*IOError/)
    end
  end

  describe "since they find no Redis" do
    let!(:ids) { leave_orphans(*Array.new(30) { |number| task(args: [number]) }) }
    let(:unreachable) { RedisClient::CannotConnectError.new("nobody listens") }

    it "ends after three in a row, with a line on Sidekiq's logger" do
      tried = 0
      log = sidekiq_log(:info) { expect(on_push(->(_) { (tried += 1) and raise unreachable }) { sweep }).to eq(0) }
      expect([tried, entries]).to match([3, match_array(ids)])
      expect(log).to match(/ERROR.*\[PatientHttp::Sidekiq\] .*RedisClient::CannotConnectError/)
    end

    it "counts what was pushed before" do
      tried = 0
      sidekiq_log(:fatal) { expect(on_push(->(_) { raise unreachable if (tried += 1) > 10 }) { sweep }).to eq(10) }
      expect([tried, queued.size, entries.size]).to eq([13, 10, 20])
    end

    it "goes on when it was a single one, or two in a row, however often" do
      tried = 0
      log = sidekiq_log(:info) do
        expect(on_push(->(_) { raise unreachable unless ((tried += 1) % 3).zero? }) { sweep }).to eq(10)
      end
      expect([tried, logger.errors.size]).to eq([30, 20])
      expect(log).not_to include("ERROR")
    end
  end

  it "never gives a job up, however often the push raises" do
    allow(PatientHttpMonitor).to receive(:settings)
      .and_return(PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 1 })
    id, = leave_orphans(task)
    on_push(broken) { 5.times { age(id) && sweep } }
    expect([entries, dead_set]).to eq([[id], []])
    age(id)
    expect(sweep).to eq(1)
  end

  it "never gives a job up because a client middleware raises ArgumentError" do
    allow(PatientHttpMonitor).to receive(:settings)
      .and_return(PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 1 })
    id, = leave_orphans(task)
    on_push(->(_) { raise ArgumentError, "wrong number of arguments" }) { 5.times { age(id) && sweep } }
    expect([entries, dead_set]).to eq([[id], []])
    age(id)
    expect(sweep).to eq(1)
  end

  describe "with an answer of nil, since a client middleware stopped the job" do
    let!(:id) { leave_orphans(task(args: ["stopped"]), task).first }
    let(:stop) { ->(job) { :stop if job["args"] == ["stopped"] } }

    it "counts it as handled" do
      expect(on_push(stop) { sweep }).to eq(2)
      expect(queued.size).to eq(1)
      expect(entries).to be_empty
    end

    it "does not say that it was re-enqueued, but tells Sidekiq's logger what happened" do
      log = sidekiq_log(:info) { on_push(stop) { sweep } }
      expect(logger.lines.map(&:last).join).not_to include(id)
      expect(log).to match(/INFO.*#{Regexp.escape(id)}.*middleware/)
    end
  end

  describe "since an interrupt arrives" do
    it "leaves the rest registered, the interrupted job included" do
      leave_orphans(*Array.new(10) { task })
      interrupted = Class.new(Exception) # rubocop:disable Lint/InheritException -- like the interrupts that end a thread
      expect { on_push(->(_) { raise interrupted if queued.size == 4 }) { sweep } }.to raise_error(interrupted)
      expect([queued.size, entries.size]).to eq([4, 6])
      expect(sweep(-1)).to eq(6)
    end

    it "stops for Timeout.timeout, and loses nothing" do
      leave_orphans(*Array.new(50) { |number| task(args: [number]) })
      expect { Timeout.timeout(0.05) { on_push(->(_) { sleep 0.005 }) { collector.cleanup_orphaned_requests(300, nil) } } }
        .to raise_error(Timeout::Error)
      expect(queued.size).to be < 50
      sweep(-1)
      expect(queued.map { |job| job["args"].first }.uniq).to match_array(0...50)
      expect(queued.size).to be <= 51
      expect(entries).to be_empty
    end

    it "stops for Thread#kill, and loses nothing" do
      leave_orphans(*Array.new(50) { |number| task(args: [number]) })
      pushed = Thread::Queue.new
      hook = ->(job) { pushed << job and sleep 0.005 }
      on_push(hook) do
        thread = Thread.new { collector.cleanup_orphaned_requests(300, nil) }
        5.times { pushed.pop(timeout: 5) }
        thread.kill.join
      end
      sweep(-1)
      expect(queued.map { |job| job["args"].first }.uniq).to match_array(0...50)
      expect(queued.size).to be <= 51
      expect(entries).to be_empty
    end
  end
end

RSpec.describe "A sweep during which Redis dies" do
  let(:logger) { RecordingLogger.new }
  let(:server) { RedisServer.start(appendonly: "yes", appendfsync: "always") }
  let(:pool) { Sidekiq::RedisConnection.create(url: server.url, timeout: 2) }
  let(:jobs) { Array.new(150) { |number| task(args: [number]).task_handler.sidekiq_job } }

  before do
    jobs.each_with_index do |job, number|
      server.call("HSET", Registry::JOBS, "dead:1:00ff/#{number}", JSON.generate(job))
      server.call("ZADD", Registry::INDEX, number, "dead:1:00ff/#{number}")
    end
  end

  after { server.stop }

  def sweep(threshold)
    Sidekiq::Client.via(pool) { monitor.cleanup_orphaned_requests(threshold, logger) }
  end

  def die_at(number)
    ->(job) { server.kill if job["args"] == [number] }
  end

  it "ends with the count so far, and says so to Sidekiq's logger" do
    re_enqueued = nil
    log = sidekiq_log(:info) { on_push(die_at(70)) { re_enqueued = sweep(300) } }
    expect(re_enqueued).to eq(70)
    expect(log).to match(/ERROR.*\[PatientHttp::Sidekiq\] .*RedisClient::CannotConnectError/)
  end

  it "has lost nothing once Redis is back" do
    sidekiq_log(:fatal) { on_push(die_at(70)) { sweep(300) } }
    server.start
    sweep(-1)
    pushed = server.call("LRANGE", "queue:default", 0, -1).map { |job| JSON.parse(job)["args"].first }
    expect(pushed).to match_array(0...150)
    expect(server.call("EXISTS", Registry::INDEX, Registry::JOBS)).to eq(0)
  end

  it "raises what redis-client raises when it was dead before" do
    Sidekiq::Client.via(pool) { monitor.cleanup_orphaned_requests(1_000_000_000, nil) }
    server.kill
    expect { sweep(300) }.to raise_error(RedisClient::CannotConnectError)
  end
end
