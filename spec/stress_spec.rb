# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/registry"

RSpec.describe "50 threads with 100,000 calls of all kinds, while threads and connections are killed at random," do
  include_context "with a server of its own"

  let(:callers) { 50 }
  let(:calls) { 100_000 }
  let(:known) { 200 }
  let(:settings) { {url: server.url, timeout: 20, pool_timeout: 20} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:random) { Random.new(RSpec.configuration.seed) }
  let(:outcomes) { Queue.new }

  # Each answer is another one, so that none can pass for that to another question.
  before do
    known.times do |number|
      monitor.register(task("known-#{number}"))
      server.call("ZADD", Registry::INDEX, number + 1, monitor.full_task_id("known-#{number}"))
    end
    server.call("SADD", Registry::PROCESSES, "peer:1:#{"f" * 16}")
    server.call("SET", "#{Registry::PROCESSES}:peer:1:#{"f" * 16}:max_connections", 4_711)
  end

  # One call whose answer is known.
  #
  # @return [Boolean] whether it was the right one
  def ask(number, own)
    case number % 8
    when 0, 1, 2 then monitor.heartbeat_timestamp_for(task("known-#{number % known}")) == (number % known) + 1
    when 3 then monitor.registered?(task("known-#{number % known}")) == true && !monitor.registered?(task("unknown-#{number}"))
    when 4 then PatientHttp::Sidekiq::TaskMonitor.total_max_connections == 4_711
    when 5 then PatientHttp::Sidekiq::TaskMonitor.registered_process_ids == ["peer:1:#{"f" * 16}"]
    when 6 then monitor.gc_needed? == true
    else register_and_unregister(task("#{own}-#{number}"))
    end
  end

  def register_and_unregister(request)
    monitor.register(request).nil? && monitor.update_heartbeats([request.id]).nil? && monitor.registered?(request) &&
      monitor.unregister(request).nil? && monitor.heartbeat_timestamp_for(request).nil?
  end

  def caller_thread(own)
    numbers = Random.new(RSpec.configuration.seed + own)
    threads(1) do
      loop do
        outcomes << (ask(numbers.rand(1_000_000), own) ? :right : :wrong)
      rescue RedisClient::ConnectionError
        # Its connection was killed more often than it may be made again.
        outcomes << :disconnected
      end
    end.first
  end

  # Ends a thread in the middle of whatever it does, and has another one go on.
  def kill_one_of(running, number)
    victim = random.rand(running.size)
    running[victim].kill
    running[victim] = caller_thread(1_000 + number)
  end

  def kill_a_connection
    victim = clients_of(server).sample(random: random) or return
    server.call("CLIENT", "KILL", "ID", victim["id"])
  end

  it "get no wrong answer, leak no connection, and do not wait for each other for ever" do
    running = Array.new(callers) { |own| caller_thread(own) }
    all = running.dup
    kills = 0
    deadline = monotonic + 120
    while outcomes.size < calls && monotonic < deadline
      sleep random.rand(0.02)
      kill_a_connection if (kills += 1).odd?
      all << kill_one_of(running, kills) if kills.even?
    end
    running.each(&:kill)
    expect(all.map { |thread| thread.join(10) }).to all(be_a(Thread))
    tally = Array.new(outcomes.size) { outcomes.pop }.tally
    RSpec.configuration.reporter.message("      seed #{RSpec.configuration.seed}: #{kills} kills, answers #{tally}")

    expect(tally).not_to include(:wrong)
    expect(tally.values.sum).to be >= calls
    expect(tally.fetch(:disconnected, 0)).to be < calls / 100
    GC.start
    expect(monitor.registered?(task("known-0"))).to be(true)
    open, idle = pool_counts(pool)
    expect([open, idle]).to eq([idle, open]).and all(be <= 50)
    expect(eventually { clients_of(server).size == open }).to be(true)
    # What a killed caller had registered; each had one at most.
    left = monitor.registered_task_ids.size - known
    expect(left).to be_between(0, kills)
  end
end
