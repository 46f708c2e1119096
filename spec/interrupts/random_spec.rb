# frozen_string_literal: true

require "spec_helper"
require "support/fiber_scheduler"
require "support/random_interrupts"
require "support/tls_server"

# `rake soak:interrupts` has 200,000 calls answered over each wire (SOAK=1).
RSpec.describe "Calls that are interrupted at random" do
  include_context "with a server of its own"

  before(:context) do
    @server.stop
    @server, @tls = TLSServer.start
  end

  # What happens, the more likely the more often it stands here.
  let(:kinds) { [:raise] * 6 + [:kill] * 2 + [:disconnect, :freeze] }
  let(:soak) { !ENV["SOAK"].nil? }
  let(:settings) { {url: server.url, timeout: 20, pool_timeout: 20, id: RandomInterrupts::NAME} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:seed) { RSpec.configuration.seed }
  let(:random) { Random.new(seed) }
  let!(:asking) { RandomInterrupts.new(server, monitor) }

  def clients_under_test
    clients_of(server).select { |client| client["name"] == RandomInterrupts::NAME }
  end

  # @param number [Integer] the caller's; one of them asks for the lock
  def caller_thread(number, generation = 0)
    numbers = Random.new([seed, number, generation].hash)
    thread = threads(1) do
      calls = 0
      begin
        loop { number.zero? ? asking.ask_for_lock : asking.ask(numbers, "#{number}-#{generation}-#{calls += 1}") }
      rescue *RandomInterrupts::ANY
        # It came between two calls.
        retry
      end
    end.first
    thread.tap { thread[:place] = [number, generation] }
  end

  # Ends a thread in the middle of whatever it does, and has another one go on once it has ended: one alone may use the lock.
  def replace(running, number)
    running[number].kill.join(20) or raise "seed #{seed}: a thread goes on after Thread#kill"
    generation = running[number][:place].last + 1
    running[number] = caller_thread(number, generation)
  end

  def freeze_for_a_moment
    server.freeze_for_a_while { sleep random.rand(0.02) }
  end

  def kill_a_connection
    victim = clients_under_test.sample(random: random)
    server.call("CLIENT", "KILL", "ID", victim["id"]) if victim
  end

  # @return [Array<Integer>] how many connections there were, as often as was looked
  def interrupt_until(count, running)
    done = Hash.new(0)
    seen = []
    deadline = monotonic + [60, count / 100].max
    while asking.outcomes.size < count && monotonic < deadline
      sleep random.rand(0.003)
      seen << pool_counts(pool).first
      kind = kinds.sample(random: random)
      done[kind] += 1
      case kind
      when :kill then replace(running, random.rand(running.size))
      when :disconnect then kill_a_connection
      when :freeze then freeze_for_a_moment
      else running.sample(random: random).raise(RandomInterrupts::Interruption, "at random")
      end
    end
    [seen, done]
  end

  def expect_every_answer_right(title, done)
    tally = asking.tally
    RSpec.configuration.reporter.message("      seed #{seed}, #{title}: #{tally} of calls, by #{done}")
    expect(asking.wrong).to be_empty, "seed #{seed}: #{asking.wrong.first(5)}"
    expect(asking.damage).to eq([[], [], []]), "seed #{seed}"
    tally
  end

  def expect_nothing_left_behind
    expect(eventually { GC.start || pool_counts(pool).then { |open, idle| open - idle <= 3 } }).to be(true)
    expect(eventually { GC.start || clients_under_test.size <= pool_counts(pool).first }).to be(true)
    expect(pool_counts(pool).first).to be <= 50
    monitor.register(task("afterwards"))
    expect(monitor.registered?(task("afterwards"))).to be(true)
    expect(monitor.heartbeat_timestamp_for(task("known-7"))).to eq(8)
  end

  # Of more callers than connections, and of a few.
  {"plain, 60 threads" => [60, -> { {url: server.url} }],
   "over TLS, 12 threads" => [12, -> { @tls }]}.each do |title, (callers, wire)|
    describe title do
      let(:settings) { {**instance_exec(&wire), timeout: 20, pool_timeout: 20, id: RandomInterrupts::NAME} }
      let(:count) { soak ? 200_000 : 10_000 }

      it "have their own answers, happen wholly or not at all, and leave no connection behind" do
        running = Array.new(callers) { |number| caller_thread(number) }
        seen, done = interrupt_until(count, running)
        running.each(&:kill).each { |thread| expect(thread.join(20)).to be(thread) }

        tally = expect_every_answer_right(title, done)
        expect(tally.values.sum).to be >= count
        expect(tally.values_at(:interrupted, :timed_out)).to all(be > count / 500)
        expect(asking.answered).to include(:lock, :score, :own_ids, :counts, :register)
        expect(seen.max).to be_between(2, 50)
        expect_nothing_left_behind
      ensure
        running.each(&:kill).each { |thread| raised { thread.join } }
      end
    end
  end

  describe "in fibers" do
    let(:count) { soak ? 20_000 : 2_000 }

    # Each has its own answers to check; `Sidekiq::Client.via` is a setting of one fiber.
    def asking_fiber(number)
      numbers = Random.new([seed, number].hash)
      calls = 0
      Fiber.schedule do
        Sidekiq::Client.via(pool) do
          asking.ask(numbers, "#{number}-#{calls += 1}", limits: false) while asking.outcomes.size < count
        rescue RandomInterrupts::Interruption
          # It came between two calls.
          retry
        end
      end
    end

    # @return [Integer] how often one was interrupted
    def interrupt(fibers)
      raises = 0
      while (alive = fibers.select(&:alive?)).any? && asking.outcomes.size < count
        alive.sample(random: random).raise(RandomInterrupts::Interruption, "at random")
        raises += 1
        sleep random.rand(0.003)
      end
      raises
    end

    it "by Fiber#raise have their own answers, happen wholly or not at all, and leave no connection behind" do
      raises = nil
      freezer = Thread.new { loop { sleep(0.05) && freeze_for_a_moment } }
      FiberScheduler.run do
        fibers = Array.new(20) { |number| asking_fiber(number) }
        Fiber.schedule { raises = interrupt(fibers) }
      end
      freezer.kill.join

      tally = expect_every_answer_right("20 fibers", {raise: raises})
      expect(tally.values.sum).to be >= count
      expect(tally.fetch(:interrupted, 0)).to be > count / 200
      expect_nothing_left_behind
    ensure
      freezer&.kill&.join
    end
  end
end
