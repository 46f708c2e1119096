# frozen_string_literal: true

require "spec_helper"
require "support/registry"

# What the specs of applications do with the class.
RSpec.describe PatientHttp::Sidekiq::TaskMonitor, "in a suite with RSpec's doubles" do
  include Registry

  let(:mismatch) { RSpec::Mocks::MockExpectationError }
  let(:request) { task }

  # Each method as it is documented: parameters by their kind, in a form that says how it may be called.
  methods = {
    full_task_id: [["id"]], unregister: [[:task]], update_heartbeats: [[["a"]]], registered?: [[:task]],
    heartbeat_timestamp_for: [[:task]], cleanup_orphaned_requests: [[300, nil]], config: [[]], registered_task_ids: [[]],
    ping_process: [[]], remove_process: [[]], acquire_gc_lock: [[]], release_gc_lock: [[]], gc_needed?: [[]], record_gc_run: [[]],
    register: [[:task], [:task, {processor_name: "llm"}], [:task, {processor_name: nil}]]
  }
  class_methods = {
    inflight_count: [[]], inflight_counts_by_process: [[]], inflight_counts_by_processor: [[], [nil], [{}]],
    total_max_connections: [[]], inflight_details: [[], [{limit: 10}]], sanitize_url: [["u"]], registered_process_ids: [[]], clear_all!: [[]],
    new: [[:config], [:config, {max_connections: -> {}}], [:config, {processors: -> {}}], [:config, {max_connections: nil, processors: nil}]]
  }

  # The last Hash with Symbols for its keys goes as keywords.
  def call(double, name, arguments)
    *positional, last = arguments
    return double.public_send(name, *arguments) unless last.is_a?(Hash) && !last.empty?

    double.public_send(name, *positional, **last)
  end

  it "names every public method in these examples" do
    expect(methods.keys).to match_array(described_class.public_instance_methods(false))
    expect(class_methods.keys - [:new]).to match_array(described_class.singleton_methods(false))
  end

  {"instance_double" => methods, "class_double" => class_methods}.each do |kind, surface|
    surface.each do |name, ways|
      it "takes #{kind} for #{name} as it is documented, and refuses what it does not take" do
        double = public_send(kind, described_class, name => :answer)
        ways.each { |arguments| expect(call(double, name, arguments)).to eq(:answer) }
        expect { double.public_send(name, 1, 2, 3, 4) }.to raise_error(ArgumentError, /[Ww]rong number of arguments/)
        few = ways.map(&:size).min - 1
        expect { double.public_send(name, *Array.new(few)) }.to raise_error(ArgumentError, /[Ww]rong number/) if few >= 0
        # What takes a Hash takes it without its braces, too.
        expect { call(double, name, ways.first + [{no_such: 1}]) }.to raise_error(ArgumentError) unless ways.include?([{}])
      end
    end
  end

  it "refuses a double of a method that is not there" do
    expect { instance_double(described_class, registre: nil) }.to raise_error(mismatch, /does not implement/)
    expect { class_double(described_class, inflight: nil) }.to raise_error(mismatch, /does not implement/)
    expect { allow(monitor).to receive(:registre) }.to raise_error(mismatch, /does not implement/)
  end

  it "verifies the arguments of an expectation, before it is called" do
    double = instance_double(described_class)
    expect(double).to receive(:register).with(request, processor_name: "x")
    double.register(request, processor_name: "x")
    expect { allow(double).to receive(:register).with(request, processor: "x") }.to raise_error(/[Ii]nvalid keyword/)
    expect { allow(double).to receive(:register).with(no_args) }.to raise_error(/[Ww]rong number/)
    expect { allow(double).to receive(:unregister).with(request, 1) }.to raise_error(/[Ww]rong number/)
    expect { allow(double).to receive(:config).with(1) }.to raise_error(/[Ww]rong number/)
  end

  it "shows keywords in the parameters of each method that has them" do
    expect(described_class.instance_method(:register).parameters).to eq([%i[req task], %i[key processor_name]])
    expect(described_class.instance_method(:initialize).parameters).to eq([%i[req config], %i[key max_connections], %i[key processors]])
    expect(described_class.method(:inflight_details).parameters).to eq([%i[key limit]])
  end

  it "takes an object_double, and class doubles in place of the constant" do
    double = object_double(monitor, register: :registered)
    expect(double.register(request, processor_name: :x)).to eq(:registered)
    expect { double.register }.to raise_error(ArgumentError)
    real = described_class
    class_double(real, new: :made).as_stubbed_const(transfer_nested_constants: true)
    expect(PatientHttp::Sidekiq::TaskMonitor.new(config, processors: -> {})).to eq(:made)
    expect(PatientHttp::Sidekiq::TaskMonitor::GC_LOCK_KEY).to be(real::GC_LOCK_KEY)
    expect(PatientHttpMonitor.installed?).to be(false)
  end

  describe "of real objects" do
    let(:one) { monitor }

    it "stubs one method of one monitor, and leaves the others" do
      allow(one).to receive(:register).and_raise(RedisClient::CannotConnectError)
      expect { one.register(request) }.to raise_error(RedisClient::CannotConnectError)
      expect { one.register }.to raise_error(ArgumentError)
      other = monitor
      expect(other.register(request)).to be_nil
      expect([one.registered?(request), other.registered?(request)]).to eq([false, true])
    end

    methods.each_key do |name|
      it "calls the original #{name} through a stub, and answers as without it" do
        one.register(request) && one.record_gc_run
        arguments = {full_task_id: ["id"], update_heartbeats: [[request.id]], cleanup_orphaned_requests: [300, nil]}
          .fetch(name) { described_class.instance_method(name).arity.zero? ? [] : [request] }
        one.release_gc_lock
        plain = one.public_send(name, *arguments)
        one.release_gc_lock if name == :acquire_gc_lock
        expect(one).to receive(name).with(*(arguments.empty? ? [no_args] : arguments)).and_call_original
        expect(one.public_send(name, *arguments)).to eq(plain).or(be_an(Integer))
      end
    end

    it "spies on methods of the class, and calls the original" do
      allow(described_class).to receive(:inflight_count).and_call_original
      one.register(request)
      expect(described_class.inflight_count).to eq(1)
      expect(described_class).to have_received(:inflight_count).once
      allow(described_class).to receive_messages(total_max_connections: 7, registered_process_ids: ["h:1:ff"])
      expect([described_class.total_max_connections, described_class.registered_process_ids]).to eq([7, ["h:1:ff"]])
    end

    it "hands out another object, or spies on one, where new is stubbed" do
      stub = instance_double(described_class, ping_process: nil)
      allow(described_class).to receive(:new).and_return(stub)
      expect(monitor).to be(stub)
      allow(described_class).to receive(:new).and_wrap_original { |original, *arguments, **options| original.call(*arguments, **options) }
      expect(described_class.new(config, max_connections: -> { 3 }).ping_process).to be_nil
      expect(described_class.total_max_connections).to eq(3)
      expect { described_class.new(config, capacity: 1) }.to raise_error(ArgumentError, /capacity/)
    end

    %i[register unregister ping_process registered?].each do |name|
      it "stubs #{name} of any instance, made before or after, and gives it back" do
        before = one
        original = described_class.instance_method(name)
        RSpec::Mocks.with_temporary_scope do
          allow_any_instance_of(described_class).to receive(name).and_return(:stubbed)
          arguments = original.arity.zero? ? [] : [request]
          expect([before, monitor].map { |each| each.public_send(name, *arguments) }).to eq(%i[stubbed stubbed])
          expect { before.public_send(name, 1, 2, 3) }.to raise_error(ArgumentError)
        end
        expect(described_class.instance_method(name)).to eq(original)
        before.register(request)
        expect(before.registered?(request)).to be(true)
      end
    end

    it "expects of any instance, and calls the original" do
      expect_any_instance_of(described_class).to receive(:register).with(request, processor_name: "x").and_call_original
      one.register(request, processor_name: "x")
      expect(described_class.inflight_count).to eq(1)
    end
  end
end
