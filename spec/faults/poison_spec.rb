# frozen_string_literal: true

require "spec_helper"
require_relative "../support/fleet"
require_relative "../support/sidekiq_hooks"

RSpec.describe "Jobs that kill each process that takes them from the queue" do
  include_context "with a fleet"

  it "are recovered three times, and then are in Sidekiq's dead set, or discarded where they say so" do
    collector = member
    push = {"class" => "PoisonJob", "queue" => "default"}
    Sidekiq::Client.push(push.merge("args" => ["poison", true]))
    Sidekiq::Client.push(push.merge("args" => ["discarded", true], "dead" => false))
    Sidekiq::Client.push(push.merge("args" => ["without jid", false]))
    sweeps = Array.new(4) do
      (victim = member(heartbeat_interval: 0.5)).tell("take_jobs_and_die")
      expect(victim.wait.termsig).to eq(9)
      expect(eventually { keys("#{Registry::PROCESSES}:*").empty? }).to be(true)
      age(*entries)
      collector.call("sweep", 300)
    end
    expect([sweeps, queued, entries, collector.call("sweep", 0)]).to eq([[3, 3, 3, 0], [], [], 0])
    expect(dead_set.map { |job| job.args.first }).to contain_exactly("poison", "without jid")
    expect(collector.call("deaths").map { |job, error| [job["args"].first, error] })
      .to match_array(["poison", "discarded", "without jid"].product(["PatientHttpMonitor::PoisonError"]))
  end
end
