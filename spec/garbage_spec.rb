# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "objects that the garbage collector and Ruby's own copying meet" do
  include_context "with a server of its own"
  include RubyProcess

  let(:monitor_class) { PatientHttp::Sidekiq::TaskMonitor }
  let(:monitor) { monitor_class.new(config) }

  describe "the collector" do
    # A crash must not take the suite with it; and a small heap makes each collection short.
    def outcome_of(code)
      ruby(<<~RUBY + code, env: {"REDIS_URL" => server.url})
        require "patient_http_monitor"
        require "support/tasks"
        include Tasks
        Sidekiq.default_configuration.logger.level = Logger::ERROR

        # Each kind of call once, with the answers that it must give.
        def a_round(monitor, number)
          known = task("known-\#{number}", args: ["\u{1F4E6}" * 10, {"a" => [1.5, nil]}])
          monitor.ping_process
          monitor.register(known)
          monitor.update_heartbeats([known.id, "unknown"])
          answers = [monitor.registered?(known), monitor.registered?(task("unknown")),
            monitor.heartbeat_timestamp_for(known).class, monitor.registered_task_ids == [monitor.full_task_id(known.id)],
            monitor.acquire_gc_lock, monitor.release_gc_lock,
            monitor.record_gc_run, monitor.gc_needed?, PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process.values,
            PatientHttp::Sidekiq::TaskMonitor.registered_process_ids.size]
          monitor.unregister(known)
          right = [true, false, Integer, true, true, true, nil, false, [{inflight: 1, max_capacity: 10}], 1]
          raise "wrong answers: \#{answers}" unless answers == right
        end

        def a_recovery(monitor, number)
          monitor.register(task("orphan", jid: "job-\#{number}"))
          sleep 0.003
          pushed = PatientHttp::Sidekiq::TaskMonitor.new(monitor.config).cleanup_orphaned_requests(0, nil)
          raise "wrong count: \#{pushed}" unless pushed == 1
        end
        MONITOR = monitor()
        a_round(MONITOR, 0)
      RUBY
    end

    it "may run at every allocation" do
      outcome = outcome_of(<<~RUBY)
        GC.stress = true
        a_round(MONITOR, 1)
        GC.stress = false
        MONITOR.remove_process
        # Of the young objects only: Sidekiq's part in it allocates hundreds of times as much.
        GC.stress = 1
        a_recovery(MONITOR, 1)
        GC.stress = false
        puts "right"
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["right", ""]), outcome.to_s
    end

    it "may run at every allocation while a connection is made, refused, and lost" do
      outcome = outcome_of(<<~RUBY)
        nobody = Sidekiq::RedisConnection.create(url: "redis://127.0.0.1:#{RedisServer.free_port}", reconnect_attempts: 0)
        fresh = Sidekiq::RedisConnection.create(url: ENV.fetch("REDIS_URL"))
        GC.stress = true
        refused = begin
          Sidekiq::Client.via(nobody) { MONITOR.register(task) }
        rescue => error
          error.class
        end
        GC.stress = 1
        Sidekiq::Client.via(fresh) { MONITOR.register(task("a")) }
        GC.stress = false
        killed = Sidekiq.redis { |redis| redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }
        raise "not killed" unless killed.positive?
        GC.stress = true
        known = Sidekiq::Client.via(fresh) { MONITOR.registered?(task("a")) }
        GC.stress = false
        puts refused, known
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["RedisClient::CannotConnectError\ntrue", ""]), outcome.to_s
    end

    it "may move whatever it can" do
      skip "this Ruby does not move objects" unless GC.respond_to?(:verify_compaction_references)

      outcome = outcome_of(<<~RUBY)
        3.times do |number|
          GC.verify_compaction_references(expand_heap: true, toward: :empty)
          a_round(MONITOR, number)
        end
        MONITOR.remove_process
        a_recovery(MONITOR, 1)
        GC.verify_compaction_references(expand_heap: true, toward: :empty)
        a_recovery(MONITOR, 2)
        puts "right"
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["right", ""]), outcome.to_s
    end

    it "may move objects during hundreds of calls of several threads" do
      outcome = outcome_of(<<~RUBY)
        GC.auto_compact = true if GC.respond_to?(:auto_compact=)
        callers = Array.new(4) do |number|
          Thread.new do
            30.times do |n|
              one = task("\#{number}-\#{n}", args: ["x" * 2_000])
              MONITOR.register(one)
              raise "lost" unless MONITOR.registered?(one)
              MONITOR.unregister(one) if n.even?
            end
          end
        end
        collector = Thread.new { loop { sleep 0.01 and GC.start } }
        callers.each(&:join)
        collector.kill.join
        puts MONITOR.registered_task_ids.size
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["60", ""]), outcome.to_s
    end

    it "lets go of monitors, and of nothing that they need" do
      expect(monitor_class.new(config(max_connections: 7)).tap { GC.start }.config.max_connections).to eq(7)
      kept = Array.new(100) { |number| monitor_class.new(config(max_connections: number)) }
      2_000.times { monitor_class.new(config) }
      GC.start
      expect(kept.map { |one| one.config.max_connections }).to eq((0...100).to_a)
      expect(ObjectSpace.each_object(monitor_class).count).to be < 1_500
    end
  end

  describe "a subclass" do
    it "works when its initialize calls super" do
      subclass = Class.new(monitor_class) do
        attr_reader :label

        def initialize(label, config)
          @label = label
          super(config)
        end

        def register(task)
          super
          :registered
        end
      end
      one = subclass.new("web", config)
      expect([one.label, one.register(task("a")), one.registered?(task("a"))]).to eq(["web", :registered, true])
      expect(subclass.inflight_count).to eq(1)
      expect(one.cleanup_orphaned_requests(300, nil)).to eq(0)
    end

    it "says clearly that its initialize forgot to call super, whatever is called" do
      subclass = Class.new(monitor_class) { def initialize(_config); end } # rubocop:disable Lint/MissingSuper
      calls = {config: [], full_task_id: ["a"], register: [task], unregister: [task], update_heartbeats: [["a"]],
               registered?: [task], heartbeat_timestamp_for: [task], registered_task_ids: [], ping_process: [],
               remove_process: [], acquire_gc_lock: [], release_gc_lock: [], gc_needed?: [], record_gc_run: [],
               cleanup_orphaned_requests: [0, nil]}
      expect(calls.keys).to match_array(monitor_class.public_instance_methods(false))
      calls.each do |name, arguments|
        expect { subclass.new(config).public_send(name, *arguments) }.to raise_error(RuntimeError, /super/), name.to_s
        expect { monitor_class.allocate.public_send(name, *arguments) }.to raise_error(RuntimeError, /initialized/), name.to_s
      end
      expect(server.call("DBSIZE")).to eq(0)
    end
  end

  describe "a monitor" do
    it "refuses to be copied, since two would have one process id" do
      expect { monitor.dup }.to raise_error(TypeError, /cannot be copied/)
      expect { monitor.clone }.to raise_error(TypeError, /cannot be copied/)
      expect { monitor.clone(freeze: true) }.to raise_error(TypeError)
    end

    it "refuses to be marshalled" do
      expect { Marshal.dump(monitor) }.to raise_error(TypeError)
      expect { Marshal.load("\x04\bo:&PatientHttp::Sidekiq::TaskMonitor\x00") }.to raise_error(StandardError)
    end

    it "may be frozen and goes on working" do
      frozen = monitor.freeze
      frozen.ping_process
      frozen.register(task("a"))
      expect(frozen.registered?(task("a"))).to be(true)
    end

    it "may be initialized again, and then is another process" do
      before = monitor.full_task_id("a")
      other = config(max_connections: 3)
      monitor.send(:initialize, other)
      expect(monitor.config).to be(other)
      expect(monitor.full_task_id("a")).not_to eq(before)
    end

    it "shows no more of itself than an ordinary object" do
      monitor.register(task)
      expect(monitor.inspect).to match(/\A#<PatientHttp::Sidekiq::TaskMonitor:0x\h+>\z/)
    end
  end

  describe "the classes behind it" do
    it "cannot be made or reached from outside" do
      %i[Connection Pool Sweep Connector Pools Install DeadJobs RedisErrors].each do |name|
        expect { Object.const_get("PatientHttpMonitor").module_eval("PatientHttpMonitor::#{name}", __FILE__, __LINE__) }
          .to raise_error(NameError, /private constant/), name.to_s
      end
      connection = PatientHttpMonitor.const_get(:Connection)
      expect { connection.new }.to raise_error(TypeError)
      expect { connection.allocate }.to raise_error(TypeError)
    end
  end
end
