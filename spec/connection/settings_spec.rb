# frozen_string_literal: true

require "spec_helper"
require "sidekiq/capsule"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "which Redis the monitor talks to" do
  include_context "with a server of its own"

  # What every example looks at: the entry is where Sidekiq's own connection sees it.
  def registers_where_sidekiq_looks
    task = task()
    monitor.register(task)
    ids = Sidekiq.redis { |redis| redis.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1) }
    expect(ids).to contain_exactly(end_with("/#{task.id}"))
  end

  describe "by the environment, in a process of its own" do
    include RubyProcess

    let(:program) do
      <<~RUBY
        require "patient_http_monitor"
        require "support/tasks"
        include Tasks
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        SET_UP
        monitor.register(task("from-elsewhere"))
        puts Sidekiq.redis { |redis| redis.call("ZCARD", "sidekiq:patient_http:inflight_index") }
      RUBY
    end

    def expect_entry_in(db, outcome)
      expect([outcome.output, outcome.errors]).to eq(["1", ""])
      server.client.call("SELECT", db)
      expect(server.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1)).to contain_exactly(end_with("/from-elsewhere"))
    ensure
      server.client.call("SELECT", 0)
    end

    it "is the one of REDIS_URL" do
      expect_entry_in(3, ruby(program.sub("SET_UP", ""), env: {"REDIS_URL" => server.url(3)}))
    end

    it "is the one that REDIS_PROVIDER names" do
      env = {"REDIS_URL" => "redis://127.0.0.1:1/0", "REDIS_PROVIDER" => "OUR_REDIS", "OUR_REDIS" => server.url(4)}
      expect_entry_in(4, ruby(program.sub("SET_UP", ""), env: env))
    end

    it "is the one that was set as Sidekiq.default_configuration.redis" do
      set_up = "Sidekiq.default_configuration.redis = {url: #{server.url.inspect}, db: 5}"
      expect_entry_in(5, ruby(program.sub("SET_UP", set_up), env: {"REDIS_URL" => "redis://127.0.0.1:1/0"}))
    end

    it "is the one that was set as Sidekiq.configure_client, also when this came after the gem was loaded and in use" do
      set_up = <<~RUBY
        before = (monitor.register(task) rescue $!.class.name)
        raise "connected to \#{before}" unless before == "RedisClient::CannotConnectError"
        Sidekiq.instance_variable_set(:@config, nil)
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        Sidekiq.configure_client { |config| config.redis = {url: #{server.url(6).inspect}} }
      RUBY
      expect_entry_in(6, ruby(program.sub("SET_UP", set_up), env: {"REDIS_URL" => "redis://127.0.0.1:1/0"}))
    end
  end

  context "with a db" do
    let(:settings) { {url: server.url(7)} }

    it "is the same one for the monitor and for Sidekiq" do
      registers_where_sidekiq_looks
      expect(clients_of(server).map { |client| client["db"] }).to eq(%w[7 7])
    end
  end

  context "with a user and a password" do
    let(:settings) { {url: "redis://reporter:s3cret%40w0rd@127.0.0.1:#{server.port}/2"} }

    before { server.call("ACL", "SETUSER", "reporter", "reset", "on", ">s3cret@w0rd", "~*", "+@all") }

    it "logs in as Sidekiq does" do
      registers_where_sidekiq_looks
      expect(clients_of(server).map { |client| [client["user"], client["db"]] }).to eq([%w[reporter 2]] * 2)
      expect(Sidekiq.redis { |redis| redis.call("ACL", "WHOAMI") }).to eq("reporter")
    end

    it "works for a user who may not introduce the client" do
      server.call("ACL", "SETUSER", "reporter", "-client")
      registers_where_sidekiq_looks
    end

    it "raises what redis-client raises when the user may not write" do
      server.call("ACL", "SETUSER", "reporter", "-zadd")
      expect { monitor.register(task) }.to raise_error(RedisClient::PermissionError, /NOPERM/)
    end
  end

  context "with a password for the default user" do
    let(:settings) { {url: server.url, password: "s3cret-word"} }

    # The client that asks here has logged in before.
    before { server.call("CONFIG", "SET", "requirepass", "s3cret-word") }
    after { server.call("CONFIG", "SET", "requirepass", "") }

    it "logs in" do
      monitor.register(task)
      expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(1)
    end

    it "raises what redis-client raises when there is none" do
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: server.url)) do
        theirs = raised { Sidekiq.redis { |redis| redis.call("PING") } }
        expect(theirs).to be_a(RedisClient::CommandError)
        expect { monitor.register(task) }.to raise_error(theirs.class, /NOAUTH/)
      end
    end
  end

  context "with a password callable" do
    let(:asked) { [] }
    let(:vault) do
      lambda do |user|
        asked << user
        @password or raise KeyError, "the vault is closed"
      end
    end
    let(:settings) { {url: server.url, username: "rotating", password: vault} }

    def rotate(password)
      server.call("ACL", "SETUSER", "rotating", "resetpass", "on", ">#{password}", "~*", "+@all")
      @password = password
    end

    it "asks for the password of each moment at which it connects, with the user's name" do
      rotate("s3cret-1")
      monitor.register(task)
      rotate("s3cret-2")
      server.call("CLIENT", "KILL", "USER", "rotating")
      monitor.register(task)

      expect(asked).to eq(%w[rotating rotating])
      expect(clients_of(server).map { |client| client["user"] }).to eq(%w[rotating])
    end

    it "lets an error of the callable through, and works once it answers" do
      expect { monitor.register(task) }.to raise_error(KeyError, "the vault is closed")
      rotate("s3cret-known")
      monitor.register(task)
      expect(asked.size).to eq(2)
    end
  end

  context "with a unix socket" do
    let(:settings) { {url: "unix://#{server.unix_path}?db=1"} }

    it "connects to it" do
      registers_where_sidekiq_looks
      expect(clients_of(server).map { |client| client["addr"] }).to all(include(server.unix_path))
    end

    it "names its path when nobody listens there" do
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: "unix://#{server.dir}/nobody.sock")) do
        expect { monitor.register(task) }.to raise_error(RedisClient::CannotConnectError, /nobody\.sock/)
      end
    end
  end

  context "with a name for the connections" do
    let(:settings) { {url: server.url, id: "billing-worker"} }

    it "gives it to its own" do
      monitor.register(task)
      expect(clients_of(server).map { |client| client["name"] }).to eq(%w[billing-worker])
    end
  end

  it "introduces itself to the server with its name and version" do
    monitor.register(task)
    client = clients_of(server).first
    skip "this server does not know CLIENT SETINFO" unless client.key?("lib-name")

    expect(client).to include("lib-name" => "patient_http_monitor", "lib-ver" => PatientHttpMonitor::VERSION)
  end

  it "is another one within Sidekiq::Client.via, and the first one again after it" do
    monitor = monitor()
    monitor.register(task("here"))
    Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: REDIS.url)) do
      expect(monitor.registered?(task("here"))).to be(false)
      monitor.register(task("there"))
      expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(1)
    end

    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("here")])
    expect(REDIS.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1)).to eq([monitor.full_task_id("there")])
  end

  it "is another one in each thread that says so" do
    monitor = monitor()
    other = Sidekiq::RedisConnection.create(url: REDIS.url)
    mixed = Array.new(8) do |number|
      Thread.new { Sidekiq::Client.via(number.odd? ? other : pool) { 50.times { |n| monitor.register(task("#{number}-#{n}")) } } }
    end
    mixed.each(&:join)

    expect(server.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1)).to have_attributes(size: 200)
      .and all(match(%r{/[0246]-\d+\z}))
    expect(REDIS.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1)).to have_attributes(size: 200)
      .and all(match(%r{/[1357]-\d+\z}))
  end

  it "is the one of a capsule in that capsule's threads" do
    configuration = Sidekiq::Config.new.tap { |it| it.logger = Logger.new(nil) }
    configuration.redis = {url: server.url(8)}
    capsule = Sidekiq::Capsule.new("reports", configuration)
    monitor = monitor()
    in_capsule = Thread.new do
      Thread.current[:sidekiq_capsule] = capsule
      monitor.register(task("in-capsule"))
      monitor.registered_task_ids
    end

    expect(in_capsule.value).to eq([monitor.full_task_id("in-capsule")])
    expect(clients_of(server).map { |client| client["db"] }).to eq(%w[8])
    expect(monitor.registered_task_ids).to be_empty
  end

  it "says clearly that a Redis Cluster cannot be used" do
    # Sidekiq refuses `nodes:` itself, but for `cluster_safe: true` with the gem redis-cluster-client: its config has no prelude,
    # which is all that is stood in for here.
    expect { Sidekiq::RedisConnection.create(nodes: ["redis://127.0.0.1:1"]) }.to raise_error(RuntimeError, /nodes/)

    cluster = ConnectionPool.new(size: 1) { Struct.new(:config).new(Object.new) }
    Sidekiq::Client.via(cluster) do
      expect { monitor.register(task) }.to raise_error(ArgumentError, /Redis Cluster.*`nodes:`/)
      expect { PatientHttp::Sidekiq::TaskMonitor.inflight_count }.to raise_error(ArgumentError, /Redis Cluster/)
    end
  end

  it "waits for Sidekiq's pool only to read the settings, once" do
    lonely = Sidekiq::RedisConnection.create(url: server.url, size: 1, pool_timeout: 0.2)
    Sidekiq::Client.via(lonely) { monitor.register(task) }
    taken = Queue.new
    done = Queue.new
    holder = Thread.new { lonely.with { taken << true and done.pop } }
    taken.pop

    Sidekiq::Client.via(lonely) { monitor.register(task) }
    expect(server.call("ZCARD", "sidekiq:patient_http:inflight_index")).to eq(2)
  ensure
    done << true
    holder.join
  end
end
