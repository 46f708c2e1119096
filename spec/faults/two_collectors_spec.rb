# frozen_string_literal: true

require "spec_helper"
require_relative "../support/dying_collectors"
require_relative "../support/many_orphans"
require_relative "../support/observing"
require_relative "../support/plain_ruby_monitor"
require_relative "../support/sidekiq_hooks"

# As when the lock's TTL ran out under a collector that still sweeps: nothing here takes the lock.
RSpec.describe "Two collectors in processes of their own, sweeping at the same time" do
  include Observing

  # Each begins when the other is there too.
  #
  # @param makers [Array<#call>] each makes a collector
  # @return [Array<Integer>] how many jobs each re-enqueued
  def sweep_together(*makers, threshold: 300)
    gate, opener = IO.pipe
    collectors = makers.map do |make|
      fork_collector do |report|
        opener.close
        collector = make.call
        gate.read
        report.puts(collector.cleanup_orphaned_requests(threshold, nil))
      end
    end
    opener.close
    collectors.map { |collector| Integer(report_of(collector)) }
  ensure
    gate.close
  end

  it "push each of 10,000 jobs, and none of them twice" do
    jobs = many_orphans(10_000)
    counts = sweep_together(-> { monitor }, -> { monitor })
    account = account_of(jobs)
    RSpec.configuration.reporter.message("      #{counts.join(" + ")} re-enqueued; #{account}")
    expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0])
    expect([counts.sum, account.repeated]).to eq([10_000, []])
    expect(counts).to all(be_positive)
  end

  it "push each of 10,000 jobs, though one of them is a plain Ruby one" do
    jobs = many_orphans(10_000)
    counts = sweep_together(-> { monitor }, -> { PlainRubyMonitor.new(config) })
    account = account_of(jobs)
    RSpec.configuration.reporter.message("      #{counts.first} by ours + #{counts.last} by the plain one; #{account}")
    expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0])
    expect([counts.sum, account.repeated]).to eq([10_000, []])
    expect(counts).to all(be_positive)
  end

  # The seam: one stands still for longer than its leases last, and goes on with what the other has taken over.
  it "push no job more than twice, and one at most, when one of them stands still while its leases run out" do
    random = Random.new(RSpec.configuration.seed)
    figures = Array.new(3) do
      REDIS.call("FLUSHALL")
      jobs = many_orphans(2_000)
      account = sweep_around_a_pause(jobs, random)
      where = "seed #{random.seed}, #{account}"
      expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0]), where
      expect([account.repeated.size, account.most]).to(satisfy { |repeated, most| repeated <= 1 && most <= 2 }, where)
      account.repeated.size
    end
    RSpec.configuration.reporter.message("      seed #{random.seed}: 3 pauses in sweeps of 2,000, #{figures.join(" + ")} repeated")
  end

  def sweep_around_a_pause(jobs, random)
    pid, = paused = fork_collector do |report|
      on_push(->(job) { report.puts(job["jid"]) }) { monitor.cleanup_orphaned_requests(1, nil) }
    end
    random.rand(50..500).times { paused.last.gets }
    Process.kill(:STOP, pid)
    eventually do
      monitor.cleanup_orphaned_requests(1, nil)
      entries.empty?
    end
    Process.kill(:CONT, pid)
    report_of(paused)
    account_of(jobs)
  end
end
