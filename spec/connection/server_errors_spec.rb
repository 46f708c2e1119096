# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/scripted_server"

RSpec.describe "a Redis that refuses" do
  include_context "with a server of its own"

  let(:index) { "sidekiq:patient_http:inflight_index" }
  let(:jobs) { "sidekiq:patient_http:inflight_jobs" }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  # As it is with Sidekiq's own connection.
  def error_of_sidekiq(*command)
    raised { Sidekiq.redis { |redis| redis.call(*command) } }
  end

  describe "because a key is of another type" do
    before do
      monitor.ping_process
      server.call("SET", index, "not a sorted set")
    end

    it "raises WrongTypeError from every call that needs it, and goes on with the same connection" do
      connected = clients_of(server).map { |client| client["id"] }
      calls = [
        -> { monitor.register(task) }, -> { monitor.unregister(task) }, -> { monitor.update_heartbeats(["a"]) },
        -> { monitor.registered?(task) }, -> { monitor.heartbeat_timestamp_for(task) }, -> { monitor.registered_task_ids },
        -> { PatientHttp::Sidekiq::TaskMonitor.inflight_count },
        -> { PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process }
      ]
      errors = calls.map { |call| raised(&call) }

      expect(errors.map(&:class)).to eq([error_of_sidekiq("ZCARD", index).class] * calls.size)
      expect(errors.map(&:class).uniq).to eq([RedisClient::WrongTypeError])
      expect(errors.map(&:message)).to all(include("WRONGTYPE", "127.0.0.1:#{server.port}"))
      expect(clients_of(server).map { |client| client["id"] }).to include(*connected)

      server.call("DEL", index)
      monitor.register(task("a"))
      expect(monitor.registered?(task("a"))).to be(true)
      expect(clients_of(server).count { |client| client["lib-name"] == "patient_http_monitor" }).to be <= 1
    end
  end

  describe "because it is a replica" do
    before { monitor.register(task("known")) }
    after { server.call("REPLICAOF", "NO", "ONE") }

    it "raises ReadOnlyError from writes, answers reads, and takes writes again when it is the master again" do
      server.call("REPLICAOF", "127.0.0.1", RedisServer.free_port)
      theirs = error_of_sidekiq("SET", "x", 1)
      expect(theirs).to be_a(RedisClient::ReadOnlyError)
      expect { monitor.register(task("a")) }.to raise_error(RedisClient::ReadOnlyError, /READONLY/)
      expect { monitor.unregister(task("known")) }.to raise_error(RedisClient::ReadOnlyError)
      expect { monitor.update_heartbeats(["known"]) }.to raise_error(RedisClient::ReadOnlyError)
      expect { monitor.ping_process }.to raise_error(RedisClient::ReadOnlyError)
      expect { monitor.acquire_gc_lock }.to raise_error(RedisClient::ReadOnlyError)
      expect(monitor.registered?(task("known"))).to be(true)
      expect(monitor.registered?(task("a"))).to be(false)

      server.call("REPLICAOF", "NO", "ONE")
      monitor.register(task("a"))
      expect(monitor.registered_task_ids).to contain_exactly(monitor.full_task_id("known"), monitor.full_task_id("a"))
    end

    it "never gives a later call the rest of a refused one's replies" do
      20.times do |number|
        server.call("REPLICAOF", "127.0.0.1", RedisServer.free_port)
        expect { monitor.register(task("refused-#{number}")) }.to raise_error(RedisClient::ReadOnlyError)
        expect(monitor.registered?(task("known"))).to be(true)
        server.call("REPLICAOF", "NO", "ONE")
        expect(monitor.registered?(task("refused-#{number}"))).to be(false)
        expect(monitor.heartbeat_timestamp_for(task("known"))).to be_within(60_000).of(Time.now.to_f * 1_000)
      end
    end
  end

  describe "because its memory is full" do
    before do
      monitor.register(task("known"))
      server.call("CONFIG", "SET", "maxmemory", "1")
    end

    after { server.call("CONFIG", "SET", "maxmemory", "0") }

    it "raises OutOfMemoryError from what needs memory, with nothing half-written, and lets go what was there" do
      expect(error_of_sidekiq("SET", "x", 1)).to be_a(RedisClient::OutOfMemoryError)
      calls = [-> { monitor.register(task("a")) }, -> { monitor.ping_process }, -> { monitor.acquire_gc_lock },
        -> { monitor.record_gc_run }, -> { monitor.update_heartbeats(["known"]) }]
      expect(calls.map { |call| raised(&call).class }).to eq([RedisClient::OutOfMemoryError] * calls.size)
      expect(server.call("KEYS", "*")).to contain_exactly(index, jobs)
      expect([server.call("ZCARD", index), server.call("HLEN", jobs)]).to eq([1, 1])

      monitor.unregister(task("known"))
      expect(server.call("KEYS", "*")).to be_empty
      server.call("CONFIG", "SET", "maxmemory", "0")
      monitor.register(task("a"))
      expect(monitor.registered?(task("a"))).to be(true)
    end
  end

  # A Redis 7.0 that is full refuses the transaction, too, and an ACL the script that is tried then. Neither is what is wrong.
  it "because its memory is full and its ACL allows no script raises OutOfMemoryError from unregister" do
    answers = lambda do |command|
      case command.first.upcase
      when "ZREM", "HDEL" then "-OOM command not allowed when used memory > 'maxmemory'.\r\n"
      when "EVAL", "EVALSHA" then "-NOPERM User reporter has no permissions to run the 'evalsha' command\r\n"
      end
    end
    ScriptedServer.open("EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n") do |full|
      full.define_singleton_method(:answer_to) { |command| answers.call(command) || super(command) }
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: full.url, timeout: 5, reconnect_attempts: 0)) do
        expect { monitor.unregister(task) }.to raise_error(RedisClient::OutOfMemoryError, /OOM/)
      end
    end
  end

  it "shows neither the job nor its arguments in the errors" do
    server.call("SET", index, "not a sorted set")
    error = raised { monitor.register(task(args: ["a-secret-argument"])) }
    expect(text_of(error)).not_to include("a-secret-argument")
    expect(error.command.join).not_to include("a-secret-argument")
  end
end
