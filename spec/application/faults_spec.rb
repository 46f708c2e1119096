# frozen_string_literal: true

require "spec_helper"
require "support/lane"
return unless Lane.has?("async", __FILE__)

require "support/application"

RSpec.describe "The requests of an application in trouble" do
  include_context "with an application"

  let(:times) { -> { random.rand(0.02..3.0).round(3) } }

  # @return [Array<String>] what was enqueued and is nowhere to be seen: not in the queue, not in flight, not answered. Read in the
  #   order in which a request goes, so that one that moves on meanwhile is seen
  def unaccounted
    known = enqueued.dup
    known - queued - in_flight.values - answered.keys
  end

  # A job that Sidekiq has taken from the queue and that has not come to `register` is in the memory of its process alone, and dies
  # with it: that is how Sidekiq fetches, and nothing of the monitor's. So a process is killed at a moment when it has none, and is
  # given none: what would be enqueued meanwhile, Redis would hand to the stopped process.
  #
  # @return [Hash{String => String}] what it had in flight: registry id to path
  def kill_without_jobs(process)
    missing = []
    30.times do
      enqueuing.synchronize do
        process.stop
        # What it has sent, Redis has carried out when it answers this: a fetch may have been on its way.
        redis.call("PING")
        missing = unaccounted
        # What the others have in their hands moves on.
        10.times { missing.empty? || (sleep(0.03) && missing &= unaccounted) }
        if missing.empty?
          left = in_flight.select { |id, _| process.own?(id) }
          process.kill
          # Redis has seen it go when it answers this.
          redis.call("PING")
          return left
        end
        process.signal(:CONT)
      end
      # It has heartbeats to send, or it would be taken for dead.
      sleep 0.3
    end
    raise "nowhere to be seen: #{missing}"
  end

  it "are all answered when one of three processes under load is killed: repeated is what it had written down already" do
    start_processes(3)
    orphans = {}
    told = []
    recovered = nil
    under_load(60, times: times) do
      scale.times do
        eventually { in_flight.size > 50 }
        victim = processes.last(3).first
        left = kill_without_jobs(victim)
        killed = monotonic
        told.concat(left.values & answered.keys)
        orphans.merge!(left)
        expect(left.size).to be > 5
        start_process.booted
        eventually { (in_flight.keys & left.keys).empty? }
        recovered = (monotonic - killed).round(1)
        # What is recovered again and again goes to the dead set: the next death is none of theirs.
        eventually { (left.values - answered.keys).empty? }
      end
    end
    counts = settled
    report_counts("one of three killed", counts, "in flight at its death #{orphans.size}", "recovered after #{recovered} s")
    expect(counts.lost).to eq([])
    expect(counts.repeated).to match_array(told.uniq)
    expect(counts.asked_again - orphans.values).to eq([])
    expect(processes.reject(&:ended?).each { |process| process.signal(:TERM) }.map(&:terminate)).to all(be_success)
    expect(left_behind).to eq([])
  end

  it "are repeated, and not lost, when a process dies between writing an answer down and forgetting the request" do
    dying = start_process(dies_after: 3).booted
    Array.new(10) { enqueue("held") }
    eventually { server.asked.size == 10 }
    server.let_go
    eventually { dying.ended? }
    told = answered.keys
    left = in_flight.values
    expect(told & left).not_to be_empty
    start_process.booted
    counts = settled
    report_counts("killed with an answer written down", counts, "in flight at its death #{left.size}")
    expect(counts.lost).to eq([])
    expect(counts.repeated).to match_array(told & left)
    expect(processes.last.terminate).to be_success
    expect(left_behind).to eq([])
  end

  # Longer than a proof of life, and long enough for heartbeats to be too old. Not as long as Sidekiq waits for an answer.
  it "are answered once each when Redis stands still for a while" do
    start_processes(3)
    under_load(60, times: times) do
      scale.times do
        sleep 1
        redis.freeze_for_a_while { sleep 2.5 }
        sleep 1
      end
    end
    counts = settled
    report_counts("Redis frozen", counts)
    expect(counts.not_answered_once).to eq({})
    expect(counts.not_asked_once).to eq({})
    expect(processes.each { |process| process.signal(:TERM) }.map(&:terminate)).to all(be_success)
    expect(left_behind).to eq([])
  end

  it "are answered once each when Redis is killed and comes back with what it had" do
    start_processes(3)
    scale.times do
      # All are in flight then: a job that Sidekiq takes from the queue as Redis dies would be lost on its way to it.
      before = enqueued.size
      120.times { enqueue(random.rand(1.5..5).round(3)) }
      eventually { queued.empty? && (enqueued.drop(before) - in_flight.values - answered.keys).empty? }
      redis.kill
      sleep 2.5
      redis.start
      settled
    end
    report_counts("Redis killed and started again", counts)
    expect(counts.not_answered_once).to eq({})
    expect(counts.not_asked_once).to eq({})
    expect(processes.each { |process| process.signal(:TERM) }.map(&:terminate)).to all(be_success)
    expect(left_behind).to eq([])
  end
  it "are left to others when their process has to end while Redis is away" do
    old, = start_processes(1)
    held = Array.new(10) { enqueue("held") }
    eventually { server.asked.size == 10 }
    redis.kill
    old.signal(:TERM)
    server.let_go
    # Sidekiq's own threads may raise then, so that its status, and whether it comes to the shutdown event, is not told.
    old.terminate
    redis.start
    expect(in_flight.values).to match_array(held)
    start_process.booted
    counts = settled
    report_counts("ended without Redis", counts)
    expect(counts.not_answered_once).to eq({})
    expect(counts.asked_again).to match_array(held)
    expect(processes.last.terminate).to be_success
    expect(left_behind).to eq([])
  end
end
