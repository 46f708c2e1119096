# frozen_string_literal: true

require "spec_helper"
require_relative "../support/many_orphans"
require_relative "../support/plain_ruby_monitor"
require_relative "../support/recording_logger"
require_relative "../support/sidekiq_hooks"

# What a single failing push does is in recovery/failing_pushes_spec.rb; here the queue itself refuses the jobs, and many of them.
RSpec.describe "A Redis that refuses pushes" do
  let(:logger) { RecordingLogger.new }
  let(:collector) { monitor }

  before do
    settings = PatientHttpMonitor::Settings.new.tap { |changed| changed.recovery_limit = 3 }
    allow(PatientHttpMonitor).to receive(:settings).and_return(settings)
  end

  # Sweeps at once, leases that have not run out included.
  def sweep(monitor = collector)
    logger.lines.clear
    monitor.cleanup_orphaned_requests(-1, logger)
  end

  # The user that everyone is may not push.
  def without_permission
    REDIS.call("ACL", "SETUSER", "default", "-lpush")
    yield
  ensure
    REDIS.call("ACL", "SETUSER", "default", "+lpush")
  end

  # @return [Array<String>] registry ids of which the log says that they failed
  def failed_ids
    logger.errors.map { |line| line[/\A\[PatientHttp::Sidekiq\] Failed to re-enqueue orphaned request (\S+): RedisClient::\w+ - \S/, 1] }
  end

  def counters
    keys("sidekiq:patient_http:*").grep(/0000/).to_h { |key| [key, REDIS.call("GET", key)] }
  end

  describe "for every third job" do
    let(:blocked) { Array.new(100) { |number| orphan_id(number * 3) } }
    let!(:jobs) { many_orphans(300, queue: ->(number) { (number % 3).zero? ? "blocked" : "default" }) }

    # A queue that is no list.
    before { REDIS.call("SET", "queue:blocked", "no list") }

    it "stops none of the others, and is told of once for each failure" do
      expect(sweep).to eq(200)
      expect(failed_ids).to match_array(blocked)
      expect(logger.infos.size).to eq(200)
      expect(entries).to match_array(blocked)
      expect(queued.map { |job| job["jid"] }).to match_array(jobs.values.filter_map { |job| job["jid"] if job["queue"] == "default" })
    end

    it "costs no job, however often it fails, and makes no poison" do
      counts = Array.new(10) { sweep.tap { expect(failed_ids).to match_array(blocked) } }
      expect(counts).to eq([200] + ([0] * 9))
      # Only those that went through are counted.
      expect([dead_set, counters.values]).to eq([[], ["1"] * 200])

      REDIS.call("DEL", "queue:blocked")
      expect([sweep, logger.errors, entries]).to eq([100, [], []])
      account = account_of(jobs, queues: %w[default blocked])
      expect([account.lost, account.repeated, account.corrupted]).to eq([[], [], []])
    end

    it "would cost those jobs where removal comes before push, which is what the control does" do
      expect(sweep(PlainRubyMonitor.new(config))).to eq(200)
      REDIS.call("DEL", "queue:blocked")
      expect(sweep(PlainRubyMonitor.new(config))).to eq(0)
      expect(account_of(jobs, queues: %w[default blocked]).lost.size).to eq(100)
    end
  end

  describe "for a while" do
    let!(:jobs) { many_orphans(300) }

    it "costs no job over ten sweeps, is told of once for each failure, and never makes poison" do
      without_permission do
        10.times do
          expect(sweep).to eq(0)
          expect(failed_ids).to match_array(Array.new(300) { |number| orphan_id(number) })
          expect(entries.size).to eq(300)
        end
      end
      expect([dead_set, counters, queued]).to eq([[], {}, []])

      expect([sweep, logger.errors, entries]).to eq([300, [], []])
      account = account_of(jobs)
      expect([account.lost, account.repeated, account.corrupted, dead_set]).to eq([[], [], [], []])
      expect(counters.values).to eq(["1"] * 300)
    end

    it "costs no job when it sets in, ends, and sets in again in the middle of sweeps" do
      random = Random.new(RSpec.configuration.seed)
      refusing = false
      toggle = lambda do |_|
        REDIS.call("ACL", "SETUSER", "default", (refusing = !refusing) ? "-lpush" : "+lpush") if random.rand(10).zero?
      end
      pushed, refused = 0, 0
      until entries.empty?
        pushed += on_push(toggle) { sweep }
        refused += failed_ids.size
      end
      account = account_of(jobs)
      message = "seed #{random.seed}, #{refused} pushes refused, #{account}"
      expect([account.lost, account.repeated, account.corrupted]).to eq([[], [], []]), message
      expect([pushed, queued.size, dead_set]).to eq([300, 300, []]), message
    ensure
      REDIS.call("ACL", "SETUSER", "default", "+lpush")
    end

    it "would cost all of them where removal comes before push" do
      without_permission { expect(sweep(PlainRubyMonitor.new(config))).to eq(0) }
      expect(sweep(PlainRubyMonitor.new(config))).to eq(0)
      expect(account_of(jobs).lost.size).to eq(300)
    end
  end
end
