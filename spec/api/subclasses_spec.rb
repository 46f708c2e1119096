# frozen_string_literal: true

require "spec_helper"
require "json"
require "pp"
require "support/registry"

RSpec.describe PatientHttp::Sidekiq::TaskMonitor, "as a Ruby class" do
  include Registry

  let(:request) { task }

  describe "that is subclassed" do
    let(:subclass) do
      Class.new(described_class) do
        attr_reader :calls

        def initialize(config, label:, **options)
          super(config, **options)
          @calls = [label]
        end

        def register(task, processor_name: nil, **tags)
          calls << [:register, processor_name, tags]
          super(task, processor_name: processor_name)
        end

        %i[unregister registered? update_heartbeats].each do |name|
          define_method(name) { |argument| (calls << name) && super(argument) }
        end

        %i[ping_process gc_needed?].each { |name| define_method(name) { (calls << name) && super() } }

        def cleanup_orphaned_requests(seconds = 300, logger = nil) = super
      end
    end
    let(:one) { subclass.new(config, label: "sub", max_connections: -> { 4 }) }

    it "works through super, with arguments of its own" do
      expect(one.register(request, processor_name: "llm", tag: 1)).to be_nil
      answers = [one.registered?(request), one.update_heartbeats([request.id]), one.ping_process, one.gc_needed?]
      expect(answers).to eq([true, nil, nil, true])
      expect([one.unregister(request), one.cleanup_orphaned_requests, described_class.total_max_connections]).to eq([nil, 0, 4])
      calls = %i[registered? update_heartbeats ping_process gc_needed? unregister]
      expect(one.calls).to eq(["sub", [:register, "llm", {tag: 1}], *calls])
    end

    it "has the class's own methods and constants" do
      one.register(request)
      expect([subclass.inflight_count, subclass::GC_LOCK_KEY]).to eq([1, described_class::GC_LOCK_KEY])
      expect(one).to be_a(described_class)
    end

    it "may have methods of its own by any name that is not documented" do
      own = Class.new(described_class) do
        def initialize(config)
          super
          set_up
        end

        def set_up = @set_up = true

        def enter = raise("not asked for")
      end
      expect(own.new(config).register(request)).to be_nil
      expect(described_class.inflight_count).to eq(1)
    end

    it "says what is missing where its initialize does not call super" do
      forgetful = Class.new(described_class) { def initialize = nil }
      one = forgetful.new
      {register: [request], unregister: [request], ping_process: [], config: [], full_task_id: ["a"], registered_task_ids: [],
       cleanup_orphaned_requests: [300, nil], acquire_gc_lock: [], record_gc_run: []}.each do |name, arguments|
        expect { one.public_send(name, *arguments) }.to raise_error(RuntimeError, /never initialized: .*super\(config\)/), "of #{name}"
      end
    end
  end

  it "takes modules that are prepended to it, or to one monitor" do
    counting = Module.new do
      def count = @count ||= 0

      def register(task, **)
        @count = count + 1
        super
      end
    end
    one = Class.new(described_class) { prepend counting }.new(config)
    one.register(request, processor_name: "a")
    single = monitor.extend(counting)
    single.register(request)
    expect([one.count, single.count, described_class.inflight_count]).to eq([1, 1, 2])
  end

  it "takes a frozen monitor as any other" do
    one = monitor.freeze
    one.register(request)
    expect([one.registered?(request), one.ping_process, one.unregister(request)]).to eq([true, nil, nil])
  end

  describe "whose objects are no values" do
    %i[dup clone].each do |name|
      it "refuses #{name}, since two monitors would share a process id" do
        expect { monitor.public_send(name) }.to raise_error(TypeError, /TaskMonitor cannot be copied: make a new one with its config/)
        expect { Class.new(described_class).new(config).public_send(name) }.to raise_error(TypeError, /cannot be copied/)
      end
    end

    it "refuses Marshal, alone and within something" do
      [monitor, [monitor], {a: monitor}, Tasks::Task.new("id", monitor)].each do |value|
        expect { Marshal.dump(value) }.to raise_error(TypeError, /TaskMonitor cannot be dumped: make a new one with its config/)
      end
    end

    it "is itself and no other, as a key too" do
      one, other = monitor, monitor
      expect([one == one.itself, one.eql?(other), {one => 1}[one], {one => 1}[other]]).to eq([true, false, 1, nil])
    end
  end

  it "shows nothing of its config, its tasks or Redis: inspect is one short line" do
    secret = Tasks::Config.new(10, 60, 300)
    def secret.inspect = "secret"
    one = described_class.new(secret, processors: -> { {secret: {inflight: 1, max_capacity: 1}} })
    one.ping_process
    one.register(request)
    shown = [one.inspect, one.to_s, one.pretty_inspect, one.to_json, "#{one}"]
    expect(shown.map(&:strip)).to all(match(/\A"?#<PatientHttp::Sidekiq::TaskMonitor:0x\h+>"?\z/))
  end
end
