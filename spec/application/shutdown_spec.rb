# frozen_string_literal: true

require "spec_helper"
require "support/lane"
return unless Lane.has?("async", __FILE__)

require "support/application"

RSpec.describe "The requests of an application" do
  include_context "with an application"

  # Most are done while a process that ends still waits for them; a few are not.
  let(:times) { -> { (random.rand < 0.06) ? 4.0 : random.rand(0.02..0.5).round(3) } }

  it "are answered once each by one process that has many in flight" do
    start_processes(1)
    (400 * scale).times { enqueue(random.rand(0.0..0.5).round(3)) }
    counts = settled
    report_counts("one process", counts)
    expect(counts.not_answered_once).to eq({})
    expect(counts.not_asked_once).to eq({})
    expect(processes.first.terminate).to be_success
    expect(left_behind).to eq([])
  end

  it "are answered once each when their process is quieted, and ends while some are in flight" do
    old, = start_processes(1)
    short = Array.new(30) { enqueue(random.rand(0.5..1.5).round(3)) }
    held = Array.new(20) { enqueue("held") }
    eventually { server.asked.size == 50 }
    old.quiet
    untouched = Array.new(5) { enqueue(0.1) }
    eventually { (short - answered.keys).empty? }
    # Those that Sidekiq had begun to wait for are taken, and put back.
    expect(eventually { queued.sort == untouched.sort }).to be(true)
    # For longer than the threshold, and beside a process that collects: a quiet process is no dead one.
    new = start_process.booted
    eventually { (untouched - answered.keys).empty? }
    sleep 3.5
    expect(eventually { redis.call("EXISTS", Registry::GC_LAST_RUN) == 1 }).to be(true)
    expect(in_flight.each_key).to all(satisfy { |id| old.own?(id) })
    expect(counts.not_asked_once).to eq({})
    expect(old.terminate).to be_success
    eventually { held.all? { |path| server.asked[path] == 2 } }
    server.let_go
    counts = settled
    report_counts("quiet, then TERM", counts)
    expect(counts.not_answered_once).to eq({})
    expect(counts.asked_again).to match_array(held)
    expect(new.log).not_to include("orphaned")
    expect(new.terminate).to be_success
    expect(left_behind).to eq([])
  end

  it "are answered once each while three processes under load are replaced one by one" do
    start_processes(3)
    under_load(60, times: times) do
      scale.times do
        processes.last(3).each.with_index do |old, number|
          start_process.booted
          # As some deploys do, and some do not.
          old.quiet if number.even?
          expect(old.terminate).to be_success
        end
      end
    end
    counts = settled
    given_back = processes.flat_map(&:given_back)
    report_counts("rolling restart", counts, "given back #{given_back.size}")
    expect(counts.not_answered_once).to eq({})
    # A request that was given back may have been sent already; no other is sent again.
    expect(counts.asked.select { |path, times| times > 1 + given_back.count(path) }).to eq({})
    processes.last(3).each { |process| process.signal(:TERM) }
    expect(processes.last(3).map(&:terminate)).to all(be_success)
    expect(processes.map(&:log).grep(/orphaned/)).to eq([])
    expect(left_behind).to eq([])
  end
end
