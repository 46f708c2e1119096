# frozen_string_literal: true

require "spec_helper"
require "support/interrupting"
require "support/tls_server"

RSpec.describe "A call while Redis is frozen" do
  include_context "with a server of its own"

  # Plain and over TLS.
  before(:context) do
    @server.stop
    @server, @tls = TLSServer.start
  end

  # Far more than an example takes: nothing here ends by a timeout of Redis.
  let(:settings) { {url: server.url, timeout: 30, pool_timeout: 30} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  before { monitor.register(task("known")) }

  def sidekiq_pool(**settings)
    Sidekiq::RedisConnection.create({timeout: 30, pool_timeout: 30}.merge(settings))
  end

  def via(sidekiq_pool, &block)
    Sidekiq::Client.via(sidekiq_pool, &block)
  end

  def answers_are_right
    expect(monitor.registered?(task("known"))).to be(true)
    expect(monitor.registered?(task("unknown"))).to be(false)
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("known")])
  end

  # Each method that needs Redis, as a call.
  #
  # @return [Hash{String => Proc}]
  def methods_of(monitor)
    kinds = monitor.class
    {
      "register" => -> { monitor.register(task("late")) },
      "unregister" => -> { monitor.unregister(task("late")) },
      "update_heartbeats" => -> { monitor.update_heartbeats(Array.new(1_200, &:to_s)) },
      "registered?" => -> { monitor.registered?(task("known")) },
      "heartbeat_timestamp_for" => -> { monitor.heartbeat_timestamp_for(task("known")) },
      "registered_task_ids" => -> { monitor.registered_task_ids },
      "ping_process" => -> { monitor.ping_process },
      "remove_process" => -> { monitor.remove_process },
      "acquire_gc_lock" => -> { monitor.acquire_gc_lock },
      "release_gc_lock" => -> { monitor.release_gc_lock },
      "gc_needed?" => -> { monitor.gc_needed? },
      "record_gc_run" => -> { monitor.record_gc_run },
      "cleanup_orphaned_requests" => -> { monitor.cleanup_orphaned_requests(60, nil) },
      "inflight_count" => -> { kinds.inflight_count },
      "inflight_counts_by_process" => -> { kinds.inflight_counts_by_process },
      "total_max_connections" => -> { kinds.total_max_connections },
      "registered_process_ids" => -> { kinds.registered_process_ids },
      "clear_all!" => -> { kinds.clear_all! }
    }
  end

  # @return [Hash{String => Array(Exception, Float)}] what each method raised, all at the same time, and after how long
  def outcomes_of(methods, pool)
    callers = methods.transform_values do |call|
      Thread.new do
        error = nil
        [seconds { error = via(pool) { raised(&call) } }].unshift(error)
      end
    end
    callers.transform_values(&:value)
  end

  # As many idle connections as there are calls.
  def connect(pool, count)
    callers = nil
    server.freeze_for_a_while do
      callers = Array.new(count) { Thread.new { via(pool) { monitor.registered?(task("known")) } } }
      eventually { pool_counts(pool).first == count && callers.all?(&:stop?) }
    end
    callers.each(&:join)
  end

  describe "ends by read_timeout with ReadTimeoutError" do
    {"plain" => -> { {url: server.url} }, "over TLS" => -> { @tls }}.each do |wire, settings|
      it "whichever method it is, #{wire}, and the next calls get their own answers" do
        methods = methods_of(PatientHttp::Sidekiq::TaskMonitor.new(config))
        limited = sidekiq_pool(**instance_exec(&settings), connect_timeout: 30, read_timeout: 0.5, reconnect_attempts: 0)
        # They are being made for longer than the read_timeout of a machine under load.
        via(limited) { eventually { !raised { connect(limited, methods.size) } && pool_counts(limited).last >= methods.size } }
        outcomes = server.freeze_for_a_while { outcomes_of(methods, limited) }

        expect(outcomes.transform_values { |error, _| error.class })
          .to eq(methods.transform_values { RedisClient::ReadTimeoutError })
        expect(outcomes.values.map(&:last)).to all(be_between(0.48, 5))
        expect(pool_counts(limited)).to eq([0, 0])
        via(limited) do
          monitor.register(task("known"))
          answers_are_right
        end
      end

      it "as the cause of the CannotConnectError where its connection was being made, #{wire}, as Sidekiq's own does" do
        limited = sidekiq_pool(**instance_exec(&settings), timeout: 0.4, reconnect_attempts: 0)
        methods = methods_of(PatientHttp::Sidekiq::TaskMonitor.new(config))
        theirs = nil
        outcomes = server.freeze_for_a_while do
          thread = Thread.new { raised { limited.with { |redis| redis.call("PING") } } }
          outcomes_of(methods, limited).tap { theirs = thread.value }
        end
        expect(theirs).to be_a(RedisClient::CannotConnectError)
        expect(outcomes.transform_values { |error, _| error.class })
          .to eq(methods.transform_values { RedisClient::CannotConnectError })
        expect(outcomes.values.map { |error, _| error.cause.class }.uniq)
          .to eq([(wire == "plain") ? RedisClient::ReadTimeoutError : Errno::ETIMEDOUT])
        expect(outcomes.values.map(&:last)).to all(be_between(0.38, 5))
        via(limited) { answers_are_right }
      end
    end
  end

  describe "is ended" do
    context "where it waits for the reply" do
      after { answers_are_right }

      def in_place
        server.freeze_for_a_while { yield proc { monitor.registered?(task("known")) } }
      end

      it_behaves_like "a place where interrupts act at once", "waiting for the reply"
    end

    context "where it waits for the reply over TLS" do
      let(:settings) { {**@tls, timeout: 30, pool_timeout: 30} }

      after { answers_are_right }

      def in_place
        connect(pool, 2 * calls)
        server.freeze_for_a_while { yield proc { monitor.registered?(task("known")) } }
      end

      it_behaves_like "a place where interrupts act at once", "waiting for the reply over TLS"
    end

    context "where its connection is being made" do
      let(:fresh) { sidekiq_pool(url: server.url) }

      after { via(fresh) { answers_are_right } }

      def in_place
        server.freeze_for_a_while { yield proc { via(fresh) { monitor.registered?(task("known")) } } }
      end

      it_behaves_like "a place where interrupts act at once", "waiting for the answer to HELLO"
    end

    context "in a TLS handshake" do
      let(:fresh) { sidekiq_pool(**@tls) }

      after { via(fresh) { answers_are_right } }

      def in_place
        server.freeze_for_a_while { yield proc { via(fresh) { monitor.registered?(task("known")) } } }
      end

      it_behaves_like "a place where interrupts act at once", "in a TLS handshake"
    end

    context "where nobody accepts its connection" do
      # Connections that fill what the kernel keeps for a listener: further ones wait for their turn.
      def in_place
        listener = Socket.new(:INET, :STREAM).tap do |socket|
          socket.bind(Addrinfo.tcp("127.0.0.1", 0))
          socket.listen(0)
        end
        waiting = Array.new(8) { Socket.new(:INET, :STREAM) }
        waiting.each { |socket| socket.connect_nonblock(listener.local_address, exception: false) }
        unreachable = sidekiq_pool(url: "redis://127.0.0.1:#{listener.local_address.ip_port}")
        yield proc { via(unreachable) { monitor.registered?(task("known")) } }
      ensure
        [listener, *waiting].each(&:close)
      end

      it_behaves_like "a place where interrupts act at once", "in a TCP connect"
    end

    context "where a request is too large for the socket to take" do
      let(:large) { task("large", args: ["x" * 12_000_000]) }
      # Making the JSON of each keeps all other threads from running.
      let(:calls) { 1 }

      after { answers_are_right }

      def in_place
        server.freeze_for_a_while { yield proc { monitor.register(large) } }
      end

      it_behaves_like "a place where interrupts act at once", "in the middle of a write"
    end

    context "where it waits for one of the connections" do
      after { answers_are_right }

      def in_place
        server.freeze_for_a_while do
          holders = threads(50) { monitor.registered?(task("known")) }
          eventually { pool_counts(pool).first == 50 && holders.all?(&:stop?) }
          yield proc { monitor.registered?(task("known")) }
        ensure
          holders.each(&:kill).each(&:join)
        end
      end

      it_behaves_like "a place where interrupts act at once", "waiting for one of 50 connections"
    end

    context "in the pause before it tries again" do
      def in_place
        nobody = sidekiq_pool(url: "redis://127.0.0.1:#{RedisServer.free_port}", reconnect_attempts: [30.0])
        yield proc { via(nobody) { monitor.registered?(task("known")) } }
      end

      it_behaves_like "a place where interrupts act at once", "in a pause of reconnect_attempts"
    end
  end

  it "lets other threads run meanwhile" do
    ticks = 0
    waiting = nil
    server.freeze_for_a_while do
      waiting = waiting_threads(1) { monitor.registered?(task("known")) }.first
      ticker = Thread.new { 20.times { sleep(0.01) and ticks += 1 } }
      expect(ticker.join(5)).to be(ticker)
    end
    expect(ticks).to eq(20)
    expect(waiting.value).to be(true)
  end
end
