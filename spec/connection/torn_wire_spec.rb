# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/wire_proxy"

RSpec.describe "a wire that is slow, or torn" do
  include_context "with a server of its own"

  let(:index) { "sidekiq:patient_http:inflight_index" }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:random) { Random.new(RSpec.configuration.seed) }
  let(:seed) { "seed #{RSpec.configuration.seed}" }

  # Far more than an example takes: nothing here ends by a timeout of Redis.
  def through(proxy, **settings)
    via = Sidekiq::RedisConnection.create(url: proxy.url, timeout: 60, reconnect_attempts: 0, **settings)
    Sidekiq::Client.via(via) { yield via }
  end

  # @return [Array] the answers to one call of each kind, and what they should be
  def conversation
    ids = %w[a b].map { |id| monitor.full_task_id(id) }
    asked = Time.now.to_f * 1_000
    answers = [
      monitor.ping_process, monitor.register(task("a", args: ["\u{1F4E6} \r\n $5\r\n -ERR \r\n"])), monitor.register(task("b")),
      monitor.registered?(task("a")), monitor.registered?(task("x")), monitor.update_heartbeats(%w[a x]),
      (monitor.heartbeat_timestamp_for(task("a")) - asked).abs < 60_000, monitor.registered_task_ids.sort,
      monitor.acquire_gc_lock, monitor.release_gc_lock, monitor.class.inflight_count, monitor.unregister(task("a")),
      monitor.class.inflight_counts_by_process.values, monitor.registered_task_ids
    ]
    [answers, [nil, nil, nil, true, false, nil, true, ids, true, true, 2, nil, [{inflight: 1, max_capacity: 10}], [ids.last]]]
  end

  {
    "one byte at a time in both directions" => ->(proxy, _) { proxy.crumble },
    "in pieces of any size" => ->(proxy, random) { proxy.split { 1 + random.rand(40) } },
    "with round trips of 1 ms" => ->(proxy, _) { proxy.delay(0.000_5) },
    "with round trips of 200 ms" => ->(proxy, _) { proxy.delay(0.1) }
  }.each do |name, network|
    it "carries every call and its answer #{name}, over one connection" do
      WireProxy.open(server.port) do |proxy|
        network.call(proxy, random)
        through(proxy) do
          answers, expected = conversation
          expect(answers).to eq(expected), "#{seed}: #{answers}"
          expect(proxy.connections).to eq(1)
        end
      end
    end
  end

  it "carries the calls of many threads in pieces of any size, each with its own answer" do
    tasks = Array.new(10) { |number| task("task-#{number}") }
    tasks.each_slice(2) { |even, _| monitor.register(even) }
    WireProxy.open(server.port) do |proxy|
      proxy.split { 1 + random.rand(30) }
      through(proxy) do |via|
        callers = Array.new(5) do |caller|
          numbers = Random.new(RSpec.configuration.seed + caller)
          Thread.new do
            Sidekiq::Client.via(via) do
              Array.new(20) { numbers.rand(10) }.all? { |number| monitor.registered?(tasks[number]) == number.even? }
            end
          end
        end
        expect(callers.map(&:value)).to all(be(true)), seed
      end
    end
  end

  describe "with 50 MB to carry" do
    let(:size) { 50_000_000 }
    # Not of one character: a piece that is lost or twice there shows.
    let(:text) { random.bytes(500).unpack1("H*") * (size / 1_000) }

    def long_ids(count, length)
      prefix = monitor.full_task_id("")
      ids = Array.new(count) { |number| "#{prefix}#{number.to_s.rjust(length - prefix.bytesize, "0")}" }
      ids.each_slice(1_000) { |slice| server.call("ZADD", index, *slice.flat_map { |id| [1, id] }) }
      ids
    end

    it "takes a job of that size, and gives it back whole from a recovery" do
      WireProxy.open(server.port) do |proxy|
        proxy.split { 1 + random.rand(60_000) }
        through(proxy) do
          monitor.register(task("large", jid: "0123", args: [text]))
          expect(monitor.registered?(task("large"))).to be(true)
          sleep 0.005
          expect(monitor.cleanup_orphaned_requests(0, nil)).to eq(1)
          expect(monitor.registered?(task("large"))).to be(false)
        end
      end
      job = JSON.parse(server.call("LPOP", "queue:default"))
      expect(job["args"] == [text]).to be(true), seed
      expect(job["jid"]).to eq("0123")
    end

    it "lists a great many long ids" do
      ids = long_ids(50_000, 1_000)
      WireProxy.open(server.port) do |proxy|
        proxy.split { 1 + random.rand(60_000) }
        through(proxy) do
          found = monitor.registered_task_ids
          expect(found.sum(&:bytesize)).to be >= size
          expect(found.sort == ids.sort).to be(true), seed
          expect(monitor.registered?(task("x"))).to be(false)
        end
      end
    end

    raising = ->(thread) { thread.raise(KeyError, "enough") }
    killing = ->(thread) { thread.kill }

    # How many bytes of the reply come before the interrupt.
    {1 => raising, 12 => killing, 4_096 => raising, 65_537 => killing, 700_000 => raising}.each do |after, interrupt|
      it "gives the next call its own answer when an interrupt comes after #{after} bytes of the reply" do
        long_ids(2_000, 1_000)
        monitor.register(task("known"))
        WireProxy.open(server.port) do |proxy|
          through(proxy) do |via|
            expect(monitor.registered?(task("known"))).to be(true)
            interrupted(via, proxy, :reply, after, interrupt) { monitor.registered_task_ids }
            expect([monitor.registered?(task("unknown")), monitor.registered?(task("known"))]).to eq([false, true])
            expect(monitor.registered_task_ids.size).to eq(2_001)
          end
        end
      end
    end

    it "does nothing, and gives the next call its own answer, when an interrupt comes after the beginning of a request" do
      monitor.register(task("known"))
      large = task("large", args: [text])
      WireProxy.open(server.port) do |proxy|
        through(proxy) do |via|
          {1 => raising, 40 => killing, 65_537 => raising, 30_000_000 => killing}.each do |after, interrupt|
            expect(monitor.registered?(task("known"))).to be(true)
            interrupted(via, proxy, :request, after, interrupt) { monitor.register(large) }
            expect([monitor.registered?(task("large")), monitor.registered?(task("known"))]).to eq([false, true])
          end
          monitor.register(large)
          expect(monitor.registered?(large)).to be(true)
        end
      end
    end

    def interrupted(via, proxy, direction, after, interrupt, &call)
      held = proxy.hold_next(direction, after: after)
      thread = Thread.new { Sidekiq::Client.via(via, &call) }
      thread.report_on_exception = false
      expect(held.pop(timeout: 30)).to be(true), "#{direction} after #{after}: nothing came"
      interrupt.call(thread)
      expect(seconds { raised { thread.join } }).to be < 5
      expect(thread.status).to be_falsey
    end
  end

  it "never gives an answer to another call, whenever an interrupt comes between the pieces" do
    tasks = Array.new(20) { |number| task("task-#{number}") }
    tasks.each_slice(2) { |even, _| monitor.register(even) }
    outcomes = Hash.new(0)
    WireProxy.open(server.port) do |proxy|
      through(proxy) do
        monitor.ping_process
        proxy.split { sleep(0.0003) && 1 + random.rand(8) }
        150.times do
          number = random.rand(tasks.size)
          outcomes[Timeout.timeout(0.002 + random.rand(0.012)) { monitor.registered?(tasks[number]) } == number.even?] += 1
        rescue Timeout::Error
          outcomes[:interrupted] += 1
        end
        proxy.split { 1_000 }
        answers = tasks.map { |one| monitor.registered?(one) }
        expect(answers).to eq(Array.new(20, &:even?)), "#{seed}: #{outcomes}"
      end
    end
    expect(outcomes).not_to include(false), "#{seed}: #{outcomes}"
    expect(outcomes[:interrupted]).to be > 20, "#{seed}: #{outcomes}"
  end
end
