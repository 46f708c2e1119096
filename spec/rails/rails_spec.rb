# frozen_string_literal: true

require "spec_helper"
require "support/observing"
require "support/registry"
require "support/rails_application"

# For `bin/lane rails` alone, which brings Rails and puma; .rspec leaves this folder out of every other run.
require "rails/version"

RSpec.describe "the gem in a Rails application" do
  include Observing

  # Not the one that Sidekiq takes unless it is told.
  let(:url) { REDIS.url(3) }
  let(:redis) { RedisClient.config(url: url).new_client }
  let(:application) { RailsApplication.new(@folder, redis: url) }

  around do |example|
    Dir.mktmpdir("patient_http_monitor") { |folder| @folder = File.realpath(folder) and example.run }
  end

  after { redis.close }

  def registered
    redis.call("ZRANGE", Registry::INDEX, 0, -1)
  end

  it "registers by `rails runner`, in the Redis of the initializer, and counts" do
    id, count, processes = application.run(<<~RUBY)
      [Requests.register("one"), PatientHttp::Sidekiq::TaskMonitor.inflight_count,
        PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process]
    RUBY

    expect(id).to end_with("/one")
    expect(registered).to eq([id])
    expect(count).to eq(1)
    expect(processes).to eq(id.split(":").first(2).join(":") => {"inflight" => 1, "max_capacity" => 10})
    expect(redis.call("TTL", Registry::INDEX)).to be > 6 * 86_400
  end

  it "takes part in eager loading, beside the application's own classes in the gem's namespace" do
    outcome = application.rails("zeitwerk:check")
    expect(outcome.output).to include("All is good!"), outcome.to_s
    expect(outcome.status).to be_success

    expect(application.run(<<~RUBY)).to eq(["7.2", true, true, true])
      [Rails.version[/\\A\\d+\\.\\d+/], Object.autoload?(:Requests).nil?, PatientHttp.autoload?(:Report).nil?,
        PatientHttpMonitor.installed?]
    RUBY
  end

  it "stores a job as JSON does in an application, where ActiveSupport has its own way to write a value" do
    stored, expected = application.run(<<~RUBY)
      moment = Time.utc(2026, 1, 2, 3, 4, 5.25r)
      arguments = [moment, moment.in_time_zone("UTC"), Date.new(2026, 1, 2), 1.5.to_d, 3.minutes, :symbol, 1..2, "<&>\u2028", "é",
        "<b>".html_safe, {a: 1}.with_indifferent_access, ActiveSupport::OrderedOptions.new.merge(b: 2), nil, 1.0e22, [[{}]]]
      job = Requests::JOB.merge("args" => arguments)
      id = Requests.register("one", job)
      [Sidekiq.redis { |redis| redis.call("HGET", PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_JOBS_KEY, id) }, JSON.generate(job)]
    RUBY

    expect(stored).to eq(expected)
    expect(stored).to include("2026-01-02")
  end

  it "hands an orphan's ActiveJob back to Sidekiq, telling Rails.logger" do
    recovered, job, again = application.run(<<~RUBY)
      ReportJob.perform_later("a", at: Time.current)
      job = JSON.parse(Sidekiq.redis { |redis| redis.call("RPOP", "queue:default") })
      Requests.register("one", job)
      Requests::MONITOR.remove_process
      [PatientHttp::Sidekiq::TaskMonitor.new(Requests::MONITOR.config).cleanup_orphaned_requests(-1.second, Rails.logger), job,
        JSON.parse(Sidekiq.redis { |redis| redis.call("RPOP", "queue:default") })]
    RUBY

    expect(recovered).to eq(1)
    expect(again.except("enqueued_at")).to eq(job.except("enqueued_at"))
    expect(registered).to be_empty
    expect(application.log).to match(/\[PatientHttp::Sidekiq\] Re-enqueued orphaned request \S+\/one to \S+JobWrapper$/)
  end

  it "gives a server and each of the workers it forks an id of their own" do
    application.serve do |master|
      answers = {}
      # Nothing says which worker takes a connection.
      eventually(within: 60) do
        answer = application.post("/requests")
        answers[answer["pid"]] ||= answer if answer
        answers.size == RailsApplication::WORKERS
      end

      ids = registered
      expect(answers.values).to all(include("parent" => master))
      expect(ids).to include(*answers.values.map { |answer| answer["registered"] })
      expect(ids.map { |id| Integer(id.split(":")[1]) }).to contain_exactly(master, *answers.keys)
      expect(ids.map { |id| id[/:(\h{16})\//, 1] }.uniq.size).to eq(1 + RailsApplication::WORKERS)
      expect(redis.call("SCARD", Registry::PROCESSES)).to eq(1 + RailsApplication::WORKERS)
    end
  end

  it "knows by RAILS_ENV that the application is under test" do
    code = <<~RUBY
      Requests.register("one")
      [PatientHttpMonitor.testing?, begin PatientHttp::Sidekiq::TaskMonitor.clear_all!; rescue => error; error.message end,
        PatientHttp::Sidekiq::TaskMonitor.inflight_count]
    RUBY

    expect(application.run(code)).to eq([false, "clear_all! is only allowed in test environment", 1])
    expect(application.run(code, environment: "test")).to eq([true, nil, 0])
  end
end
