# frozen_string_literal: true

require "spec_helper"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/ruby_process"
require_relative "../support/sidekiq_hooks"
require_relative "../support/sidekiq_web"

RSpec.describe "A job that kills each process it runs in" do
  let(:settings) { PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 3 } }
  let(:logger) { RecordingLogger.new }
  let(:job) { {jid: "b4a577edbccf1d805744efa9", class: "PoisonJob", args: ["arsenic"]} }
  let(:seventy_two_hours) { 259_200 }

  before { allow(PatientHttpMonitor).to receive(:settings).and_return(settings) }

  # Another process takes the job, registers its request, and dies.
  def kill_another_process(**job)
    leave_orphans(task(**job)).first
  end

  def recover(times = 1)
    Array.new(times) do
      kill_another_process(**job)
      monitor.cleanup_orphaned_requests(300, logger)
    end
  end

  def counters
    keys("sidekiq:patient_http:*#{job[:jid]}*")
  end

  it "is recovered three times, and goes to Sidekiq's dead set the fourth time", gc_stress: 1 do
    expect(recover(4)).to eq([1, 1, 1, 0])
    expect(queued.size).to eq(3)
    expect(dead_set.map(&:item)).to contain_exactly(a_hash_including(job.transform_keys(&:to_s)))
    expect(entries).to be_empty
  end

  it "is recovered three times by default, outside a test suite" do
    allow(PatientHttpMonitor).to receive(:settings).and_return(PatientHttpMonitor::Settings.new)
    outside_test_environment { expect(recover(4)).to eq([1, 1, 1, 0]) }
    expect(dead_set.size).to eq(1)
  end

  it "is recovered any number of times in a test suite, where no limit was set" do
    allow(PatientHttpMonitor).to receive(:settings).and_return(PatientHttpMonitor::Settings.new)
    expect(recover(6)).to eq([1] * 6)
    expect(dead_set).to be_empty
  end

  it "is recovered as often as the limit says" do
    settings.recovery_limit = 1
    expect(recover(3)).to eq([1, 0, 0])
    expect(queued.size).to eq(1)
    expect(dead_set.map(&:jid).uniq).to eq([job[:jid]])
  end

  it "is recovered any number of times with a limit of nil" do
    settings.recovery_limit = nil
    expect(recover(6)).to eq([1] * 6)
  end

  it "is pushed the same each time" do
    recover(3)
    expected = task(**job).task_handler.sidekiq_job
    expect(queued.map { |pushed| pushed.slice(*expected.keys) }).to eq([expected] * 3)
    expect(queued.map(&:keys).uniq.size).to eq(1)
  end

  it "does not count for another job" do
    recover(3)
    kill_another_process(**job, jid: "another")
    expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(1)
  end

  it "gets one error line, which says where it went, and no other line" do
    recover(3)
    logger.lines.clear
    id = kill_another_process(**job)
    monitor.cleanup_orphaned_requests(300, logger)
    expect(logger.lines.size).to eq(1)
    expect(logger.errors.first)
      .to match(/\A\[PatientHttp::Sidekiq\] Failed to re-enqueue orphaned request #{Regexp.escape(id)}: \S+ - .*dead set/)
    expect(logger.errors.first).not_to include("arsenic")
  end

  it "is handed to the death handlers, once" do
    called = deaths { recover(4) }
    expect(called.size).to eq(1)
    expect(called.first.first).to include(job.transform_keys(&:to_s))
    expect(called.first.last).to be_a(PatientHttpMonitor::PoisonError)
  end

  it "can be retried from Sidekiq's dead set" do
    recover(4)
    dead_set.first.retry
    expect([queued.size, dead_set.size]).to eq([4, 0])
    expect(queued.last).to include(job.transform_keys(&:to_s))
  end

  it "shows on Sidekiq's pages" do
    recover(4)
    expect([page_of_the_dead_set, pages_of_dead_jobs]).to eq([200, [200]])
    expect(shown_dead_jobs).to contain_exactly(a_hash_including(
      display_class: "PoisonJob", display_args: ["arsenic"], queue: "default", jid: job[:jid], error?: true,
      "error_class" => "PatientHttpMonitor::PoisonError", "error_message" => /dead set|recover/
    ))
  end

  it "shows on Sidekiq's pages where its queue is a number, which a push accepts" do
    4.times do |number|
      write_entry("dead:1:00ff/#{number}", payload: JSON.generate({"class" => "PoisonJob", "args" => [], "queue" => 5, "jid" => "a"}))
      monitor.cleanup_orphaned_requests(300, logger)
    end
    expect([page_of_the_dead_set, pages_of_dead_jobs]).to eq([200, [200]])
    expect(shown_dead_jobs).to contain_exactly(a_hash_including(queue: "5"))
  end

  it "does not stop the others" do
    recover(3)
    kill_another_process(**job)
    leave_orphans(task, task)
    expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(2)
  end

  it "does not stop the others when a death handler raises" do
    recover(3)
    kill_another_process(**job)
    leave_orphans(task, task)
    handler = ->(_, _) { raise IOError, "nobody answers" }
    Sidekiq.default_configuration.death_handlers << handler
    sidekiq_log(:fatal) { expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(2) }
    expect([dead_set.size, entries]).to eq([1, []])
  ensure
    Sidekiq.default_configuration.death_handlers.delete(handler)
  end

  it "stays registered, with a line, while the dead set cannot take it, and does not stop the others" do
    recover(3)
    id = kill_another_process(**job)
    leave_orphans(task, task)
    REDIS.call("SET", "dead", "of another type")
    expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(2)
    expect(entries).to eq([id])
    expect(logger.errors.last).to match(/#{Regexp.escape(id)}: RedisClient::\w+ - /)
    REDIS.call("DEL", "dead")
    age(id)
    monitor.cleanup_orphaned_requests(300, logger)
    expect([dead_set.size, entries]).to eq([1, []])
  end

  it "is counted for 72 hours from the first recovery on" do
    recover
    expect(counters.map { |key| ttl(key) }).to eq([seventy_two_hours])
    REDIS.call("EXPIRE", counters.first, 1_000)
    recover
    expect(counters.map { |key| ttl(key) }).to contain_exactly(be_within(10).of(1_000))
  end

  it "is counted for as long as was set, rounded up" do
    settings.recovery_window = 1_000.5
    recover
    expect(counters.map { |key| ttl(key) }).to eq([1_001])
  end

  it "is not counted when it goes to the dead set" do
    recover(3)
    before = counters.to_h { |key| [key, REDIS.call("GET", key)] }
    recover
    expect([dead_set.size, counters.to_h { |key| [key, REDIS.call("GET", key)] }]).to eq([1, before])
  end

  it "is one dead job, though its entry is buried twice, also without a jid" do
    [job, job.merge(jid: nil)].each do |job|
      payload = JSON.generate(task(**job).task_handler.sidekiq_job.compact)
      5.times do
        write_entry("dead:1:00ff/the same", payload: payload)
        monitor.cleanup_orphaned_requests(300, logger)
      end
      expect([queued.size, dead_set.size]).to eq([3, 1])
      REDIS.call("DEL", "dead", "queue:default")
    end
  end

  {"an Integer" => '"jid":12345', "named twice" => '"jid":"first","jid":"last"'}.each do |kind, jid|
    it "is counted though its jid is #{kind}" do
      counts = Array.new(4) do |number|
        write_entry("dead:1:00ff/#{number}", payload: %({"class":"PoisonJob","args":["arsenic"],"queue":"default",#{jid}}))
        monitor.cleanup_orphaned_requests(300, logger)
      end
      expect([counts, dead_set.size]).to eq([[1, 1, 1, 0], 1])
    end
  end

  it "is recovered again once the count has run out" do
    recover(3)
    REDIS.call("DEL", *counters)
    expect(recover(4)).to eq([1, 1, 1, 0])
  end

  it "is not counted when the push raises" do
    id = kill_another_process(**job)
    on_push(->(_) { raise IOError }) { monitor.cleanup_orphaned_requests(300, logger) }
    expect(counters).to be_empty
    age(id)
    monitor.cleanup_orphaned_requests(300, logger)
    expect(counters.size).to eq(1)
  end

  it "is recovered though its counter holds something odd, and the jobs after it too" do
    recover
    counters.each { |key| REDIS.call("SET", key, "many") }
    age(kill_another_process(**job), seconds: 7_200)
    leave_orphans(task, task)
    expect(monitor.cleanup_orphaned_requests(300, logger)).to eq(3)
    expect(entries).to be_empty
  end

  describe "and says `dead: false`" do
    let(:job) { super().merge(dead: false) }

    it "is discarded with a line instead" do
      expect(recover(4)).to eq([1, 1, 1, 0])
      expect([queued.size, dead_set, entries]).to eq([3, [], []])
      expect(logger.errors.size).to eq(1)
      expect(logger.errors.first).to include("discarded")
    end

    it "is handed to the death handlers all the same" do
      expect(deaths { recover(4) }.map(&:first)).to contain_exactly(a_hash_including(job.transform_keys(&:to_s)))
    end
  end
end

RSpec.describe "A job with several requests in flight, whose process dies," do
  let(:settings) { PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 3 } }
  let(:jid) { "b4a577edbccf1d805744efa9" }

  before { allow(PatientHttpMonitor).to receive(:settings).and_return(settings) }

  # Of each request: the process dies, another one sweeps.
  def crash(requests)
    leave_orphans(*Array.new(requests) { |number| task(jid: jid, args: [number]) })
    monitor.cleanup_orphaned_requests(300, nil)
  end

  def recoveries
    keys("sidekiq:patient_http:*#{jid}*").map { |key| REDIS.call("GET", key) }
  end

  # More than the limit, and more than one sweep leases at once.
  [5, 120].each do |requests|
    it "has all #{requests} of them pushed in one sweep, which counts as one recovery" do
      expect(crash(requests)).to eq(requests)
      expect(queued.map { |job| job["args"].first }).to match_array(0...requests)
      expect([dead_set, entries, recoveries]).to eq([[], [], ["1"]])
    end

    it "has all #{requests} of them pushed after two more crashes, and none after that" do
      expect(Array.new(4) { crash(requests) }).to eq([requests, requests, requests, 0])
      expect([entries, recoveries]).to eq([[], ["3"]])
    end
  end
end

RSpec.describe "Poison that Sidekiq takes and its pages fail on" do
  let(:settings) { PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 1 } }

  before { allow(PatientHttpMonitor).to receive(:settings).and_return(settings) }

  def bury(job)
    REDIS.call("SET", "sidekiq:patient_http:recoveries:poison", 1)
    write_entry("dead:1:00ff/poison", payload: JSON.generate({"class" => "PoisonJob", "jid" => "poison", "args" => []}.merge(job)))
    expect(monitor.cleanup_orphaned_requests(300, nil)).to eq(0)
    expect([entries, dead_set.size]).to eq([[], 1])
  end

  {
    "an encrypted job without arguments" => {"encrypt" => true},
    "a job of ActiveJob without arguments" =>
      {"class" => "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper", "wrapped" => "ReportJob"},
    "a job that was created at no time" => {"created_at" => "soon"},
    "a job that was enqueued at no time" => {"enqueued_at" => {}},
    "a job with a backtrace that is none" => {"error_backtrace" => "garbage"}
  }.each do |kind, job|
    it "is in the dead set in another form where it is #{kind}, and the pages show it" do
      bury(job)
      expect([page_of_the_dead_set, pages_of_dead_jobs]).to eq([200, [200]])
      expect(dead_set.first.args).to match([a_hash_including(job)])
    end
  end

  {
    "an encrypted job" => {"args" => ["open", "secret"], "encrypt" => true},
    "a job of ActiveJob" => {"class" => "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper", "wrapped" => "ReportJob",
                             "args" => [{"job_class" => "ReportJob", "arguments" => [1]}]}
  }.each do |kind, job|
    it "is none where it is #{kind} that is whole, which can be retried from there" do
      bury(job)
      expect(dead_set.first.item).to include(job)
      expect([page_of_the_dead_set, pages_of_dead_jobs]).to eq([200, [200]])
    end
  end
end

RSpec.describe "Sidekiq's API, which is large," do
  include RubyProcess

  it "is loaded when the first job goes to the dead set, and not before" do
    outcome = ruby(<<~RUBY, env: {"REDIS_URL" => REDIS.url, "RACK_ENV" => "production"})
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      PatientHttpMonitor.settings.recovery_limit = 1
      Sidekiq.default_configuration.logger.level = Logger::FATAL
      states = Array.new(2) do
        monitor.register(task(jid: "b4a577edbccf1d805744efa9"))
        sleep 0.01
        recovered = monitor.cleanup_orphaned_requests(0, nil)
        [recovered, defined?(Sidekiq::DeadSet)]
      end
      print states.inspect
    RUBY
    expect(outcome.output).to eq('[[1, nil], [0, "constant"]]'), outcome.to_s
  end
end
