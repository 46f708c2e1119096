# frozen_string_literal: true

require "spec_helper"
require "support/lane"
return unless Lane.has?("async", __FILE__)

require "support/reactor"
require "support/ruby_process"

RSpec.describe "a stopped task of an async reactor" do
  include_context "with a reactor"

  let(:known) { task("known") }
  let(:unknown) { task("unknown") }

  before { monitor.register(known) }

  # Alternately what is registered and what is not: the reply to a call that was stopped would be the wrong one for one of them.
  def own_answers?
    answers = Sync do |reactor|
      Array.new(100) { |number| start(reactor) { monitor.registered?(number.even? ? known : unknown) } }.map(&:wait)
    end
    answers == [true, false] * 50
  end

  # @return [Boolean] what the block answers at last, the reactor's other tasks going on meanwhile
  def within(reactor, limit: 5)
    deadline = monotonic + limit
    reactor.sleep(0.01) until yield || monotonic > deadline
    yield
  end

  # The ways to stop a task that waits. Each is given the reactor and starts the tasks by the block.
  ways = {
    "by task.stop" => lambda do |reactor, start_one|
      tasks = Array.new(10) { start_one.call(reactor) }
      reactor.sleep(0.05)
      tasks.each(&:stop)
      tasks
    end,
    "by task.stop(later)" => lambda do |reactor, start_one|
      tasks = Array.new(10) { start_one.call(reactor) }
      reactor.sleep(0.05)
      tasks.each { |task| task.stop(true) }
    end,
    "with its parent" => lambda do |reactor, start_one|
      tasks = nil
      parent = reactor.async do |task|
        tasks = Array.new(10) { start_one.call(task) }
        task.sleep
      end
      reactor.sleep(0.05)
      parent.stop
      tasks
    end,
    "with its barrier" => lambda do |reactor, start_one|
      barrier = Async::Barrier.new(parent: reactor)
      tasks = Array.new(10) { start_one.call(barrier) }
      reactor.sleep(0.05)
      barrier.stop
      tasks
    end
  }

  ways.each do |name, stop|
    it "#{name} ends by Async::Stop and leaves pool, connections and other calls' answers right" do
      errors = []
      others = tasks = nil
      Sync do |reactor|
        server.freeze_for_a_while do
          others = Array.new(10) { start(reactor) { monitor.registered?(known) } }
          start_one = lambda do |parent|
            start(parent) do
              monitor.registered?(unknown)
            rescue Exception => error # rubocop:disable Lint/RescueException
              errors << error
              raise
            end
          end
          tasks = stop.call(reactor, start_one)
          # While the server is frozen: none of them waits for it.
          expect(within(reactor) { tasks.none?(&:alive?) }).to be(true)
        end
        expect(others.map(&:wait)).to eq([true] * 10)
      end
      expect(errors).to all(be_a(Async::Stop))
      expect(errors.size).to eq(10)
      expect(tasks).to all(be_stopped)
      # Those of the stopped calls are closed, since a reply was owed.
      expect(pool_counts(pool).first).to be <= 11
      expect(all_connections_idle?).to be(true)
      expect(own_answers?).to be(true)
    end
  end

  it "can call again while it ends" do
    monitor.register(task("kept"))
    Sync do |reactor|
      stopped = nil
      server.freeze_for_a_while do
        stopped = start(reactor) do
          monitor.register(task("stopped"))
        ensure
          # The server answers by now.
          Process.kill(:CONT, server.pid)
          monitor.unregister(known)
        end
        reactor.sleep(0.05)
        stopped.stop
      end
      expect(within(reactor) { !stopped.alive? }).to be(true)
    end
    expect([monitor.registered?(known), monitor.registered?(task("kept"))]).to eq([false, true])
    expect(all_connections_idle?).to be(true)
  end

  it "is one whose time is over: with_timeout raises Async::TimeoutError in time, and the next call has its own answer" do
    Sync do |reactor|
      outcomes = nil
      server.freeze_for_a_while do
        tasks = Array.new(10) do
          start(reactor) do |task|
            took = seconds { @error = raised { task.with_timeout(0.2) { monitor.registered?(unknown) } } }
            [@error.class, took]
          end
        end
        outcomes = tasks.map(&:wait)
      end
      expect(outcomes.map(&:first)).to eq([Async::TimeoutError] * 10)
      expect(outcomes.map(&:last)).to all(be_between(0.19, 2))
      start(reactor) { expect(Array.new(10) { monitor.registered?(known) }).to all(be(true)) }.wait
    end
    expect(all_connections_idle?).to be(true)
    expect(own_answers?).to be(true)
  end

  it "is one that Timeout.timeout ends, and the others go on" do
    outcomes = Sync do |reactor|
      server.freeze_for_a_while do
        start(reactor) { raised { Timeout.timeout(0.2) { monitor.registered?(unknown) } } }.wait
      end
    end
    expect(outcomes).to be_a(Timeout::Error)
    expect(own_answers?).to be(true)
    expect(all_connections_idle?).to be(true)
  end

  describe "that waits for one of the 50 connections" do
    # @yieldparam tasks [Array<Async::Task>] 50 that have a connection, and 70 that wait for one
    def frozen(&block)
      Sync do |reactor|
        server.freeze_for_a_while do
          tasks = Array.new(120) { |number| start(reactor) { monitor.registered?(number.even? ? known : unknown) } }
          reactor.sleep(0.2)
          expect(pool_counts(pool)).to eq([50, 0])
          block.call(tasks, reactor)
        end
      end
    end

    it "leaves the connections to those that had them" do
      frozen do |tasks, _|
        tasks.drop(50).each(&:stop)
        Process.kill(:CONT, server.pid)
        expect(tasks.first(50).map(&:wait)).to eq([true, false] * 25)
      end
      expect(pool_counts(pool)).to eq([50, 50])
      expect(all_connections_idle?).to be(true)
      expect(own_answers?).to be(true)
    end

    it "is not waited for by the others that wait" do
      frozen do |tasks, _|
        stopped, left = tasks.drop(50).partition.with_index { |_, number| (number % 10) != 9 }
        stopped.each(&:stop)
        Process.kill(:CONT, server.pid)
        expect(left.map(&:wait)).to eq([false] * 7)
        tasks.first(50).each(&:wait)
      end
      expect(all_connections_idle?).to be(true)
      expect(own_answers?).to be(true)
    end

    it "gets the place of one that was stopped with a connection" do
      frozen do |tasks, _|
        tasks.first(50).each(&:stop)
        Process.kill(:CONT, server.pid)
        expect(tasks.drop(50).map(&:wait)).to eq([true, false] * 35)
      end
      expect(all_connections_idle?).to be(true)
      expect(own_answers?).to be(true)
    end

    it "ends when its reactor is stopped with all the others" do
      frozen { |tasks, reactor| reactor.children.each(&:stop) and expect(tasks).to all(be_stopped) }
      expect(pool_counts(pool)).to eq([0, 0])
      expect(eventually { clients_of(server).empty? }).to be(true)
      expect(own_answers?).to be(true)
    end
  end

  it "at any moment of any call leaves everything right" do
    seed = Random.new_seed % 1_000_000
    random = Random.new(seed)
    wrong = []
    stopped = finished = 0
    Sync do |reactor|
      6.times do |round|
        # Some connect, some find a connection, some wait for one.
        server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") if round.odd?
        pauses = Array.new(120) { random.rand(0.0..0.03) }
        barrier = Async::Barrier.new(parent: reactor)
        pauses.each_with_index do |pause, number|
          calling = start(barrier) do
            10.times do |n|
              answer = monitor.registered?((number + n).even? ? known : unknown)
              wrong << [round, number, n] unless answer == (number + n).even?
            end
            finished += 1
          end
          next if (number % 3).zero?

          barrier.async do |task|
            task.sleep(pause)
            stopped += 1 if calling.alive?
            calling.stop
          end
        end
        barrier.wait
      end
    end
    expect(wrong).to be_empty, "seed #{seed}: #{wrong}"
    expect(stopped).to be > 0, "seed #{seed}"
    expect(finished).to be >= 240, "seed #{seed}"
    expect(all_connections_idle?).to be(true), "seed #{seed}"
    expect(own_answers?).to be(true), "seed #{seed}"
  end

  describe "whose thread is killed" do
    include RubyProcess

    # In a process of its own: what is left of a reactor may take the process with it, or hang it.
    it "leaves room for a register from another thread, 60 tasks waiting, three times over" do
      outcome = ruby(<<~RUBY, env: {"REDIS_URL" => server.url, "REDIS_PID" => server.pid.to_s})
        require "patient_http_monitor"
        require "async"
        require "support/tasks"
        include Tasks
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        POOL = Sidekiq::RedisConnection.create(url: ENV.fetch("REDIS_URL"), timeout: 10, pool_timeout: 5)
        MONITOR = monitor()
        REGISTER = ->(id) { Sidekiq::Client.via(POOL) { MONITOR.register(task(id)) } }
        3.times do |round|
          waiting = 0
          Process.kill(:STOP, Integer(ENV.fetch("REDIS_PID")))
          reactor = Thread.new do
            Async { |task| 60.times { |number| task.async { waiting += 1 and REGISTER.call("killed-\#{number}") } } }
          end
          sleep 0.01 until waiting == 60
          sleep 0.1
          reactor.kill.join
          Process.kill(:CONT, Integer(ENV.fetch("REDIS_PID")))
          Thread.new { REGISTER.call("thread-\#{round}") }.join
          Array.new(60) { |number| Thread.new { REGISTER.call("thread-\#{round}-\#{number}") } }.each(&:join)
          Sync { |task| 60.times.map { |number| task.async { REGISTER.call("fiber-\#{round}-\#{number}") } }.each(&:wait) }
        end
        puts (MONITOR.registered_task_ids.grep_v(/killed/)).size
        # The killed one that had no connection left none behind.
        puts PatientHttpMonitor.const_get(:Pools).for(POOL).counts.then { |total, idle| total == idle && total <= 50 }
      RUBY
      expect([outcome.output.lines(chomp: true), outcome.errors]).to eq([%w[363 true], ""]), outcome.to_s
    end
  end
end
