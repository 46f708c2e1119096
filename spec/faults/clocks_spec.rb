# frozen_string_literal: true

require "spec_helper"
require_relative "../support/fleet"
require_relative "../support/wrong_clocks"

# Redis has a clock of its own, which is right.
RSpec.describe "Two processes, one with its clock 10 minutes ahead and one 10 minutes behind," do
  include_context "with a fleet"
  include WrongClocks

  # By how much a process may mistake the server's clock, in ms; what passes while it is asked comes on top.
  let(:tolerance) { 200 }
  let(:fake_monotonic) { false }

  def start(minutes, **options)
    member(env: wrong_clock(minutes, fake_monotonic: fake_monotonic), heartbeat_interval: 2, orphan_threshold: 300, **options)
  end

  # @return [Array(Integer, Range)] what the block answered, and when it was asked, by the server's clock in ms
  def timed
    before = server_ms
    answer = yield
    [answer, before..server_ms]
  end

  # Asks each one again and again until its answer is true.
  #
  # @param askers [Array<#call>]
  # @return [Array<Array(Integer, Integer)>] for each the moments, in ms since a recorded one, between which its answer became true:
  #   the last question that was answered otherwise was asked at the first, and the first true answer was there at the second
  def turning_points(recorded, *askers)
    points = askers.to_h { |asker| [asker, [0, nil]] }
    until (open = points.select { |_, (_, yes)| yes.nil? }).empty?
      open.each do |asker, point|
        answer, asked = timed { asker.call }
        raise "never true" if asked.end - recorded > 20_000

        point[answer ? 1 : 0] = (answer ? asked.end : asked.begin) - recorded
      end
    end
    points.values
  end

  def expect_neither_early_nor_late(moments, due)
    expect(moments.last).to be >= due - tolerance
    expect(moments.first).to be <= due + tolerance
  end

  def error_of(value, asked)
    [asked.begin - value, value - asked.end, 0].max
  end

  {"and their monotonic clocks right" => false, "and their monotonic clocks as wrong" => true}.each do |how, fake|
    describe how do
      let(:fake_monotonic) { fake }
      let!(:processes) { {ahead: start(10), behind: start(-10)} }

      before do
        [600, -600].zip(processes.values) do |seconds, process|
          expect(process.call("wall_clock") - Time.now.to_f).to be_within(30).of(seconds)
        end
      end

      it "agree with the server's clock about each score and about the last run" do
        errors = processes.flat_map do |name, process|
          entry = "#{process.process_id}/#{name}"
          [
            timed { process.call("register", name) && nil || score(entry) },
            timed { age(entry) && process.call("heartbeat") && nil || process.call("monitor_answers", "ping_process") || score(entry) },
            timed { process.call("monitor_answers", "record_gc_run") || Integer(REDIS.call("GET", Registry::GC_LAST_RUN)) }
          ].map { |value, asked| error_of(value, asked) }
        end
        report("scores under wrong clocks: at most #{errors.max.round} ms beside the server's clock")
        expect(errors).to all(be <= tolerance)
      end

      it "take each other's and their own orphans when they are due, neither early nor late" do
        processes.keys.product(processes.keys).each do |writer, collector|
          process = processes.fetch(writer)
          process.call("register", name = "#{writer}-#{collector}")
          registered = score("#{process.process_id}/#{name}")
          moments, = turning_points(registered, -> { processes.fetch(collector).call("sweep", 0.6) == 1 })
          expect_neither_early_nor_late(moments, 600)
        end
        expect(queued_tasks).to match_array(%w[ahead-ahead ahead-behind behind-ahead behind-behind])
      end

      it "leases by the server's clock" do
        leased = processes.map do |name, process|
          entry, = leave_orphans(task(args: [name]))
          timed { process.call("sweep_in_vain", 300) && score(entry) }
        end
        expect(leased.map { |value, asked| error_of(value, asked) }).to all(be <= tolerance)
        expect([queued, processes.map { |_, process| process.call("sweep", 300) }]).to eq([[], [0, 0]])
      end

      it "collect when it is due, whoever recorded the last run" do
        processes.values.zip(processes.values.reverse) do |one, other|
          one.call("monitor_answers", "record_gc_run")
          recorded = Integer(REDIS.call("GET", Registry::GC_LAST_RUN))
          askers = [one, other].map { |process| -> { process.call("monitor_answers", "gc_needed?") } }
          turning_points(recorded, *askers).each { |moments| expect_neither_early_nor_late(moments, 2_000) }
        end
      end
    end
  end

  # The heartbeat threads need a monotonic clock that Ruby's own waits agree with.
  {ahead: -10, behind: 10}.each do |killed, peer_minutes|
    it "leave each other alone while both live, and recover the one that is killed, the #{killed} one, in time" do
      settings = {heartbeat_interval: 0.5, orphan_threshold: 1}
      victim, peer = start(-peer_minutes, **settings), start(peer_minutes, **settings)
      {victim => "victim", peer => "peer"}.each do |process, name|
        process.call("register", name)
        process.call("live")
      end
      wait_for_sweeps(3)
      expect([queued, [victim, peer].map { |process| process.call("registered") }]).to eq([[], [["victim"], ["peer"]]])
      victim.kill
      time = -monotonic + moment_when_queued(["victim"], within: 10)
      report(format("killed under a wrong clock: recovery %<time>.2f s of 3.25 s", time: time))
      expect(time).to be <= 3.25
      expect([queued_tasks, peer.call("registered")]).to eq([["victim"], ["peer"]])
    end
  end

  describe "with the plain Ruby class, as the control," do
    let(:ahead) { start(10, plain: true) }
    let(:behind) { start(-10, plain: true) }

    it "rob each other" do
      behind.call("register", "fresh")
      expect(ahead.call("sweep", 300)).to eq(1)
      report("control, wrong clocks: an entry of this moment is taken with a threshold of 300 s")
    end

    it "wait for each other" do
      ahead.call("register", "stale")
      sleep 1.5
      expect([behind.call("sweep", 1), entries.size]).to eq([0, 1])
      late = score(entries.first) - server_ms
      report("control, wrong clocks: an entry that is due is left for #{(late / 1000.0).round + 600} s more")
    end

    it "collect all the time, or not when it is due" do
      behind.call("monitor_answers", "record_gc_run")
      expect(ahead.call("monitor_answers", "gc_needed?")).to be(true)
      ahead.call("monitor_answers", "record_gc_run")
      sleep 2.2
      expect(behind.call("monitor_answers", "gc_needed?")).to be(false)
    end
  end
end
