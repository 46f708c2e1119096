# frozen_string_literal: true

require "spec_helper"
require "support/fiber_scheduler"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "fibers under a Fiber scheduler" do
  include_context "with a server of its own"

  # Nobody gives up while the server is frozen.
  let(:settings) { {url: server.url, timeout: 10, pool_timeout: 10} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  # `Sidekiq::Client.via` is a setting of one fiber.
  def schedule(&block)
    Fiber.schedule { Sidekiq::Client.via(pool, &block) }
  end

  # A fiber that ticks until the block says that it is enough, but not for ever.
  #
  # @return [Array<Float>] is filled with how long each tick took, in s
  def tick_until(&enough)
    gaps = []
    Fiber.schedule do
      last = started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      until enough.call || last - started > 30
        sleep 0.01
        now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
        gaps << (now - last)
        last = now
      end
    end
    gaps
  end

  it "register at the same time, all of them" do
    done = 0
    FiberScheduler.run do
      50.times { |number| schedule { monitor.register(task(number.to_s)) || done += 1 } }
    end
    expect(done).to eq(50)
    expect(monitor.registered_task_ids.size).to eq(50)
  end

  it "are each given their own answer, 300 at once" do
    150.times { |number| monitor.register(task((number * 2).to_s)) }
    answers = {}
    FiberScheduler.run do
      300.times { |number| schedule { answers[number] = monitor.registered?(task(number.to_s)) } }
    end
    expect(answers.size).to eq(300)
    expect(answers.select { |number, answer| answer != number.even? }).to be_empty
    expect(pool_counts(pool).first).to be <= 50
  end

  it "wait by themselves while Redis does not answer; the others go on" do
    monitor.register(task)
    gaps = nil
    done = 0
    server.freeze_for_a_while do
      thaw = Thread.new { sleep 1 and Process.kill(:CONT, server.pid) }
      FiberScheduler.run do
        30.times { |number| schedule { monitor.register(task(number.to_s)) || done += 1 } }
        gaps = tick_until { done == 30 }
      end
      thaw.join
    end
    expect(done).to eq(30)
    # 100 without any delay; were the thread held there would be one gap of 1 s.
    expect(gaps.size).to be > 10
    expect(gaps.max).to be < 0.8
  end

  it "wait by themselves for one of 50 connections, and all get one" do
    done = 0
    gaps = nil
    server.freeze_for_a_while do
      thaw = Thread.new { sleep 1 and Process.kill(:CONT, server.pid) }
      FiberScheduler.run do
        120.times { |number| schedule { monitor.register(task(number.to_s)) || done += 1 } }
        gaps = tick_until { done == 120 }
      end
      thaw.join
    end
    expect(done).to eq(120)
    expect(gaps.size).to be > 5
    expect(gaps.max).to be < 0.8
    expect(monitor.registered_task_ids.size).to eq(120)
  end

  it "time out by read_timeout while the others go on" do
    impatient = Sidekiq::RedisConnection.create(url: server.url, timeout: 0.3)
    Sidekiq::Client.via(impatient) { monitor.register(task) }
    error = nil
    gaps = nil
    server.freeze_for_a_while do
      FiberScheduler.run do
        Fiber.schedule { error = Sidekiq::Client.via(impatient) { raised { monitor.register(task) } } }
        gaps = tick_until { error }
      end
    end
    expect(error).to be_a(RedisClient::ReadTimeoutError)
    expect(gaps.size).to be > 5
    Sidekiq::Client.via(impatient) { expect(monitor.registered?(task("unknown"))).to be(false) }
  end

  it "are interrupted alone by Fiber#raise, and the others get their own answers" do
    monitor.register(task("known"))
    answers = []
    error = nil
    server.freeze_for_a_while do
      thaw = Thread.new { sleep 0.3 and Process.kill(:CONT, server.pid) }
      FiberScheduler.run do
        5.times { schedule { answers << monitor.registered?(task("known")) } }
        waiting = schedule { error = raised { monitor.registered?(task("unknown")) } }
        5.times { schedule { answers << monitor.registered?(task("known")) } }
        sleep 0.1
        waiting.raise(KeyError, "enough")
      end
      thaw.join
    end
    expect(error).to be_a(KeyError)
    expect(answers).to eq([true] * 10)
    expect(monitor.registered?(task("unknown"))).to be(false)
  end

  it "share the connections with threads" do
    callers = threads(5) { |number| 100.times { |n| monitor.register(task("thread-#{number}-#{n}")) } }
    FiberScheduler.run do
      50.times { |number| schedule { 10.times { |n| monitor.register(task("fiber-#{number}-#{n}")) } } }
    end
    callers.each(&:join)
    expect(monitor.registered_task_ids.size).to eq(1_000)
    expect(pool_counts(pool).first).to be <= 50
  end

  it "sweep at the same time, each orphan once" do
    20.times { |number| monitor.register(task(number.to_s)) }
    monitor.registered_task_ids.each { |id| server.call("ZADD", "sidekiq:patient_http:inflight_index", "XX", 1, id) }
    counts = []
    sweepers = Array.new(3) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
    FiberScheduler.run do
      sweepers.each { |sweeper| schedule { counts << sweeper.cleanup_orphaned_requests(60, nil) } }
    end
    expect(counts.sum).to eq(20)
    expect(server.call("LLEN", "queue:default")).to eq(20)
  end

  describe "of a process that forks a child meanwhile" do
    before do
      3.times do |number|
        monitor.register(task(number.to_s))
        server.call("ZADD", "sidekiq:patient_http:inflight_index", "XX", number + 1, monitor.full_task_id(number.to_s))
      end
    end

    # Three fibers are in the middle of their calls when the child begins. It only ends, but its thread's scheduler goes on with
    # whatever fibers it has inherited.
    #
    # @return [Hash{Integer => Integer, RedisClient::Error}] what the parent's fibers got
    def answers
      answers = {}
      child = nil
      server.freeze_for_a_while do
        FiberScheduler.run do
          3.times do |number|
            schedule do
              answers[number] = monitor.heartbeat_timestamp_for(task(number.to_s))
            rescue RedisClient::Error => error
              answers[number] = error
            end
          end
          Fiber.schedule { child = fork { exit } }
          Fiber.schedule { Process.kill(:CONT, server.pid) }
        end
      end
      answers
    ensure
      # What it waits for may never come.
      Process.kill(:KILL, child) && Process.wait(child) if child
    end

    it "are each given their own answer" do
      all_at_once(3) { monitor.registered?(task("0")) }
      expect(Array.new(10) { answers }).to all(eq({0 => 1, 1 => 2, 2 => 3}))
    end

    it "are each given their own answer when their connections are just being made" do
      rounds = Array.new(10) do
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        answers
      end
      expect(rounds).to all(eq({0 => 1, 1 => 2, 2 => 3}))
    end
  end

  describe "that never end" do
    include RubyProcess

    # In a process of its own: what is left of a fiber that never ends may take the process with it, or hang it.
    let(:program) do
      <<~RUBY
        require "patient_http_monitor"
        require "support/fiber_scheduler"
        require "support/tasks"
        include Tasks
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        POOL = Sidekiq::RedisConnection.create(url: ENV.fetch("REDIS_URL"), timeout: 10, pool_timeout: 5)
        MONITOR = monitor()
        REGISTER = -> { Sidekiq::Client.via(POOL) { MONITOR.register(task) } }

        # The thread that starts the fibers' thread goes too, so that no stack remembers any of them.
        def kill_fibers(count)
          Thread.new do
            Process.kill(:STOP, Integer(ENV.fetch("REDIS_PID")))
            begun = Queue.new
            thread = Thread.new do
              Fiber.set_scheduler(FiberScheduler.new)
              count.times { Fiber.schedule(&REGISTER) }
              begun << true
            end
            begun.pop
            sleep 0.1
            thread.kill.join
          ensure
            Process.kill(:CONT, Integer(ENV.fetch("REDIS_PID")))
          end.join
        end
        REGISTER.call
      RUBY
    end

    def outcome_of(code)
      ruby(program + code, env: {"REDIS_URL" => server.url, "REDIS_PID" => server.pid.to_s})
    end

    it "leave room for others when their thread was killed" do
      outcome = outcome_of(<<~RUBY)
        kill_fibers(49)
        20.times { REGISTER.call }
        Array.new(60) { Thread.new(&REGISTER) }.each(&:join)
        puts "done"
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["done", ""]), outcome.to_s
    end

    it "are not waited for, woken or kept when their thread was killed while they waited for a connection" do
      outcome = outcome_of(<<~RUBY)
        3.times do
          kill_fibers(70)
          3.times { GC.start }
          Array.new(10_000) { "x" * 50 }
          200.times { REGISTER.call }
        end
        Array.new(60) { Thread.new { 10.times { REGISTER.call } } }.each(&:join)
        puts ObjectSpace.each_object(Thread::Queue).map(&:size).max.to_i < 100
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["true", ""]), outcome.to_s
    end

    it "leave room for others when their scheduler was given up in a thread that goes on" do
      outcome = outcome_of(<<~RUBY)
        class FailingScheduler < FiberScheduler
          def close
          end
        end

        def give_up(depth)
          # Far from where the thread goes on, so that its stack remembers none of them.
          return give_up(depth - 1) if depth.positive?

          Process.kill(:STOP, Integer(ENV.fetch("REDIS_PID")))
          Fiber.set_scheduler(FailingScheduler.new)
          70.times { Fiber.schedule(&REGISTER) }
          Fiber.schedule { sleep 0.1 and raise "out of the loop" }
          Fiber.scheduler.run
        rescue => error
          raise unless error.message == "out of the loop"

          Fiber.set_scheduler(nil)
        ensure
          Process.kill(:CONT, Integer(ENV.fetch("REDIS_PID")))
        end

        done = Queue.new
        begun = Queue.new
        going_on = Thread.new do
          give_up(50)
          begun << true
          done.pop
        end
        begun.pop
        20.times { REGISTER.call }
        Array.new(60) { Thread.new(&REGISTER) }.each(&:join)
        done << true
        going_on.join
        puts "done"
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["done", ""]), outcome.to_s
    end
  end
end
