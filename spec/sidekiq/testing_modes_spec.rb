# frozen_string_literal: true

require "spec_helper"
require "support/sidekiq_application"
require "support/registry"

# That fake!, inline! and disable! get the recovered jobs at all is in spec/recovery/test_suites_spec.rb.
RSpec.describe "Under Sidekiq's testing modes, a recovered job" do
  include SidekiqApplication

  def under(mode, script)
    application(<<~RUBY, libraries: ["sidekiq", "sidekiq/testing"])
      Sidekiq::Testing.#{mode}!
      #{script}
    RUBY
  end

  it "is in Sidekiq's fake queues as it was registered, and settled" do
    lines = under(:fake, <<~RUBY)
      job = orphans([1, {"a" => [nil]}], queue: "reports", tags: ["t"], retry: 3).first.task_handler.sidekiq_job
      puts sweep
      found = Sidekiq::Queues["reports"]
      puts found.size, found.first.slice(*job.keys) == job, Sidekiq::Queues["default"].size, ReportJob.jobs.size
    RUBY
    expect(lines).to eq(%w[1 1 true 0 1])
    expect(entries).to be_empty
    expect(keys.grep(/\Aqueue/)).to be_empty
  end

  it "is performed by drain, and nothing of it is left to recover" do
    lines = under(:fake, <<~RUBY)
      orphans(["a"], ["b"])
      puts sweep
      Sidekiq::Job.drain_all
      puts sweep, ReportJob.jobs.size
    RUBY
    expect(lines).to contain_exactly("2", 'performed ["a"]', 'performed ["b"]', "0", "0")
  end

  it "need not be of a class that is loaded, in the fake queue" do
    expect(under(:fake, <<~RUBY)).to eq(%w[1 NotLoadedJob])
      orphans([], class: "NotLoadedJob")
      puts sweep, Sidekiq::Queues["default"].first["class"]
    RUBY
  end

  it "of the test before is gone once the queues and the registry are cleared" do
    expect(under(:fake, <<~RUBY)).to eq(%w[1 0 0])
      orphans(["a"])
      puts sweep
      orphans(["b"])
      Sidekiq::Queues.clear_all
      PatientHttp::Sidekiq::TaskMonitor.clear_all!
      puts ReportJob.jobs.size, sweep
    RUBY
  end

  it "that fails while it is performed inline was not pushed: it stays registered on its lease, and the others go on" do
    lines = under(:inline, <<~RUBY)
      failing, = orphans(["KeyError"], ["b"])
      owner = PatientHttp::Sidekiq::TaskMonitor
      puts sweep, owner.inflight_count
      puts LOGGER.errors.map { |line| line.sub(/request \\S+:/, "request ID:") }
    RUBY
    expect(lines).to contain_exactly('performed ["b"]', "1", "1",
      "[PatientHttp::Sidekiq] Failed to re-enqueue orphaned request ID: KeyError - of the job")
    expect(entries.map { |id| score(id) }).to match([be_within(20_000).of(server_ms)])
    expect(JSON.parse(payload(entries.first))["args"]).to eq(["KeyError"])
  end

  it "that fails while it is performed inline goes to no dead set, whatever it raises and however often" do
    lines = under(:inline, <<~RUBY)
      PatientHttpMonitor.settings.recovery_limit = 1
      orphans(["ArgumentError"], ["JSON::GeneratorError"], ["RedisClient::CommandError"])
      6.times { sweep and sleep 0.005 }
      puts LOGGER.errors.size
    RUBY
    expect(lines).to eq(%w[18])
    expect(entries.size).to eq(3)
    expect(keys).not_to include("dead")
  end

  it "of a class that is not loaded cannot be performed inline, and stays registered" do
    expect(under(:inline, <<~RUBY)).to match(["0", a_string_including("NameError - uninitialized constant NotLoadedJob")])
      orphans([], class: "NotLoadedJob")
      puts sweep, LOGGER.errors
    RUBY
    expect(entries.size).to eq(1)
  end

  it "may itself register, look and sweep, inline" do
    expect(under(:inline, <<~RUBY)).to eq(%w[inside:1 1 0])
      class NestingJob
        include Sidekiq::Job

        def perform
          MONITOR.register(inner = task("inner"))
          MONITOR.unregister(inner)
          MONITOR.cleanup_orphaned_requests(300, nil)
          puts "inside:\#{PatientHttp::Sidekiq::TaskMonitor.inflight_count}"
        end
      end
      MONITOR = monitor
      orphans([], class: "NestingJob")
      puts sweep(by: MONITOR), PatientHttp::Sidekiq::TaskMonitor.inflight_count
    RUBY
  end

  it "is the calling thread's: another one pushes to Redis meanwhile" do
    expect(under(:disable, <<~RUBY)).to eq(%w[1 1 1])
      orphans(["a"])
      Sidekiq::Testing.fake! { puts sweep }
      puts ReportJob.jobs.size
      orphans(["b"])
      Sidekiq::Testing.fake! { Thread.new { puts sweep }.join }
    RUBY
    expect(queued.map { |job| job["args"] }).to eq([["b"]])
  end
end
