# frozen_string_literal: true

require "spec_helper"
require "support/own_server"

# States that Redis gets into and leaves again: each with the error that Sidekiq's own connection raises in it.
RSpec.describe "a Redis in a state in which it refuses" do
  include_context "with a server of its own"

  let(:index) { "sidekiq:patient_http:inflight_index" }
  let(:jobs) { "sidekiq:patient_http:inflight_jobs" }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  # @return [Exception] what Sidekiq's own connection raises
  def theirs(*command)
    raised { Sidekiq.redis { |redis| redis.call(*command) } }
  end

  # The same as Sidekiq's: class, and message but for what the server says of the command.
  def expect_same(error, other, code)
    expect([error.class, error.message[/\A\S+/], error.config.server_url])
      .to eq([other.class, code, other.config.server_url])
    expect(other.message).to start_with(code)
  end

  # @return [Integer] how often the server refused a command of this name
  def refusals(name)
    line = server.call("INFO", "commandstats")[/^cmdstat_#{name}:.*/].to_s
    %w[rejected_calls failed_calls].sum { |field| Integer(line[/#{field}=(\d+)/, 1] || 0) }
  end

  # How often the server was asked is counted from here on.
  def begin_counting
    server.call("CONFIG", "RESETSTAT")
  end

  def works
    monitor.register(task("afterwards"))
    expect(monitor.registered?(task("afterwards"))).to be(true)
    expect(monitor.registered?(task("never"))).to be(false)
    expect(monitor.registered_task_ids).to include(monitor.full_task_id("afterwards"))
    expect([monitor.acquire_gc_lock, monitor.release_gc_lock]).to eq([true, true])
  end

  describe "as a replica" do
    after { server.call("REPLICAOF", "NO", "ONE") }

    # Nothing of redis-client's own repeats comes on top: what is counted is Sidekiq's rule.
    let(:settings) { {url: server.url, timeout: 3, reconnect_attempts: 0} }

    it "is asked twice by each write, as by Sidekiq, the second time over a new connection" do
      monitor.ping_process
      before = clients_of(server).map { |client| client["id"] }
      server.call("REPLICAOF", "127.0.0.1", RedisServer.free_port)
      begin_counting
      ours = raised { monitor.register(task) }
      expect(clients_of(server).map { |client| client["id"] } & before).to be_empty
      expect_same(ours, theirs("SETEX", "x", 1, "1"), "READONLY")
      expect([refusals("zadd"), refusals("hset"), refusals("setex")]).to eq([2, 2, 2])

      server.call("REPLICAOF", "NO", "ONE")
      expect(server.call("EXISTS", index, jobs)).to eq(0)
      works
    end

    it "raises MasterDownError from reads too where it may not serve old data, as Sidekiq's connection does" do
      monitor.register(task("known"))
      server.call("CONFIG", "SET", "replica-serve-stale-data", "no")
      server.call("REPLICAOF", "127.0.0.1", RedisServer.free_port)
      other = theirs("ZSCORE", index, "x")
      expect(other).to be_a(RedisClient::MasterDownError)
      calls = [-> { monitor.registered?(task) }, -> { monitor.heartbeat_timestamp_for(task) }, -> { monitor.registered_task_ids },
        -> { PatientHttp::Sidekiq::TaskMonitor.inflight_count }]
      calls.each { |call| expect_same(raised(&call), other, "MASTERDOWN") }

      server.call("REPLICAOF", "NO", "ONE")
      works
    ensure
      server.call("CONFIG", "SET", "replica-serve-stale-data", "yes")
    end
  end

  describe "without the replicas that it needs" do
    before { monitor.ping_process }
    after { server.call("CONFIG", "SET", "min-replicas-to-write", 0) }

    it "raises what Sidekiq's connection raises, after asking twice, and answers reads" do
      server.call("CONFIG", "SET", "min-replicas-to-write", 1)
      begin_counting
      other = theirs("SETEX", "x", 1, "1")
      expect_same(raised { monitor.register(task) }, other, "NOREPLICAS")
      expect([refusals("zadd"), refusals("hset"), refusals("setex")]).to eq([2, 2, 2])
      expect_same(raised { monitor.acquire_gc_lock }, other, "NOREPLICAS")
      expect(monitor.registered?(task)).to be(false)
      expect(server.call("EXISTS", index, jobs)).to eq(0)

      server.call("CONFIG", "SET", "min-replicas-to-write", 0)
      works
    end
  end

  describe "because it could not save" do
    let(:blocker) { File.join(server.dir, "dump.rdb") }

    def persistence(field)
      server.call("INFO", "persistence")[/^#{field}:(\S+)/, 1]
    end

    def save
      server.call("BGSAVE")
      expect(eventually { persistence("rdb_bgsave_in_progress") == "0" && persistence("rdb_last_bgsave_status") }).to be_truthy
    end

    before do
      # A folder where the file should go: that stops root too.
      FileUtils.rm_rf(blocker)
      FileUtils.mkdir_p(File.join(blocker, "in_the_way"))
      monitor.ping_process
      server.call("CONFIG", "SET", "save", "3600 1000000")
      save
    end

    after do
      FileUtils.rm_rf(blocker)
      save
      server.call("CONFIG", "SET", "save", "")
    end

    it "raises what Sidekiq's connection raises (MISCONF), once, and works as soon as it can save" do
      expect(persistence("rdb_last_bgsave_status")).to eq("err")
      begin_counting
      other = theirs("SETEX", "x", 1, "1")
      expect_same(raised { monitor.register(task) }, other, "MISCONF")
      expect([refusals("zadd"), refusals("setex")]).to eq([1, 1])
      expect_same(raised { monitor.ping_process }, other, "MISCONF")
      expect_same(raised { monitor.acquire_gc_lock }, other, "MISCONF")
      expect(server.call("EXISTS", index, jobs)).to eq(0)

      FileUtils.rm_rf(blocker)
      save
      works
    end
  end

  describe "because a script is running" do
    before do
      monitor.ping_process
      server.call("CONFIG", "SET", "busy-reply-threshold", 20)
    end

    def while_busy
      loop_forever = Thread.new do
        raised { RedisClient.new(url: server.url, timeout: 30, reconnect_attempts: 0).call("EVAL", "while true do end", 0) }
      end
      expect(eventually { raised { server.call("PING") }&.message.to_s.start_with?("BUSY") }).to be(true)
      yield
    ensure
      raised { server.call("SCRIPT", "KILL") }
      loop_forever.join
      server.call("CONFIG", "SET", "busy-reply-threshold", 5_000)
    end

    it "raises what Sidekiq's connection raises (BUSY), over connections new and old, and works when it has ended" do
      fresh = Sidekiq::RedisConnection.create(settings)
      while_busy do
        other = theirs("SETEX", "x", 1, "1")
        calls = [-> { monitor.register(task) }, -> { monitor.unregister(task) }, -> { monitor.registered?(task) },
          -> { monitor.acquire_gc_lock }, -> { Sidekiq::Client.via(fresh) { monitor.register(task) } }]
        calls.each { |call| expect_same(raised(&call), other, "BUSY") }
      end
      Sidekiq::Client.via(fresh) { works }
      expect(server.call("ZCARD", index)).to eq(1)
    end
  end

  describe "because of who asks" do
    let(:settings) { {url: "redis://reporter:s3cret-right@127.0.0.1:#{server.port}"} }

    def permit(*rules)
      server.call("ACL", "SETUSER", "reporter", "reset", "on", ">s3cret-right", "~*", "&*", "+@all", *rules)
    end

    before { permit }
    after { server.call("ACL", "DELUSER", "reporter") }

    it "raises PermissionError for a command or a key, as Sidekiq's connection does, with nothing half-written" do
      monitor.register(task("known"))
      {"-hset" => ["HSET", jobs, "x", "y"], "-@scripting" => nil, "resetkeys" => ["HSET", jobs, "x", "y"]}.each do |rule, command|
        permit(rule)
        next expect_same(raised { monitor.acquire_gc_lock }, theirs("EVAL", "return 1", 0), "NOPERM") unless command

        expect_same(raised { monitor.register(task("a")) }, theirs(*command), "NOPERM")
        expect([server.call("ZCARD", index), server.call("HLEN", jobs)]).to eq([1, 1])
      end
      permit
      works
    end

    it "raises what Sidekiq's connection raises when the password was changed under it, or the user deleted" do
      monitor.ping_process
      [["resetpass", ">s3cret-other"], ["off"]].each do |rules|
        permit(*rules)
        raised { server.call("CLIENT", "KILL", "USER", "reporter") }
        # redis-client may go on, without having logged in, with a connection that was refused: a new one is asked.
        other = Sidekiq::Client.via(Sidekiq::RedisConnection.create(settings)) { theirs("PING") }
        expect(other).to be_a(RedisClient::AuthenticationError)
        expect_same(raised { monitor.registered?(task) }, other, "WRONGPASS")
      end
      permit
      works
    end
  end

  describe "because a transaction cannot be carried out" do
    it "raises the error of the command that was refused, not EXECABORT, as Sidekiq's connection does" do
      monitor.register(task("known"))
      server.call("CONFIG", "SET", "maxmemory", 1)
      other = raised { Sidekiq.redis { |redis| redis.multi { |multi| multi.call("ZADD", index, 1, "a") } } }
      expect_same(raised { monitor.register(task) }, other, "OOM")
      server.call("CONFIG", "SET", "maxmemory", 0)
      works
    ensure
      server.call("CONFIG", "SET", "maxmemory", 0)
    end
  end
end
