# frozen_string_literal: true

require "spec_helper"
require "support/own_server"

RSpec.describe "what interrupts a call" do
  include_context "with a server of its own"

  # Far more than an example takes: nothing here ends by a timeout of Redis.
  let(:settings) { {url: server.url, timeout: 30} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  # How long an interrupt may take to act, in s: a few times what it takes on a machine under load.
  let(:prompt) { 0.5 }

  before { monitor.register(task("known")) }

  # A thread that waits for the frozen server.
  def waiting_thread
    threads(1) { monitor.registered?(task("known")) }.first.tap { |thread| eventually { thread.stop? } }
  end

  def answers_are_right
    expect(monitor.registered?(task("known"))).to be(true)
    expect(monitor.registered?(task("unknown"))).to be(false)
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("known")])
  end

  it "acts at once while Redis does not answer: Thread#kill" do
    server.freeze_for_a_while do
      thread = waiting_thread
      expect(seconds { thread.kill.join }).to be < prompt
    end
    answers_are_right
  end

  it "acts at once while Redis does not answer: Thread#raise" do
    server.freeze_for_a_while do
      thread = waiting_thread
      thread.raise(KeyError, "enough")
      expect(seconds { expect { thread.value }.to raise_error(KeyError, "enough") }).to be < prompt
    end
    answers_are_right
  end

  it "acts at once while Redis does not answer: Timeout" do
    server.freeze_for_a_while do
      elapsed = seconds { expect { Timeout.timeout(0.3) { monitor.register(task("late")) } }.to raise_error(Timeout::Error) }
      expect(elapsed).to be_between(0.28, 0.3 + prompt)
    end
    monitor.unregister(task("late"))
    answers_are_right
  end

  it "acts at once while Redis does not answer: a signal" do
    before = trap("USR2") { raise KeyError, "by a signal" }
    server.freeze_for_a_while do
      kicker = Thread.new { sleep 0.2 and Process.kill(:USR2, Process.pid) }
      elapsed = seconds { expect { monitor.registered?(task("known")) }.to raise_error(KeyError, "by a signal") }
      expect(elapsed).to be < 0.2 + prompt
      kicker.join
    end
    answers_are_right
  ensure
    trap("USR2", before || "DEFAULT")
  end

  it "acts at once while the connection is being made" do
    fresh = Sidekiq::RedisConnection.create(settings)
    server.freeze_for_a_while do
      elapsed = seconds do
        expect { Timeout.timeout(0.2) { Sidekiq::Client.via(fresh) { monitor.register(task) } } }.to raise_error(Timeout::Error)
      end
      expect(elapsed).to be_between(0.18, 0.2 + prompt)
    end
    Sidekiq::Client.via(fresh) { answers_are_right }
  end

  # A class that the connecting itself may raise, and translates then.
  it "acts at once, and as what it is, while a TLS handshake is not answered" do
    listener = TCPServer.new("127.0.0.1", 0)
    silent = Sidekiq::RedisConnection.create(url: "rediss://127.0.0.1:#{listener.local_address.ip_port}/0", timeout: 5,
      ssl_params: {verify_mode: OpenSSL::SSL::VERIFY_NONE})
    elapsed = seconds do
      expect { Sidekiq::Client.via(silent) { Timeout.timeout(0.3, IOError) { monitor.register(task) } } }
        .to raise_error(IOError, "execution expired")
    end
    expect(elapsed).to be_between(0.28, 0.3 + prompt)
  ensure
    listener&.close
  end

  it "acts at once while a request is too large for the socket to take" do
    large = task("large", args: ["x" * 20_000_000])
    server.freeze_for_a_while do
      thread = threads(1) { monitor.register(large) }.first
      # Until it waits in the middle of its write.
      eventually { thread.stop? }
      expect(seconds { thread.kill.join }).to be < prompt
    end
    answers_are_right
  end

  it "acts at once on a caller that waits for one of the connections" do
    server.freeze_for_a_while do
      callers = threads(50) { monitor.registered?(task("known")) }
      eventually { pool_counts(pool).first == 50 && callers.all?(&:stop?) }
      last = waiting_thread
      expect(seconds { last.kill.join }).to be < prompt
      expect(seconds { callers.each(&:kill).each(&:join) }).to be < prompt
    end
    answers_are_right
  end

  it "lets other threads run meanwhile" do
    ticks = 0
    waiting = nil
    server.freeze_for_a_while do
      waiting = waiting_thread
      ticker = Thread.new { 20.times { sleep(0.01) and ticks += 1 } }
      expect(ticker.join(5)).to be(ticker)
    end
    expect(ticks).to eq(20)
    expect(waiting.value).to be(true)
  end

  it "waits where Thread.handle_interrupt says so" do
    deferred = nil
    server.freeze_for_a_while do
      thread = threads(1) do
        Thread.handle_interrupt(KeyError => :never) do
          deferred = monitor.registered?(task("known"))
        end
      end.first
      eventually { thread.stop? }
      thread.raise(KeyError, "later")
      expect(thread.join(0.2)).to be_nil
      Process.kill(:CONT, server.pid)
      expect { thread.value }.to raise_error(KeyError)
    end
    expect(deferred).to be(true)
  end

  it "never leads to an answer of another call, however often and whenever it comes" do
    seed = RSpec.configuration.seed
    random = Random.new(seed)
    tasks = Array.new(20) { |number| task("task-#{number}") }
    tasks.each_with_index { |one, number| monitor.register(one) if number.even? }
    outcomes = Queue.new
    callers = threads(4) do |caller|
      numbers = Random.new(seed + caller)
      250.times do
        number = numbers.rand(tasks.size)
        outcomes << (monitor.registered?(tasks[number]) == number.even?)
      rescue KeyError
        outcomes << :interrupted
      end
    rescue KeyError
      # It came between two calls.
      retry
    end
    while callers.any?(&:alive?) && outcomes.size < 4_000
      sleep random.rand(0.002)
      callers.sample(random: random).raise(KeyError, "at random")
    end
    callers.each(&:kill).each { |thread| raised { thread.join } }
    tally = Array.new(outcomes.size) { outcomes.pop }.tally

    expect(tally).not_to include(false), "seed #{seed}: #{tally}"
    expect(tally[true]).to be > 100, "seed #{seed}: #{tally}"
    expect(tally[:interrupted]).to be > 20, "seed #{seed}: #{tally}"
    expect(monitor.registered_task_ids.size).to eq(11)
  end
end
