# frozen_string_literal: true

require "spec_helper"
require_relative "../support/fleet"

RSpec.describe "After an outage of Redis" do
  include_context "with a fleet"

  let(:server) { RedisServer.start(appendonly: "yes", appendfsync: "always") }

  before { stub_const("REDIS", server) }
  after { server.stop }

  def shut_down
    server.call("SHUTDOWN")
  rescue RedisClient::ConnectionError
    nil
  ensure
    server.kill
  end

  it "no live process is robbed, and one that was killed meanwhile is recovered" do
    live = Array.new(3) { member(redis: server, heartbeat_interval: 0.5, orphan_threshold: 1) }
    dead = member(redis: server, heartbeat_interval: 0.5, orphan_threshold: 1)
    [*live, dead].each_with_index { |process, number| process.call("register", "task-#{number}") && nil || process.call("live") }
    dead_one = dead.process_id
    shut_down
    dead.kill
    # Past the capacity TTL of 1 s and the threshold of 1 s.
    sleep 2.5
    server.start
    expect(server.call("KEYS", "#{Registry::PROCESSES}:*").grep(/#{dead_one}/)).to be_empty
    expect(server.call("ZCARD", Registry::INDEX)).to eq(4)
    back = monotonic
    time = moment_when_queued(["task-3"], within: 20) - back
    report(format("after an outage of Redis: the dead one recovered in %<time>.2f s, 0 of 3 robbed", time: time))
    wait_for_sweeps(2)
    expect(queued_tasks).to eq(["task-3"])
    expect(live.map { |process| process.call("registered") }).to eq([["task-0"], ["task-1"], ["task-2"]])
  end
end

RSpec.describe "After an outage of the whole fleet" do
  include_context "with a fleet"

  it "the registry is still there, and the first process to come back recovers all of it" do
    fleet = Array.new(2) { member(heartbeat_interval: 0.5, orphan_threshold: 1) }
    fleet.each_with_index { |process, number| process.call("register", "task-#{number}") && nil || process.call("live") }
    fleet.each(&:kill)
    expect([ttl(Registry::INDEX), ttl(Registry::JOBS)]).to all(be_between(604_700, 604_800))
    expect(eventually { keys("#{Registry::PROCESSES}:*").empty? }).to be(true)
    age(*entries, seconds: 86_400)
    member(heartbeat_interval: 0.5, orphan_threshold: 1).call("beat")
    expect([queued_tasks.sort, entries]).to eq([%w[task-0 task-1], []])
  end

  it "a long request with no registration beside it stays registered, since heartbeats renew the TTL" do
    process = member(heartbeat_interval: 0.5)
    process.call("register", "long")
    process.call("live")
    [Registry::INDEX, Registry::JOBS].each { |key| REDIS.call("EXPIRE", key, 3) }
    sleep 4
    expect(process.call("registered")).to eq(["long"])
  end
end
