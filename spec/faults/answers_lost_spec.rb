# frozen_string_literal: true

require "spec_helper"
require_relative "../support/exchange_proxy"
require_relative "../support/many_orphans"
require_relative "../support/observing"
require_relative "../support/sidekiq_hooks"

# The request arrives and is carried out; the connection ends before the reply. Sidekiq pushes through the same wire, so that the
# answers to pushes are lost as well.
RSpec.describe "An answer of Redis that is lost" do
  include Observing

  # With a limit, so that recoveries are counted and would show.
  before do
    ExchangeProxy.load_scripts(REDIS)
    settings = PatientHttpMonitor::Settings.new.tap { |changed| changed.recovery_limit = 1_000 }
    allow(PatientHttpMonitor).to receive(:settings).and_return(settings)
  end

  around { |example| sidekiq_log(:fatal) { example.run } }

  # @param plan [#call] see {ExchangeProxy.open}
  # @return [ExchangeProxy]
  def through_wire(plan, attempts)
    ExchangeProxy.open(REDIS.port, plan) do |proxy|
      Sidekiq::Client.via(proxy.pool(reconnect_attempts: attempts)) { yield proxy }
      proxy
    end
  end

  # @return [#call] a plan that cuts the first exchange of a kind
  def cut_first(kind)
    cuts = 0
    ->(exchange) { :reply if exchange.kind == kind && (cuts += 1) == 1 }
  end

  # @return [Exception, nil] of redis-client's
  def redis_error
    yield
    nil
  rescue RedisClient::Error => error
    error
  end

  def recoveries
    keys("sidekiq:patient_http:*").grep(/0{15}/).sum { |key| Integer(REDIS.call("GET", key)) }
  end

  # A collector that does everything that a sweep can do, over few orphans: it is alive and holds the lock, both of which it renews
  # all the time; its leases grow old; one orphan has no job, one job has no entry, and one is no job.
  def busy_collector
    monitor(heartbeat_interval: 0.002)
  end

  def odd_entries
    write_entry("gone-host:4711:00000000000000ff/ghost", payload: nil)
    write_entry("gone-host:4711:00000000000000ff/unusable", payload: '{"class":"ReportJob","args":7,"jid":"unusable"}')
    REDIS.call("ZREM", Registry::INDEX, orphan_id(3))
  end

  def busy_sweep(collector)
    redis_error do
      collector.ping_process
      collector.acquire_gc_lock
      on_push(->(_) { sleep 0.001 }) { collector.cleanup_orphaned_requests(0.009, nil) }
      collector.release_gc_lock
    end
  end

  def clean_up
    REDIS.call("HDEL", Registry::JOBS, "gone-host:4711:00000000000000ff/unusable")
    REDIS.call("ZREM", Registry::INDEX, "gone-host:4711:00000000000000ff/unusable")
  end

  def account_after_the_rest(jobs)
    clean_up
    sweep_the_rest
    account_of(jobs)
  end

  {0 => "is not tried again", 1 => "is tried again once"}.each do |attempts, what|
    describe "where a call that failed #{what} by the connection" do
      # What is renewed by the clock shifts the numbers from run to run, so that some are met twice and a late one may be missed;
      # each kind has its own example below.
      it "costs and changes no job, at any exchange of a sweep of 30 orphans, and repeats no more than a push in progress" do
        cut, worst = [], 0
        (1..).each do |number|
          REDIS.call("FLUSHALL")
          jobs = many_orphans(30)
          odd_entries
          proxy = through_wire(->(exchange) { :reply if exchange.number == number }, attempts) { busy_sweep(busy_collector) }
          account = account_after_the_rest(jobs)
          where = "cut at #{proxy.cuts.join}: #{account}"
          expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0]), where
          expect(queued.size - 30).to be <= (proxy.cuts.map(&:kind) == ["push"] ? 1 : 0), where
          expect(recoveries).to be <= queued.size, where
          worst = [worst, queued.size - 30].max
          break if proxy.cuts.empty?

          cut.concat(proxy.cuts.map(&:kind))
        end
        RSpec.configuration.reporter.message("      attempts #{attempts}: #{cut.size} sweeps of 30, one cut each, " \
          "#{cut.tally.sort.map { |kind, times| "#{kind} #{times}" }.join(", ")}; 0 lost, worst #{worst} repeated")
        # Pings come by the clock and move the numbers of the others, so that the rarer kinds may be missed here; each has its
        # own example below.
        expect(cut).to include("push", "settle")
        expect(cut.size).to be >= 60
      end

      # For those too that a sweep comes to at odd moments.
      %w[hello begin page capacities claim mget push settle renew ping renew_lock restore count acquire_lock release_lock]
        .each do |kind|
        it "costs and changes no job when it is the first to #{kind}" do
          jobs = many_orphans(60)
          odd_entries
          proxy = through_wire(cut_first(kind), attempts) do |wire|
            collector = busy_collector
            # Until it has come to that.
            20.times do
              busy_sweep(collector)
              break if wire.cuts.any?

              REDIS.call("DEL", "queue:default")
              many_orphans(60)
            end
          end
          expect(proxy.cuts.map(&:kind)).to eq([kind])
          account = account_after_the_rest(jobs)
          expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0]), account.to_s
          expect(account.repeated.size).to be <= (kind == "push" ? 1 : 0), account.to_s
        end
      end

      # At each point of it, so that every number is met by one period or another.
      it "costs and changes no job at each n-th exchange of sweeps of 1,000 orphans, until they are through" do
        random = Random.new(RSpec.configuration.seed)
        figures = Array.new(6) do
          REDIS.call("FLUSHALL")
          jobs = many_orphans(1_000)
          period, offset = random.rand(23..211), random.rand(1..200)
          plan = ->(exchange) { :reply if ((exchange.number + offset) % period).zero? }
          sweeps = 0
          proxy = through_wire(plan, attempts) do
            collector = monitor
            until entries.empty? || sweeps == 200
              sweeps += 1
              redis_error { collector.cleanup_orphaned_requests(-1, nil) }
            end
          end
          account = account_of(jobs)
          pushes = proxy.cuts.count { |exchange| exchange.kind == "push" }
          where = "seed #{random.seed}, every #{period}th from #{offset}, #{sweeps} sweeps, #{proxy.cuts.size} cuts, " \
            "#{pushes} of pushes; #{account}"
          expect([account.lost, account.corrupted, account.registered]).to eq([[], [], 0]), where
          expect(proxy.cuts.size).to be > 0, where
          expect(queued.size - 1_000).to be <= pushes, where
          [proxy.cuts.size, pushes, queued.size - 1_000, sweeps]
        end
        cuts, pushes, repeated, sweeps = figures.transpose.map(&:sum)
        RSpec.configuration.reporter.message("      attempts #{attempts}, seed #{random.seed}: 6 x 1,000 orphans, #{sweeps} sweeps, " \
          "#{cuts} cuts, #{pushes} of them of pushes; 0 lost, #{repeated} repeated")
      end
    end
  end

  it "counts no refusal twice, so that no job is buried before its time" do
    PatientHttpMonitor.settings.recovery_limit = 2
    unusable = write_entry("gone-host:4711:00000000000000ff/unusable", payload: '{"class":"ReportJob","args":7,"jid":"unusable"}')
    outcomes = Array.new(3) do
      age(unusable)
      proxy = through_wire(cut_first("count"), 1) { monitor.cleanup_orphaned_requests(300, nil) }
      [proxy.cuts.map(&:kind), keys("*unusable*").map { |key| REDIS.call("GET", key) }, REDIS.call("ZCARD", "dead")]
    end
    expect(outcomes).to eq([1, 2, 3].map { |times| [["count"], [times.to_s], times == 3 ? 1 : 0] })
  end

  describe "to what processes do all day" do
    let(:worker) { monitor }
    let(:request) { task("known") }

    # @return [Array] what Redis holds, scores and TTLs left out, since they follow the clock
    def state
      [entries.sort, REDIS.call("HGETALL", Registry::JOBS), REDIS.call("SMEMBERS", Registry::PROCESSES),
        REDIS.call("GET", Registry::GC_LOCK), keys.sort]
    end

    def set_up(operation)
      worker.ping_process unless operation == :ping_process
      worker.register(request) unless operation == :register
      worker.acquire_gc_lock if operation == :release_gc_lock
    end

    def call(operation)
      case operation
      when :register, :unregister then worker.public_send(operation, request)
      when :update_heartbeats then worker.update_heartbeats([request.id])
      else worker.public_send(operation)
      end
    end

    {register: ["register", nil], unregister: ["unregister", nil], update_heartbeats: ["zadd", nil], ping_process: ["ping", nil],
     remove_process: ["remove", nil], record_gc_run: ["set", nil], acquire_gc_lock: ["acquire_lock", true],
     release_gc_lock: ["release_lock", true]}.each do |operation, (kind, answer)|
      it "is an error of #{operation} that a second call mends, where nothing is tried again" do
        set_up(operation)
        through_wire(cut_first(kind), 0) do |proxy|
          expect { call(operation) }.to raise_error(RedisClient::ConnectionError)
          after_the_first = state
          # The lock that was given back is nobody's; the one that was taken is ours, since the first call did not say so.
          expect(call(operation)).to eq(operation == :release_gc_lock ? false : answer)
          expect(state).to eq(after_the_first)
          expect(proxy.cuts.size).to eq(1)
        end
      end

      it "is not noticed by #{operation}, which has happened once, where it is tried again" do
        set_up(operation)
        through_wire(cut_first(kind), 1) do |proxy|
          expect(call(operation)).to eq(answer)
          after_the_first = state
          expect(proxy.cuts.size).to eq(1)
          redis_error { call(operation) }
          expect(state).to eq(after_the_first)
        end
      end
    end
  end
end
