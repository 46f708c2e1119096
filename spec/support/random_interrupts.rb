# frozen_string_literal: true

require "support/interrupting"
require "support/registry"

# Questions whose answers are known and differ from each other, so that none can pass for that to another question, asked while
# whatever may interrupt a call does so at random.
class RandomInterrupts
  include Observing
  include Tasks

  # A caller's own exception.
  class Interruption < StandardError; end

  # What a timeout raises; the second where another interrupt kept it from being called off in time.
  TIMEOUTS = [Timeout::Error, (Timeout::ExitException if defined?(Timeout::ExitException))].compact.freeze
  # Whatever may reach a caller, also between two calls.
  ANY = [Interruption, *TIMEOUTS].freeze

  KNOWN = 200
  CAPACITY = 4_711
  PEER = "peer:1:#{"f" * 16}"
  PEERS_ENTRIES = 7
  # By this name the server tells the clients under test from the others.
  NAME = "under-test"
  # What one call came to.
  Outcome = Struct.new(:result, :question, :detail)

  # @return [Queue<Outcome>], and of the registry ids whose registration was acknowledged and never taken back
  attr_reader :outcomes, :kept

  # @param server [RedisServer] empty
  # @param monitor [PatientHttp::Sidekiq::TaskMonitor]
  def initialize(server, monitor)
    @server = server
    @monitor = monitor
    @others = Array.new(3) { monitor() }
    @own = Array.new(3) { |number| Array.new(number + 1) { |n| "of-#{number}-#{n}" } }
    @outcomes = Thread::Queue.new
    @kept = Thread::Queue.new
    prepare
  end

  # One call, or a few, the answer to which is known; what it was is among the outcomes then.
  #
  # @param random [Random] the caller's
  # @param name [String] of what it registers
  # @param limits [Boolean] whether some have a time limit, which under a Fiber scheduler could be raised in any fiber
  def ask(random, name, limits: true)
    question = QUESTIONS.sample(random: random)
    answer = expected = nil
    limited(limits && random) { answer, expected = send(question, random, name) }
    outcomes << Outcome.new((answer == expected) ? :right : :wrong, question, [answer, expected])
  rescue Interruption
    outcomes << Outcome.new(:interrupted, question)
  rescue *TIMEOUTS
    outcomes << Outcome.new(:timed_out, question)
  rescue RedisClient::ConnectionError => error
    # Its connection was killed more often than it may be made again.
    outcomes << Outcome.new(:disconnected, question, error)
  end

  # Asks for the GC lock and gives it back, again and again, until it is interrupted: there is one lock, so one caller at a time.
  def ask_for_lock
    holder = nil
    # What came before may still be on its way: two round trips later it has arrived.
    Thread.handle_interrupt(Object => :never) do
      2.times { control.call("PING") }
      control.call("DEL", Registry::GC_LOCK)
      holder = monitor()
      check(:lock, holder.acquire_gc_lock, true)
    end
    loop do
      check(:lock, holder.acquire_gc_lock, false)
      check(:lock, @monitor.acquire_gc_lock, false)
      check(:lock, @monitor.release_gc_lock, false)
      # A second time is not asked for: a release that had to be repeated says true of a lock that is gone.
      check(:lock, holder.release_gc_lock, true)
      check(:lock, holder.acquire_gc_lock, true)
    end
  rescue *ANY
    outcomes << Outcome.new(:interrupted, :lock)
  rescue RedisClient::ConnectionError => error
    outcomes << Outcome.new(:disconnected, :lock, error)
  end

  # @return [Hash{Symbol => Integer}] results to their number
  def tally
    taken.map(&:result).tally
  end

  # @return [Array<Outcome>]
  def wrong
    taken.select { |outcome| outcome.result == :wrong }
  end

  # @return [Array<Symbol>] what was asked and answered
  def answered
    taken.select { |outcome| outcome.result == :right }.map(&:question).uniq
  end

  # What is wrong with the registry: entries with one half, acknowledged ones that are missing, those of the beginning that are.
  #
  # @return [Array<Array<String>>]
  def damage
    index, jobs = @server.call("ZRANGE", Registry::INDEX, 0, -1), @server.call("HKEYS", Registry::JOBS)
    acknowledged = Array.new(kept.size) { kept.pop }
    [index - jobs, jobs - index, (acknowledged + @prepared) - index]
  end

  private

  QUESTIONS = %i[score score score known unknown own_ids total processes counts count needed register register beat].freeze
  private_constant :QUESTIONS

  def prepare
    KNOWN.times do |number|
      @monitor.register(task("known-#{number}"))
      @server.call("ZADD", Registry::INDEX, number + 1, @monitor.full_task_id("known-#{number}"))
    end
    @others.zip(@own) { |other, ids| ids.each { |id| other.register(task(id)) } }
    PEERS_ENTRIES.times do |number|
      @server.call("ZADD", Registry::INDEX, 1, "#{PEER}/#{number}")
      @server.call("HSET", Registry::JOBS, "#{PEER}/#{number}", "{}")
    end
    @server.call("SADD", Registry::PROCESSES, PEER)
    @server.call("SET", "#{Registry::PROCESSES}:#{PEER}:max_connections", CAPACITY)
    @prepared = @server.call("ZRANGE", Registry::INDEX, 0, -1)
  end

  def taken
    @taken ||= Array.new(outcomes.size) { outcomes.pop }
  end

  def check(question, answer, expected)
    outcomes << Outcome.new((answer == expected) ? :right : :wrong, question, [answer, expected])
  end

  # Now and then with a limit, mostly one that a call just keeps or just does not.
  def limited(random, &block)
    (random && random.rand(6).zero?) ? Timeout.timeout(0.0001 + (random.rand * 0.004), &block) : yield
  end

  # A connection that is not under test, of the caller for the lock alone.
  def control
    @control ||= RedisClient.config(host: "127.0.0.1", port: @server.port, timeout: 20).new_client
  end

  def score(random, _name)
    number = random.rand(KNOWN)
    [@monitor.heartbeat_timestamp_for(task("known-#{number}")), number + 1]
  end

  def known(random, _name)
    [@monitor.registered?(task("known-#{random.rand(KNOWN)}")), true]
  end

  def unknown(random, _name)
    [@monitor.registered?(task("unknown-#{random.rand(KNOWN)}")), false]
  end

  def own_ids(random, _name)
    number = random.rand(@others.size)
    [@others[number].registered_task_ids.sort, @own[number].map { |id| @others[number].full_task_id(id) }]
  end

  def total(_random, _name)
    [@monitor.class.total_max_connections, CAPACITY]
  end

  def processes(_random, _name)
    [@monitor.class.registered_process_ids, [PEER]]
  end

  def counts(_random, _name)
    [@monitor.class.inflight_counts_by_process, {"peer:1" => {inflight: PEERS_ENTRIES, max_capacity: CAPACITY}}]
  end

  # Others register meanwhile.
  def count(_random, _name)
    count = @monitor.class.inflight_count
    [count.is_a?(Integer) && count > KNOWN && count < CAPACITY * 100, true]
  end

  def needed(_random, _name)
    [@monitor.gc_needed?, true]
  end

  # Half of them stay.
  def register(random, name)
    request = task(name)
    answers = [@monitor.register(request), @monitor.registered?(request)]
    if random.rand(2).zero?
      kept << @monitor.full_task_id(name)
      return [answers, [nil, true]]
    end
    answers << @monitor.unregister(request) << @monitor.registered?(request) << @monitor.heartbeat_timestamp_for(request)
    [answers, [nil, true, nil, false, nil]]
  end

  # None of these exists, so none may be added.
  def beat(random, name)
    [@monitor.update_heartbeats(["#{name}-none", "#{name}-neither"]), nil]
  end
end
