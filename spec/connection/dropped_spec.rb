# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/wire_proxy"

RSpec.describe "a connection that is lost" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  describe "while it was idle" do
    before { monitor.register(task("known")) }

    after { expect(monitor.registered_task_ids).to include(monitor.full_task_id("known")) }

    it "is not noticed by the next call" do
      expect(server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")).to eq(1)
      expect(monitor.registered?(task("known"))).to be(true)
      expect(monitor.registered?(task("unknown"))).to be(false)
    end

    it "is not noticed either when there were many" do
      expect(all_at_once(20) { monitor.registered?(task("known")) }).to all(be(true))
      expect(server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")).to be > 10

      5.times do
        expect(monitor.registered?(task("known"))).to be(true)
        expect(monitor.registered?(task("unknown"))).to be(false)
      end
    end

    it "is not noticed by writes either, which happen once" do
      server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      monitor.register(task("written"))
      expect(server.call("ZCARD", "sidekiq:patient_http:inflight_index")).to eq(2)
      server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      monitor.unregister(task("written"))
      expect(server.call("HLEN", "sidekiq:patient_http:inflight_jobs")).to eq(1)
    end
  end

  it "is not noticed when the server was restarted" do
    monitor.register(task("before"))
    server.kill
    server.start
    monitor.register(task("after"))
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("after")])
  end

  it "raises CannotConnectError at once while the server is gone, and works as soon as it is back" do
    monitor.register(task("before"))
    server.kill
    3.times do
      elapsed = seconds { expect { monitor.register(task) }.to raise_error(RedisClient::CannotConnectError) }
      expect(elapsed).to be < 2
    end
    server.start
    monitor.register(task("after"))
    expect(monitor.registered?(task("after"))).to be(true)
  end

  it "finds a server that has forgotten the scripts" do
    expect(monitor.acquire_gc_lock).to be(true)
    expect(monitor.release_gc_lock).to be(true)
    server.call("SCRIPT", "FLUSH")
    expect(monitor.acquire_gc_lock).to be(true)
    server.call("SCRIPT", "FLUSH")
    expect(monitor.release_gc_lock).to be(true)
  end

  describe "because someone in this process closes its socket" do
    # Of the connections under test; the one that asks here is not among them.
    def open_sockets
      ports = clients_of(server).map { |client| Integer(client["addr"][/\d+\z/]) }
      ObjectSpace.each_object(Socket).reject(&:closed?).select { |socket| ports.include?(socket.local_address.ip_port) }
    end

    it "is not noticed by the next call, however many were idle" do
      all_at_once(6) { |number| monitor.register(task(number.to_s)) }
      expect(open_sockets.each(&:close).size).to be > 1
      expect(Array.new(8) { |number| monitor.registered?(task(number.to_s)) }).to eq([true] * 6 + [false] * 2)
    end

    context "while a call waits that may not be repeated" do
      let(:settings) { {url: server.url, timeout: 5, reconnect_attempts: 0} }

      it "raises an error of redis-client at once, and the next call works" do
        monitor.register(task("known"))
        sockets = open_sockets
        elapsed = nil
        server.freeze_for_a_while do
          waiting = threads(1) { monitor.registered?(task("known")) }.first
          eventually { waiting.stop? }
          elapsed = seconds { expect { sockets.each(&:close) && waiting.value }.to raise_error(RedisClient::Error) }
        end
        expect(elapsed).to be < 1
        expect(monitor.registered?(task("known"))).to be(true)
        expect(monitor.registered?(task("unknown"))).to be(false)
      end
    end
  end

  describe "in the middle of a call" do
    # Not repeated by itself: what a call does once is seen as it is.
    let(:once) { {timeout: 2, reconnect_attempts: 0} }

    def through(proxy, **settings, &block)
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: proxy.url, **settings), &block)
    end

    def stored
      [server.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1),
        server.call("HKEYS", "sidekiq:patient_http:inflight_jobs")].map { |ids| ids.map { |id| id[%r{/(.*)}, 1] } }
    end

    it "is repeated when the request did not arrive" do
      WireProxy.open(server.port) do |proxy|
        through(proxy, timeout: 2) do
          monitor.ping_process
          proxy.cut_next_request
          monitor.register(task("a"))
        end
      end
      expect(stored).to eq([["a"], ["a"]])
    end

    it "is repeated when half of the request arrived, of which nothing was done" do
      WireProxy.open(server.port) do |proxy|
        through(proxy, **once) do
          monitor.ping_process
          [1, 20, 80, 150, 200].each do |kept|
            proxy.cut_next_request(kept: kept)
            expect { monitor.register(task("a")) }.to raise_error(RedisClient::ConnectionError)
          end
        end
        expect(stored).to eq([[], []])

        through(proxy, timeout: 2) do
          monitor.ping_process
          proxy.cut_next_request(kept: 80)
          monitor.register(task("a"))
        end
      end
      expect(stored).to eq([["a"], ["a"]])
    end

    it "is repeated, to no harm, when the reply was lost, or half of it" do
      WireProxy.open(server.port) do |proxy|
        through(proxy, timeout: 2) do
          monitor.ping_process
          # The shortest reply has 3 bytes.
          [0, 1, 2].each do |kept|
            proxy.cut_next_reply(kept: kept)
            monitor.register(task("a"))
            expect(stored).to eq([["a"], ["a"]])
            proxy.cut_next_reply(kept: kept)
            expect(monitor.registered?(task("a"))).to be(true)
            proxy.cut_next_reply(kept: kept)
            monitor.update_heartbeats(["a", "never-registered"])
            proxy.cut_next_reply(kept: kept)
            expect(monitor.acquire_gc_lock).to be(true)
            proxy.cut_next_reply(kept: kept)
            expect(monitor.release_gc_lock).to be(true)
            proxy.cut_next_reply(kept: kept)
            monitor.unregister(task("a"))
            expect(stored).to eq([[], []])
          end
        end
      end
    end

    it "leaves the GC lock to be taken again, whether giving it back has happened or not" do
      WireProxy.open(server.port) do |proxy|
        through(proxy, **once) do
          2.times { monitor.acquire_gc_lock && monitor.release_gc_lock }
          %i[cut_next_request cut_next_reply].each do |cut|
            monitor.acquire_gc_lock
            proxy.public_send(cut)
            expect { monitor.release_gc_lock }.to raise_error(RedisClient::ConnectionError)
            expect(Array.new(2) { monitor.acquire_gc_lock }).to eq([true, false])
            expect(monitor.release_gc_lock).to be(true)
          end
        end
      end
    end

    it "raises when it may not be repeated, and what was asked for may have happened, whole" do
      WireProxy.open(server.port) do |proxy|
        through(proxy, **once) do
          monitor.ping_process
          proxy.cut_next_reply
          expect { monitor.register(task("a")) }.to raise_error(RedisClient::ConnectionError)
          expect(stored).to eq([["a"], ["a"]])
          expect(monitor.registered?(task("a"))).to be(true)
        end
      end
    end

    it "loses no job of a recovery, whatever step of it the answer is lost to" do
      other = PatientHttp::Sidekiq::TaskMonitor.new(config)
      WireProxy.open(server.port) do |proxy|
        through(proxy, **once) do
          # The steps are named by what their request holds; the first is the push, which is Sidekiq's.
          [/lpush/i, /EVALSHA/, /ZRANGE/, /./].each_with_index do |step, number|
            monitor.register(task("orphan", jid: "job-#{number}"))
            sleep 0.005
            proxy.cut_reply_to(step)
            raised { other.cleanup_orphaned_requests(0, nil) }
            sleep 0.005
            other.cleanup_orphaned_requests(0, nil)
          end
        end
      end
      jids = server.call("LRANGE", "queue:default", 0, -1).map { |job| JSON.parse(job)["jid"] }
      expect(jids.uniq).to contain_exactly("job-0", "job-1", "job-2", "job-3")
      expect(stored).to eq([[], []])
    end
  end

  it "is replaced by one to where the server is now, however many are idle, when the server became a replica" do
    monitor = PatientHttp::Sidekiq::TaskMonitor.new(config)
    replica = server
    WireProxy.open(replica.port) do |proxy|
      moving = Sidekiq::RedisConnection.create(url: proxy.url, timeout: 3)
      all_at_once(10) { Sidekiq::Client.via(moving) { monitor.registered?(task("a")) } }
      replica.call("REPLICAOF", "127.0.0.1", REDIS.port)
      proxy.lead_to(REDIS.port)

      Sidekiq::Client.via(moving) { 5.times { |number| monitor.register(task("after-#{number}")) } }
      expect(REDIS.call("ZCARD", "sidekiq:patient_http:inflight_index")).to eq(5)
    end
  ensure
    replica&.call("REPLICAOF", "NO", "ONE")
  end
end
