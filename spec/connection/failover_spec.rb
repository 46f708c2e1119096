# frozen_string_literal: true

require "spec_helper"
require "support/registering"
require "support/sentinels"

RSpec.describe "a master that Sentinel watches" do
  include Observing

  before(:context) { @watched = Sentinels.new }
  after(:context) { @watched.stop }

  before do
    @old = watched.settle
    old.call("FLUSHALL")
  end

  attr_reader :watched, :old

  # By their name the servers know ours: Sidekiq's own connection is not used here.
  let(:pool) { watched.pool(id: "registering") }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  # Threads at once, and how many registrations in a row each of them must get through for things to be well.
  let(:callers) { 10 }
  let(:well) { 30 }
  # What may be raised while the master changes: the classes of redis-client, and of its CommandError what says that this server is
  # not the one to write to.
  let(:passing) do
    [RedisClient::CannotConnectError, RedisClient::ConnectionError, RedisClient::ReadTimeoutError, RedisClient::FailoverError,
      RedisClient::ReadOnlyError, RedisClient::MasterDownError]
  end

  # @yieldreturn [RedisServer] who is the master now; no other server takes writes any more
  # @return [Array(RedisServer, Registering, Float)] the last the time since when that is so
  def registering_through
    work = Registering.new(monitor, pool, threads: callers)
    expect(eventually { work.each_at_least?(well) }).to be(true)
    master = yield
    since = monotonic
    expect(eventually(within: Sentinels::PATIENCE) { work.each_at_least?(well, since: since) }).to be(true)
    work.stop
    [master, work, since]
  ensure
    work&.stop
  end

  # @return [RedisServer] the new master
  def replaced
    eventually(within: Sentinels::PATIENCE) { ![nil, old].include?(watched.named) && watched.master } or raise "no new master"
  end

  # @return [Array<String>] of the tasks
  def registered_at(server)
    server.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1).map { |id| id[%r{/(.*)}, 1] }
  end

  def ours(server)
    clients_of(server).count { |client| client["name"] == "registering" }
  end

  def expect_the_rest_to_be_right(fault, master, work, since)
    unexpected = work.errors.reject { |error| passing.include?(error.class) || error.message.match?(/\A(NOREPLICAS|LOADING)\b/) }
    expect(unexpected.map(&:inspect).uniq).to eq([])

    stored = registered_at(master)
    expect(work.acknowledged(since: since) - stored).to eq([])
    expect(master.call("HLEN", "sidekiq:patient_http:inflight_jobs")).to eq(stored.size)
    expect(ours(master)).to be_between(1, callers)
    tell(fault, work, stored)
  end

  # What Redis does not promise is told, not asked for: its replicas hear of a write after it was acknowledged.
  def tell(fault, work, stored)
    acknowledged = work.acknowledged
    errors = work.errors.map { |error| error.message[/\A(NOREPLICAS|LOADING)\b/] || error.class.name.split("::").last }
    raised = errors.tally.map { |name, count| "#{count} x #{name}" }
    RSpec.configuration.reporter.message("      #{fault}: #{acknowledged.size} acknowledged, " \
      "none for #{work.longest_gap.round(1)} s, #{(acknowledged - stored).size} lost by replication; #{raised.join(", ")}")
  end

  it "is followed to where it is when it was killed, and comes back to nobody" do
    outcome = registering_through { old.kill && replaced }
    expect_the_rest_to_be_right("killed", *outcome)

    old.start
    watched.settle
    monitor_of_now = -> { Sidekiq::Client.via(pool) { monitor.register(task) } }
    expect(Array.new(20) { monitor_of_now.call }).to all(be_nil)
    expect(old.call("ROLE").first).to eq("slave")
    expect(ours(old)).to eq(0)
  end

  it "is followed to where it is when its host says nothing any more" do
    outcome = registering_through { Process.kill(:STOP, old.pid) && replaced }
    expect_the_rest_to_be_right("frozen", *outcome)

    Process.kill(:CONT, old.pid)
    expect(watched.settle).not_to eq(old)
    expect(eventually { ours(old).zero? }).to be(true)
  ensure
    Process.kill(:CONT, old.pid)
  end

  it "is found by the second call of a single thread when its host says nothing, however many connections were idle" do
    Registering.new(monitor, pool, threads: callers).tap { |work| eventually { work.each_at_least?(well) } }.stop
    expect(pool_counts(pool).last).to be > 1
    old.freeze_for_a_while do
      replaced
      Sidekiq::Client.via(pool) do
        expect { monitor.register(task) }.to raise_error(RedisClient::ReadTimeoutError)
        expect(monitor.register(task("found"))).to be_nil
        expect(monitor.registered?(task("found"))).to be(true)
      end
    end
  end

  # With one, the old master goes on as long as the other replica is with it, for about a second; with all of them it stops at once,
  # and the new one cannot begin before the old one has become its replica.
  [1, 2].each do |replicas|
    context "that is replaced though it is well, with min-replicas-to-write #{replicas}" do
      before { limit(replicas) }
      after { limit(0) }

      def limit(replicas)
        watched.servers.each { |server| server.call("CONFIG", "SET", "min-replicas-to-write", replicas, "min-replicas-max-lag", 2) }
      end

      it "is left at the latest when it has no replicas any more, while it takes itself for the master still" do
        left_behind = nil
        master, *rest = registering_through do
          watched.switch_over
          replaced.tap do
            eventually(within: Sentinels::PATIENCE) { old.call("INFO", "replication").match?(/role:slave|connected_slaves:0/) }
            left_behind = registered_at(old)
            left_behind = nil unless old.call("ROLE").first == "master"
          end
        end
        expect_the_rest_to_be_right("replaced, min-replicas-to-write #{replicas}", master, *rest)
        expect(rest.first.acknowledged - registered_at(master) - left_behind).to eq([]) if left_behind

        expect(watched.settle).to eq(master)
        expect([old.call("ROLE").first, ours(old)]).to eq(["slave", 0])
      end
    end
  end

  describe "for what Sidekiq's settings say of the sentinels" do
    def through(sentinels, **settings, &block)
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: "redis://the-master", sentinels: sentinels, **settings), &block)
    end

    def both_errors
      [raised { Sidekiq.redis { |redis| redis.call("SET", "x", 1) } }, raised { monitor.register(task) }]
    end

    it "is found by the password that sentinels have for everybody, and not without" do
      watched.sentinels.each { |sentinel| sentinel.call("ACL", "SETUSER", "default", "resetpass", ">s3cret-of-sentinels") }
      through(watched.addresses) do
        theirs, ours = both_errors
        expect([ours.class, ours.message]).to eq([theirs.class, theirs.message]).and match([RedisClient::CommandError, /NOAUTH/])
      end
      through(watched.addresses, sentinel_password: "s3cret-of-sentinels") { expect(monitor.register(task)).to be_nil }
      expect(registered_at(watched.master).size).to eq(1)
    ensure
      watched.sentinels.each { |sentinel| sentinel.call("ACL", "SETUSER", "default", "nopass") }
    end

    it "is found though the first sentinels of the list are gone, or silent" do
      silent = watched.sentinels.first
      silent.freeze_for_a_while do
        through([{host: "127.0.0.1", port: RedisServer.free_port}, *watched.addresses], timeout: 0.3) do
          expect(monitor.register(task)).to be_nil
        end
      end
      expect(registered_at(watched.master).size).to eq(1)
    end

    it "is refused, as Sidekiq's connection does, while it is a replica, and taken once it is none" do
      replica = RedisServer.start
      replica.call("REPLICAOF", "127.0.0.1", RedisServer.free_port)
      mistaken = Sentinels.watch("the-master", replica, down_after: 3_600_000)
      through([{host: "127.0.0.1", port: mistaken.port}]) do
        expect(both_errors.map(&:class)).to eq([RedisClient::FailoverError] * 2)
        replica.call("REPLICAOF", "NO", "ONE")
        expect(both_errors).to eq([nil, nil])
      end
      expect(registered_at(replica).size).to eq(1)
    ensure
      [mistaken, replica].compact.each(&:stop)
    end
  end
end
