# frozen_string_literal: true

require "spec_helper"
require_relative "../support/fleet"

RSpec.describe "A process that is killed while a peer lives" do
  include_context "with a fleet"

  let(:interval) { 0.5 }
  # 2 x heartbeat_interval, in whole seconds.
  let(:capacity_ttl) { 1 }

  def bound(threshold)
    [threshold, capacity_ttl].max + (2.5 * interval) + 1
  end

  def start(threshold, **options)
    member(heartbeat_interval: interval, orphan_threshold: threshold, **options)
  end

  def tasks_of(name)
    Array.new(5) { |number| "#{name}-#{number}" }
  end

  # Kills each at another moment of its and the peer's rounds.
  #
  # @return [Array<Float>] how long it took until each one's jobs were in the queue
  def kill_and_watch(victims, threshold)
    killed = victims.transform_values do |victim|
      sleep rand(0.0..interval)
      victim.kill
      monotonic
    end
    killed.map { |name, moment| moment_when_queued(tasks_of(name), within: bound(threshold) + 1) - moment }
  end

  def living_victims(names, threshold, **options)
    victims = names.to_h { |name| [name, start(threshold, **options)] }
    victims.each do |name, victim|
      victim.call("register", *tasks_of(name))
      victim.call("live")
    end
  end

  {"the capacity key's TTL" => 0.5, "orphan_threshold" => 2}.each do |which, threshold|
    it "is recovered within #{which} and two and a half rounds, though nobody counts" do
      peer = start(threshold)
      victims = living_victims(%w[one two three four], threshold)
      peer.call("register", *tasks_of("peer"))
      peer.call("live")
      times = kill_and_watch(victims, threshold)
      report(format("killed processes: worst recovery %<worst>.2f s of %<bound>.2f s", worst: times.max, bound: bound(threshold)))
      expect(times).to all(be <= bound(threshold))
      expect(queued_tasks).to match_array(victims.keys.flat_map { |name| tasks_of(name) })
      expect(peer.call("registered")).to eq(tasks_of("peer"))
    end
  end

  it "is recovered in the same time when it held the GC lock, in the middle of a sweep of its own" do
    threshold = 1
    leave_orphans(task(args: ["of an earlier one"]))
    victim = start(threshold)
    peer = start(threshold)
    victim.call("register", *tasks_of("victim"))
    expect(victim.call("hang_in_collecting")).to be(true)
    [victim, peer].each { |process| process.call("live") }
    sleep threshold + interval
    expect([REDIS.call("GET", Registry::GC_LOCK), queued_tasks]).to eq([victim.process_id, []])
    expect(ttl(Registry::GC_LOCK)).to be > 100
    victim.kill
    killed = monotonic
    time = moment_when_queued(["of an earlier one", *tasks_of("victim")], within: bound(threshold) + 1) - killed
    report(format("killed with the GC lock: recovery %<time>.2f s of %<bound>.2f s", time: time, bound: bound(threshold)))
    expect(time).to be <= bound(threshold)
    expect(queued_tasks.tally.values).to all(eq(1))
    expect(eventually { entries.empty? }).to be(true)
    expect(REDIS.call("GET", Registry::GC_LOCK)).not_to eq(victim.process_id)
  end

  it "is not recovered by the plain Ruby class, as the control" do
    threshold = 0.5
    peer = start(threshold, plain: true)
    victims = living_victims(%w[one], threshold, plain: true)
    peer.call("live")
    times = kill_and_watch(victims, threshold)
    report("control, killed processes: #{entries.size} of 5 not recovered after #{(bound(threshold) + 1).round(2)} s")
    expect(times).to eq([Float::INFINITY])
    expect([entries.size, queued]).to eq([5, []])
  end
end

RSpec.describe "A live process with stale entries" do
  include_context "with a fleet"

  let(:threshold) { 0.5 }
  let(:peer) { member(heartbeat_interval: 0.5, orphan_threshold: threshold) }
  let(:tasks) { %w[one two three] }
  # A capacity TTL of 4 s: what may be asked of a machine under load.
  let(:process) { member(heartbeat_interval: 2, orphan_threshold: threshold) }

  def expect_nothing_taken
    expect([queued_tasks, process.call("registered").first(3)]).to eq([[], tasks])
  end

  def stale?
    tasks.all? { |id| score("#{process.process_id}/#{id}") < server_ms - (threshold * 1000) }
  end

  before do
    # On a machine under load starting takes longer than a proof of life holds.
    [process, peer].each(&:process_id)
    process.call("register", *tasks)
    process.call("beat")
    peer.call("live")
  end

  {"pinging" => "only_ping", "registering" => "only_register"}.each do |what, how|
    it "is not robbed while its heartbeat thread is stuck and it goes on #{what}, and comes back" do
      process.call(how)
      expect(eventually { stale? }).to be(true)
      wait_for_sweeps(4)
      expect(stale?).to be(true)
      expect_nothing_taken
      process.call("live")
      expect(stale?).to be(false)
      expect_nothing_taken
    end
  end

  it "is not robbed when it was stopped for less than its capacity key lives, and goes on" do
    key = "#{Registry::PROCESSES}:#{process.process_id}:max_connections"
    process.call("live")
    process.stop
    # More is left than one round of its heartbeat thread takes.
    expect(eventually { REDIS.call("PTTL", key) < 2_500 }).to be(true)
    expect([stale?, REDIS.call("EXISTS", key)]).to eq([true, 1])
    process.continue
    expect(eventually { !stale? }).to be(true)
    wait_for_sweeps(2)
    expect_nothing_taken
  end
end
