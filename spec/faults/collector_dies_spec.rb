# frozen_string_literal: true

require "spec_helper"
require_relative "../support/exchange_proxy"
require_relative "../support/plain_ruby_monitor"
require_relative "../support/random_kills"

RSpec.describe "A collector that dies by SIGKILL" do
  describe "at 20 random moments of a sweep of 5,000 orphans" do
    let(:random) { Random.new(RSpec.configuration.seed) }
    let(:jobs) { many_orphans(5_000) }

    def figures(kills, account)
      "seed #{random.seed}, #{kills.size} kills after #{kills.map { |kill| (kill.delay * 1000).round }.join(", ")} ms, #{account}"
    end

    it "costs no job, and repeats one for each kill at most" do
      kills = kill_collectors(20, jobs, random) { monitor }
      eventually { stale_left_to(monitor) }
      account = account_of(jobs)
      RSpec.configuration.reporter.message("      #{figures(kills, account)}")

      expect(kills.map(&:lost)).to all(be_empty), figures(kills, account)
      expect([[], *kills.map(&:in_both)].each_cons(2).map { |before, after| (after - before).size }).to all(be <= 1)
      expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0]), figures(kills, account)
      expect(queued.size - jobs.size).to be <= 20
    end

    it "would cost jobs where removal comes before push, which is what the control does" do
      jobs
      kills = kill_collectors(20, jobs, random) { PlainRubyMonitor.new(config) }
      PlainRubyMonitor.new(config).cleanup_orphaned_requests(RandomKills::THRESHOLD, nil)
      account = account_of(jobs)
      RSpec.configuration.reporter.message("      control: #{figures(kills, account)}")

      expect(account.registered).to eq(0)
      expect(account.lost.size).to be_between(1, 20), figures(kills, account)
    end

    # @return [Boolean] whether a second collector, to whom nothing happens, has left nothing
    def stale_left_to(collector)
      collector.cleanup_orphaned_requests(RandomKills::THRESHOLD, nil)
      entries.empty?
    end
  end

  # The request does not arrive, or the server has carried it out and nobody hears the answer.
  describe "at a chosen exchange with Redis" do
    let!(:jobs) { many_orphans(250) }

    before { ExchangeProxy.load_scripts(REDIS) }

    def die_at(kind, nth, direction, &make)
      pids = Thread::Queue.new
      seen = 0
      plan = ->(exchange) { direction if exchange.kind == kind && (seen += 1) == nth }
      ExchangeProxy.open(REDIS.port, plan, on_cut: -> { Process.kill(:KILL, pids.pop) }) do |proxy|
        collector = fork_collector do
          Sidekiq::Client.via(proxy.pool(reconnect_attempts: 0)) { make.call.cleanup_orphaned_requests(300, nil) }
        end
        pids << collector.first
        _, status = Process.wait2(collector.first)
        collector.last.close
        expect(status).to be_signaled
        expect(proxy.cuts.map(&:kind)).to eq([kind])
      end
    end

    [["hello", 1], ["begin", 1], ["page", 1], ["page", 2], ["capacities", 1], ["claim", 1], ["claim", 2], ["mget", 1], ["mget", 3],
      ["push", 1], ["push", 137], ["push", 250], ["settle", 1], ["settle", 137], ["settle", 250], ["restore", 1]].each do |kind, nth|
      {request: "before", reply: "after"}.each do |direction, moment|
        # In both places only from the moment the queue has it until the registry has not.
        repeated = [%w[push reply], %w[settle request]].include?([kind, direction.to_s]) ? 1 : 0

        it "just #{moment} #{kind} number #{nth}, costs no job and repeats #{repeated.zero? ? "none" : "that one"}" do
          if kind == "restore"
            # One whose index entry was lost, so that there is something to put back.
            REDIS.call("ZREM", Registry::INDEX, orphan_id(7))
          end
          die_at(kind, nth, direction) { monitor }
          left = entries.size
          expect(account_of(jobs).lost).to be_empty
          expect(sweep_the_rest).to eq(left)
          account = account_of(jobs)
          expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0])
          expect([account.repeated.size, queued.size]).to eq([repeated, 250 + repeated])
        end
      end
    end

    it "would cost the job in hand where removal comes before push" do
      die_at("push", 137, :request) { PlainRubyMonitor.new(config) }
      PlainRubyMonitor.new(config).cleanup_orphaned_requests(300, nil)
      expect(account_of(jobs).lost).to eq([jobs.keys[136]])
    end
  end
end
