# frozen_string_literal: true

require "spec_helper"
require "support/recording_logger"
require "support/registry"
require "support/sidekiq_hooks"

# That one which answers nil stops the job, and one that raises leaves it registered, is in spec/recovery/failing_pushes_spec.rb.
RSpec.describe "With a client middleware, a recovered job" do
  include Registry

  # Answers what a block makes of the job; the push goes on with it.
  class Rewriting
    def initialize(rewrite)
      @rewrite = rewrite
    end

    def call(_job_class, job, _queue, _redis_pool)
      @rewrite.call(job, yield)
    end
  end

  let(:logger) { RecordingLogger.new }

  def sweep(&rewrite)
    chain = Sidekiq.default_configuration.client_middleware
    chain.prepend(Rewriting, rewrite) if rewrite
    monitor.cleanup_orphaned_requests(300, logger)
  ensure
    chain.remove(Rewriting)
  end

  it "is pushed with the class, queue and args that it gives it, and settled" do
    id, = leave_orphans(task(args: [1]))
    swept = sweep do |job, result|
      job.merge!("class" => "OtherJob", "queue" => "slow", "args" => [2], "trace" => "t")
      result
    end
    expect([swept, queued.size, entries]).to eq([1, 0, []])
    expect(queued("slow")).to match([a_hash_including("class" => "OtherJob", "args" => [2], "trace" => "t")])
    expect(logger.infos).to eq(["[PatientHttp::Sidekiq] Re-enqueued orphaned request #{id} to ReportJob"])
  end

  it "is pushed as another Hash, where it answers one" do
    leave_orphans(task(args: [1]))
    expect(sweep { |job, _| job.merge("args" => ["another"], "jid" => "f" * 24) }).to eq(1)
    expect(queued).to match([a_hash_including("args" => ["another"], "jid" => "f" * 24)])
    expect(entries).to be_empty
  end

  it "is handled when it answers false, as when it answers nil" do
    leave_orphans(task)
    expect(sweep { false }).to eq(1)
    expect([queued, entries, logger.lines]).to eq([[], [], []])
  end

  it "is scheduled where it gives it a time" do
    leave_orphans(task(args: [1]))
    later = Time.now.to_f + 3_600
    expect(sweep { |job, result| job["at"] = later and result }).to eq(1)
    expect(REDIS.call("ZRANGE", "schedule", 0, -1, "WITHSCORES")).to match([[a_string_including('"args":[1]'), later]])
    expect(entries).to be_empty
  end

  it "is pushed anew as it was registered after a middleware spoiled it in place and failed" do
    id, = leave_orphans(task(args: [["a"], {"b" => 1}]))
    expect(sweep { |job, _| job["args"].first << "spoiled" and job["args"].last["b"] = 2 and raise IOError }).to eq(0)
    age(id)
    expect(sweep).to eq(1)
    expect(queued.first["args"]).to eq([["a"], {"b" => 1}])
  end

  # One that encrypts without encoding, for instance: Sidekiq cannot write what it left, but the job as registered is well.
  {"no UTF-8" => "\xFF".b, "no number" => Float::NAN}.each do |kind, value|
    it "is never given up because one leaves what is #{kind} in its args, however often" do
      allow(PatientHttpMonitor).to receive(:settings)
        .and_return(PatientHttpMonitor::Settings.new.tap { |settings| settings.recovery_limit = 1 })
      id, = leave_orphans(task(args: ["plain"]))
      5.times { age(id) && sweep { |job, result| job["args"][0] = value and result } }
      expect([entries, dead_set]).to eq([[id], []])
      expect(logger.errors.size).to eq(5)
      age(id)
      expect([sweep, queued.first["args"]]).to eq([1, ["plain"]])
    end
  end

  it "is settled although one unregisters it, or sweeps, in the middle of the push" do
    owner = monitor
    requests = Array.new(3) { |number| task(args: [number]) }
    requests.each { |request| owner.register(request) }
    age(*requests.map { |request| owner.full_task_id(request.id) })
    swept = sweep do |_, result|
      owner.unregister(requests.last)
      monitor.cleanup_orphaned_requests(300, nil)
      result
    end
    expect(swept).to be_between(1, 3)
    expect(entries).to be_empty
    expect(queued.map { |job| job["args"].first }).to include(0, 1)
  end

  it "knows in it which Redis it goes to: the pool of Sidekiq::Client.via" do
    pools = []
    leave_orphans(task)
    via = Sidekiq::RedisConnection.create(url: REDIS.url)
    chain = Sidekiq.default_configuration.client_middleware
    chain.add(Class.new { define_method(:call) { |_, _, _, pool, &block| (pools << pool) && block.call } })
    Sidekiq::Client.via(via) { monitor.cleanup_orphaned_requests(300, nil) }
    expect(pools).to match([equal(via)])
  ensure
    chain.clear
  end
end
