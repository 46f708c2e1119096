# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/wire_proxy"

RSpec.describe "a Redis that does not answer" do
  include_context "with a server of its own"

  let(:settings) { {url: server.url, timeout: 0.4} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  before { monitor.register(task("known")) }

  it "raises ReadTimeoutError at about read_timeout, and gives the next calls their own answers" do
    server.freeze_for_a_while do
      elapsed = seconds do
        expect { monitor.heartbeat_timestamp_for(task("known")) }
          .to raise_error(RedisClient::ReadTimeoutError, /127\.0\.0\.1:#{server.port}/)
      end
      expect(elapsed).to be_between(0.35, 2)
    end

    expect(monitor.registered?(task("unknown"))).to be(false)
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("known")])
    expect(monitor.heartbeat_timestamp_for(task("known"))).to be_an(Integer)
  end

  it "is a timeout in each of many threads at about the same moment" do
    server.freeze_for_a_while do
      errors = nil
      elapsed = seconds { errors = threads(20) { monitor.register(task) }.map { |thread| raised { thread.value } } }
      expect(errors).to all(be_a(RedisClient::ConnectionError))
      expect(elapsed).to be < 3
    end
    answers = threads(20) { |number| monitor.registered?(task((number == 7) ? "known" : "unknown")) }.map(&:value)
    expect(answers.each_index.select { |number| answers[number] }).to eq([7])
  end

  it "does not time out as long as something of the reply keeps coming" do
    WireProxy.open(server.port) do |proxy|
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: proxy.url, timeout: 0.2)) do
        monitor.ping_process
        proxy.crumble_replies(pause: 0.02)
        # Its reply has more than 20 bytes: two timeouts at least.
        elapsed = seconds { expect(monitor.registered_task_ids).to eq([monitor.full_task_id("known")]) }
        expect(elapsed).to be > 0.4
      end
    end
  end

  it "honours read_timeout where it differs from the others, and has none where it is nil" do
    server.freeze_for_a_while do
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: server.url, timeout: 5, read_timeout: 0.1)) do
        expect(seconds { raised { monitor.register(task) } }).to be_between(0.08, 2)
      end
    end

    endless = Sidekiq::RedisConnection.create(url: server.url, timeout: 0.1, read_timeout: nil)
    Sidekiq::Client.via(endless) { monitor.register(task("first")) }
    waiting = nil
    server.freeze_for_a_while do
      waiting = Thread.new { Sidekiq::Client.via(endless) { monitor.registered?(task("first")) } }
      expect(waiting.join(0.4)).to be_nil
    end
    expect(waiting.value).to be(true)
  end

  describe "when it is asked for the GC lock" do
    # The server must know the scripts, so that it carries out what it answers too late.
    before do
      PatientHttp::Sidekiq::TaskMonitor.new(config).tap do |another|
        2.times { another.acquire_gc_lock && another.release_gc_lock }
      end
    end

    def holder
      eventually { server.call("GET", "sidekiq:patient_http:gc_lock") }
    end

    it "has given it to the caller, who learns that from the next call, and no later one" do
      server.freeze_for_a_while { expect { monitor.acquire_gc_lock }.to raise_error(RedisClient::ReadTimeoutError) }
      expect(holder).to eq(monitor.full_task_id("").chomp("/"))
      expect(Array.new(3) { monitor.acquire_gc_lock }).to eq([true, false, false])
      expect(server.call("TTL", "sidekiq:patient_http:gc_lock")).to be_within(5).of(120)
      expect(PatientHttp::Sidekiq::TaskMonitor.new(config).acquire_gc_lock).to be(false)
    end

    it "has taken it back, and gives it again" do
      monitor.acquire_gc_lock
      server.freeze_for_a_while { expect { monitor.release_gc_lock }.to raise_error(RedisClient::ReadTimeoutError) }
      expect(Array.new(2) { monitor.acquire_gc_lock }).to eq([true, false])
    end
  end

  it "never gives a call the late answer to an earlier one" do
    seed = RSpec.configuration.seed
    random = Random.new(seed)
    tasks = Array.new(20) { |number| task("task-#{number}") }
    tasks.each_slice(2) { |even, _odd| monitor.register(even) }
    outcomes = Hash.new(0)
    WireProxy.open(server.port) do |proxy|
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: proxy.url, timeout: 0.03)) do
        raised { monitor.ping_process }
        # Some answers come in time, some after their call has given up.
        proxy.delay_replies { (random.rand < 0.4) ? 0.05 : 0 }
        120.times do
          number = random.rand(tasks.size)
          expected = number.even?
          outcomes[monitor.registered?(tasks[number]) == expected] += 1
        rescue RedisClient::ConnectionError
          outcomes[:raised] += 1
        end
      end
    end

    expect(outcomes).not_to include(false), "seed #{seed}: #{outcomes}"
    expect(outcomes[true]).to be > 5, "seed #{seed}: #{outcomes}"
    expect(outcomes[:raised]).to be > 5, "seed #{seed}: #{outcomes}"
  end
end
