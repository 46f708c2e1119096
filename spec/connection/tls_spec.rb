# frozen_string_literal: true

require "spec_helper"
require "support/certificates"
require "support/children"
require "support/fiber_scheduler"
require "support/observing"

RSpec.describe "a Redis behind TLS" do
  include Observing
  include Children

  def via(**settings, &block)
    Sidekiq::Client.via(Sidekiq::RedisConnection.create(settings), &block)
  end

  before(:context) do
    @dir = Dir.mktmpdir("patient_http_monitor")
    @authority = Certificates.new(@dir, "authority")
    @stranger = Certificates.new(@dir, "stranger")
    certificate, key = @authority.issue("server", "DNS:localhost")
    @tls_port = RedisServer.free_port
    @server = RedisServer.start(tls_port: @tls_port, tls_cert_file: certificate, tls_key_file: key,
      tls_ca_cert_file: @authority.ca_file, tls_auth_clients: "optional")
  end

  after(:context) do
    @server.stop
    FileUtils.rm_rf(@dir)
  end

  before do
    @server.call("FLUSHALL")
    @server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
  end

  let(:url) { "rediss://localhost:#{@tls_port}/1" }
  let(:trusting) { {url: url, ssl_params: {ca_file: @authority.ca_file}} }

  it "is used by the CA file of Sidekiq's settings, in the same db", gc_stress: 1 do
    via(**trusting) do
      monitor.register(task)
      expect(Sidekiq.redis { |redis| redis.call("ZCARD", "sidekiq:patient_http:inflight_index") }).to eq(1)
    end
  end

  it "is refused as by Sidekiq's connection when another authority signed its certificate" do
    via(url: url, ssl_params: {ca_file: @stranger.ca_file}) do
      theirs = raised { Sidekiq.redis { |redis| redis.call("PING") } }
      ours = raised { monitor.register(task) }
      expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
      expect(ours.message).to include("certificate verify failed", "localhost:#{@tls_port}")
    end
  end

  it "is refused as by Sidekiq's connection when the certificate is for another host" do
    via(url: "rediss://127.0.0.1:#{@tls_port}", ssl_params: {ca_file: @authority.ca_file}) do
      theirs = raised { Sidekiq.redis { |redis| redis.call("PING") } }
      ours = raised { monitor.register(task) }
      expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
    end
  end

  it "is used unchecked with VERIFY_NONE" do
    via(url: url, ssl_params: {verify_mode: OpenSSL::SSL::VERIFY_NONE}) do
      monitor.register(task)
      expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(1)
    end
  end

  it "gets the client certificate of Sidekiq's settings" do
    @server.call("CONFIG", "SET", "tls-auth-clients", "yes")
    via(**trusting) do
      expect { monitor.register(task) }.to raise_error(RedisClient::ConnectionError)
    end
    certificate, key = @authority.issue("client", "DNS:client")
    via(url: url, ssl_params: {ca_file: @authority.ca_file, cert: certificate, key: key}) do
      monitor.register(task)
      expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(1)
    end
  ensure
    @server.call("CONFIG", "SET", "tls-auth-clients", "optional")
  end

  it "raises an error of the connection where nobody speaks TLS, and none that waits for ever where nobody answers" do
    via(url: "rediss://localhost:#{@server.port}", timeout: 0.5, ssl_params: {ca_file: @authority.ca_file}) do
      expect { monitor.register(task) }.to raise_error(RedisClient::CannotConnectError)
    end
    @server.freeze_for_a_while do
      via(**trusting, timeout: 0.3) do
        elapsed = seconds { expect { monitor.register(task) }.to raise_error(RedisClient::CannotConnectError) }
        expect(elapsed).to be_between(0.25, 3)
      end
    end
  end

  it "carries a job of 5 MB, and requests of many threads" do
    via(**trusting) do
      monitor = monitor(orphan_threshold: 300)
      monitor.register(task("large", args: ["x" * 5_000_000]))
      pool = Sidekiq.redis_pool
      callers = Array.new(10) do |number|
        Thread.new { Sidekiq::Client.via(pool) { 20.times { |n| monitor.register(task("#{number}-#{n}")) } } }
      end
      callers.each(&:join)

      expect(monitor.registered_task_ids.size).to eq(201)
      stored = Sidekiq.redis { |redis| redis.call("HGET", "sidekiq:patient_http:inflight_jobs", monitor.full_task_id("large")) }
      expect(JSON.parse(stored)["args"]).to eq(["x" * 5_000_000])
    end
  end

  it "lets the other fibers of a Fiber scheduler go on while one of them waits" do
    pool = Sidekiq::RedisConnection.create(**trusting, timeout: 5)
    monitor = monitor()
    ticks = done = 0
    @server.freeze_for_a_while do
      thaw = Thread.new { sleep 0.3 and Process.kill(:CONT, @server.pid) }
      FiberScheduler.run do
        20.times { |number| Fiber.schedule { Sidekiq::Client.via(pool) { monitor.register(task(number.to_s)) || done += 1 } } }
        Fiber.schedule { sleep(0.01) && ticks += 1 until done == 20 }
      end
      thaw.join
    end
    expect(ticks).to be > 5
    expect(Sidekiq::Client.via(pool) { monitor.registered_task_ids.size }).to eq(20)
  end

  it "answers the next call when it had dropped the idle connection" do
    via(**trusting) do
      monitor = monitor()
      monitor.register(task("a"))
      @server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      expect(monitor.registered?(task("a"))).to be(true)
    end
  end

  it "raises ReadTimeoutError when it does not answer, and gives the next call its own answer" do
    via(**trusting, timeout: 0.3) do
      monitor = monitor()
      monitor.register(task("a"))
      @server.freeze_for_a_while do
        expect { monitor.heartbeat_timestamp_for(task("a")) }.to raise_error(RedisClient::ReadTimeoutError)
      end
      expect(monitor.registered?(task("b"))).to be(false)
      expect(monitor.registered?(task("a"))).to be(true)
    end
  end

  it "lets Timeout act while it does not answer" do
    via(**trusting, timeout: 10) do
      monitor = monitor()
      monitor.register(task("a"))
      @server.freeze_for_a_while do
        elapsed = seconds { expect { Timeout.timeout(0.2) { monitor.registered?(task("a")) } }.to raise_error(Timeout::Error) }
        expect(elapsed).to be < 1
      end
      expect(monitor.registered?(task("a"))).to be(true)
    end
  end

  it "goes on with the parent's session whatever a forked child does: nothing, work, or an end with finalizers" do
    via(**trusting) do
      monitor = monitor()
      monitor.register(task("of-parent"))
      parents = clients_of(@server).map { |client| client["id"] }
      %i[exit! exit].product([-> {}, -> { GC.start }, -> { monitor.register(task) }]).each do |leave, work|
        expect(in_child(leave: leave) { [work.call, monitor.full_task_id("x")].last }).not_to eq(monitor.full_task_id("x"))
        expect(monitor.registered_task_ids).to eq([monitor.full_task_id("of-parent")])
      end
      expect(eventually { clients_of(@server).map { |client| client["id"] } == parents }).to be(true)
    end
  end

  describe "of which the handshake never ends" do
    # Accepts, and says nothing.
    around do |example|
      @silent = TCPServer.new("127.0.0.1", 0)
      @peers = []
      accepting = Thread.new { loop { @peers << @silent.accept } }
      example.run
    ensure
      accepting.kill.join
      [@silent, *@peers].each(&:close)
      GC.enable
    end

    def open_descriptors
      Dir.children("/proc/self/fd").size
    end

    {"Thread#kill" => :kill.to_proc, "Thread#raise" => ->(thread) { thread.raise(KeyError, "enough") }}.each do |name, interrupt|
      it "leaves no descriptor behind by #{name}, nor waits for the garbage collector to close it" do
        skip "this system does not list a process's descriptors" unless Dir.exist?("/proc/self/fd")
        pool = Sidekiq::RedisConnection.create(url: "rediss://127.0.0.1:#{@silent.local_address.ip_port}", timeout: 60,
          ssl_params: {verify_mode: OpenSSL::SSL::VERIFY_NONE})
        monitor = monitor()
        GC.disable
        before = open_descriptors
        threads = Array.new(20) do
          Thread.new do
            Thread.current.report_on_exception = false
            Sidekiq::Client.via(pool) { monitor.registered?(task) }
          end
        end
        eventually { @peers.size == 20 && threads.all?(&:stop?) }
        threads.each(&interrupt)
        expect(threads.map { |thread| raised { thread.join }.class }.uniq).to eq([(name == "Thread#kill") ? NilClass : KeyError])
        eventually { open_descriptors == before + 20 }
        expect(open_descriptors - before - @peers.size).to eq(0)
        expect(pool_counts(pool)).to eq([0, 0])
      end
    end
  end
end
