# frozen_string_literal: true

require "spec_helper"
require "support/distance"
require "support/fiber_scheduler"
require "support/own_server"
require "support/ticker"

# What spec/async shows with the async gem, by the least that a Fiber scheduler must be.
RSpec.describe "fibers that wait" do
  # Says of every other wait for a reply that its time is over, which is not so. Those of async before 2.45 do it now and then: a
  # wakeup that came too late for one wait ends the next.
  class HastyScheduler < FiberScheduler
    def io_wait(io, events, timeout)
      return super unless events.anybits?(IO::READABLE) && (@hasty = !@hasty)

      false
    end
  end

  include_context "with a server of its own"

  let(:settings) { {url: server.url, timeout: 10, pool_timeout: 10} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:known) { task("known") }
  let(:unknown) { task("unknown") }

  before { monitor.register(known) }

  # `Sidekiq::Client.via` is a setting of one fiber.
  def schedule(with: pool, &block)
    Fiber.schedule { Sidekiq::Client.via(with, &block) }
  end

  def all_connections_idle?
    total, idle = pool_counts(pool)
    total == idle && eventually { clients_of(server).size == total } && total <= 50
  end

  def own_answers?
    answers = {}
    FiberScheduler.run { 100.times { |number| schedule { answers[number] = monitor.registered?(number.even? ? known : unknown) } } }
    answers.size == 100 && answers.all? { |number, answer| answer == number.even? }
  end

  # Were the thread held during each call, many of them would come between two ticks.
  it "tick nearly as in an idle thread while 100 of them register at a server that is 1 ms away, and while that is frozen for 1 s" do
    tickers = {}
    Distance.open(server.port) do |url|
      far = Sidekiq::RedisConnection.create(**settings, url: url)
      FiberScheduler.run { tickers[:idle] = Ticker.start and sleep(0.3) and tickers[:idle].stop }
      FiberScheduler.run do
        tickers[:busy] = Ticker.start
        left = 100
        100.times do |number|
          schedule(with: far) { 20.times { monitor.register(task(number.to_s)) } and (left -= 1).zero? and tickers[:busy].stop }
        end
      end
      server.freeze_for_a_while do
        thaw = Thread.new { sleep 1 and Process.kill(:CONT, server.pid) }
        FiberScheduler.run do
          tickers[:frozen] = Ticker.start
          100.times { |number| schedule(with: far) { monitor.unregister(task(number.to_s)) } }
          sleep 0.9
          tickers[:frozen].stop
        end
        thaw.join
      end
    end
    idle = tickers[:idle]
    expect(tickers[:busy].late_by_own_fault(50)).to be < ((10 * idle.late_by_own_fault(50)) + 0.01)
    expect(tickers[:busy].late_by_own_fault(90)).to be < ((10 * idle.late_by_own_fault(90)) + 0.1)
    expect(tickers[:frozen].late_by_own_fault(100)).to be < ((10 * idle.late_by_own_fault(100)) + 0.6)
    expect(tickers.transform_values(&:count).values).to all(be > 20)
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("known")])
  end

  it "are not taken for timed out because their scheduler wakes them too early" do
    all_at_once(5) { monitor.registered?(known) }
    outcomes = []
    server.freeze_for_a_while do
      thaw = Thread.new { sleep 0.3 and Process.kill(:CONT, server.pid) }
      hasty = Thread.new do
        Fiber.set_scheduler(HastyScheduler.new)
        # Some of them have to connect.
        10.times do
          schedule do
            outcomes << monitor.registered?(known)
          rescue RedisClient::Error => error
            outcomes << error
          end
        end
      end
      [hasty, thaw].each(&:join)
    end
    expect(outcomes).to eq([true] * 10)
    expect(all_connections_idle?).to be(true)
  end

  # All fibers of the process wait for a full collection, and that of a large heap takes longer than any call.
  it "do not start the garbage collector because Redis is slow, 70 of them waiting for a connection" do
    done = 0
    GC::Profiler.enable
    GC::Profiler.clear
    FiberScheduler.run do
      server.freeze_for_a_while do
        120.times { schedule { monitor.register(task) || done += 1 } }
        sleep 0.8
      end
    end
    expect(done).to eq(120)
    # Those that Ruby does of its own accord are by others.
    expect(GC::Profiler.raw_data.map { |run| run.dig(:GC_FLAGS, :gc_by) }).not_to include(:capi)
  ensure
    GC::Profiler.disable
  end

  it "are interrupted by Fiber#raise at once, and leave pool, connections and the others' answers right" do
    errors = []
    answers = []
    FiberScheduler.run do
      server.freeze_for_a_while do
        10.times { schedule { answers << monitor.registered?(known) } }
        waiting = Array.new(10) { schedule { errors << raised { monitor.registered?(unknown) } } }
        sleep 0.1
        waiting.each { |fiber| fiber.raise(KeyError, "enough") }
        expect(waiting.map(&:alive?)).to eq([false] * 10)
      end
    end
    expect(errors.map(&:class)).to eq([KeyError] * 10)
    expect(answers).to eq([true] * 10)
    # Those of the interrupted calls are closed, since a reply was owed.
    expect(pool_counts(pool).first).to be <= 11
    expect(all_connections_idle?).to be(true)
    expect(own_answers?).to be(true)
  end

  {"that have one of the 50 connections" => 0...50, "that wait for one of the 50 connections" => 50...120}.each do |which, range|
    it "#{which} are interrupted alone: all the others get their answers" do
      outcomes = {}
      FiberScheduler.run do
        server.freeze_for_a_while do
          fibers = Array.new(120) do |number|
            schedule do
              outcomes[number] = monitor.registered?(number.even? ? known : unknown)
            rescue KeyError => error
              outcomes[number] = error.class
            end
          end
          sleep 0.2
          expect(pool_counts(pool)).to eq([50, 0])
          fibers[range].each { |fiber| fiber.raise(KeyError, "enough") }
        end
      end
      expect(outcomes).to eq((0...120).to_h { |number| [number, range.cover?(number) ? KeyError : number.even?] })
      expect(all_connections_idle?).to be(true)
      expect(own_answers?).to be(true)
    end
  end
end
