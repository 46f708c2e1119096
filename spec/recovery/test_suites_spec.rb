# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"
require_relative "../support/ruby_process"
require_relative "../support/sidekiq_hooks"

RSpec.describe "In a test suite that travels in time" do
  let(:one) { monitor }

  def travel(seconds)
    now = Time.now + seconds
    allow(Time).to receive(:now).and_return(now)
  end

  def come_back
    allow(Time).to receive(:now).and_call_original
  end

  [-600, 600].each do |seconds|
    it "a task is registered, and refreshed, #{seconds} s from now" do
      travel(seconds)
      one.register(request = task)
      registered = one.heartbeat_timestamp_for(request)
      age(one.full_task_id(request.id))
      one.update_heartbeats([request.id])
      expect([registered, one.heartbeat_timestamp_for(request)]).to all(be_within(5_000).of(server_ms + (seconds * 1000)))
    end
  end

  it "a task grows stale by travelling" do
    (dead = monitor).register(task)
    before = one.cleanup_orphaned_requests(300, nil)
    travel(301)
    expect([before, one.cleanup_orphaned_requests(300, nil), dead.registered_task_ids]).to eq([0, 1, []])
  end

  it "a task that was registered in the past is stale in the present" do
    travel(-301)
    monitor.register(task)
    come_back
    expect(one.cleanup_orphaned_requests(300, nil)).to eq(1)
  end

  [-600, 3_600].each do |seconds|
    it "a lease is given in the time that is #{seconds} s from now" do
      id, = leave_orphans(task)
      travel(seconds)
      on_push(->(_) { raise IOError }) { one.cleanup_orphaned_requests(300, nil) }
      expect(score(id)).to be_within(5_000).of(server_ms + (seconds * 1000))
    end
  end

  it "a live process keeps its tasks, since Redis counts the TTL of its capacity" do
    (live = monitor).ping_process
    live.register(request = task)
    travel(3_600)
    expect([one.cleanup_orphaned_requests(300, nil), live.registered?(request)]).to eq([0, true])
  end

  it "a sweep becomes due by travelling" do
    one.record_gc_run
    before = one.gc_needed?
    travel(61)
    expect([before, one.gc_needed?]).to eq([false, true])
  end

  it "a sweep is recorded at the time travelled to" do
    travel(600)
    one.record_gc_run
    expect(Integer(REDIS.call("GET", Registry::GC_LAST_RUN))).to be_within(5_000).of(server_ms + 600_000)
    expect(one.gc_needed?).to be(false)
  end

  it "a Time.now that answers with a fraction of a second, or an odd class, is understood" do
    allow(Time).to receive(:now).and_return(Time.at(Rational(3_000_000_001, 2)))
    one.register(request = task)
    expect(one.heartbeat_timestamp_for(request)).to be_within(1_000).of(1_500_000_000_500)
  end
end

RSpec.describe "In a test suite that uses Sidekiq's testing modes" do
  include RubyProcess

  # In a process of its own: the mode is global, and so is what Sidekiq's file changes.
  #
  # @return [Array<String>] the lines that it puts
  def in_a_process(script)
    outcome = ruby(<<~RUBY, warnings: false)
      require "sidekiq"
      require "sidekiq/testing"
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      class ReportJob
        include Sidekiq::Job
        def perform(*args) = puts("performed \#{args.inspect}")
      end
      requests = Array.new(2) { |number| task(args: [number]) }
      requests.each { |request| monitor.register(request) }
      sleep 0.005
      #{script}
    RUBY
    expect(outcome.status).to be_success, outcome.to_s
    outcome.output.lines(chomp: true)
  end

  it "fake! receives the recovered jobs, and Redis none" do
    lines = in_a_process(<<~RUBY)
      Sidekiq::Testing.fake!
      puts monitor.cleanup_orphaned_requests(0, nil)
      puts ReportJob.jobs.size
      puts ReportJob.jobs.map { |job| job["jid"] }.sort == requests.map { |request| request.task_handler.sidekiq_job["jid"] }.sort
    RUBY
    expect(lines).to eq(%w[2 2 true])
    expect(keys).not_to include("queue:default")
    expect(entries).to be_empty
  end

  it "fake! with a block receives them as well" do
    lines = in_a_process(<<~RUBY)
      Sidekiq::Testing.disable!
      Sidekiq::Testing.fake! { puts monitor.cleanup_orphaned_requests(0, nil) }
      puts ReportJob.jobs.size
    RUBY
    expect(lines).to eq(%w[2 2])
    expect(keys).not_to include("queue:default")
  end

  it "inline! performs them" do
    lines = in_a_process(<<~RUBY)
      Sidekiq::Testing.inline!
      puts monitor.cleanup_orphaned_requests(0, nil)
    RUBY
    expect(lines).to contain_exactly("performed [0]", "performed [1]", "2")
  end

  it "disable! lets Redis have them" do
    lines = in_a_process(<<~RUBY)
      Sidekiq::Testing.disable!
      puts monitor.cleanup_orphaned_requests(0, nil)
    RUBY
    expect(lines).to eq(%w[2])
    expect(queued.size).to eq(2)
  end
end
