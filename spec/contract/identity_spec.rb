# frozen_string_literal: true

require "spec_helper"
require "socket"
require_relative "../support/registry"

RSpec.describe "The identity of a monitor" do
  it "is HOST:PID:HEX, with 16 random hex digits" do
    host = Socket.gethostname.scrub.tr(":/", "--")
    expect(process_id(monitor)).to match(/\A#{Regexp.escape(host)}:#{Process.pid}:\h{16}\z/)
  end

  it "is valid UTF-8" do
    expect(process_id(monitor)).to be_valid_encoding.and have_attributes(encoding: Encoding::UTF_8)
  end

  it "stays the same" do
    one = monitor
    expect(process_id(one)).to eq(process_id(one))
  end

  it "differs between two monitors of one process" do
    expect(Array.new(100) { process_id(monitor) }.uniq.size).to eq(100)
  end

  it "needs no Redis" do
    expect(redis_commands { process_id(monitor) }).to be_empty
  end
end

RSpec.describe "TaskMonitor#config" do
  it "is the very object that the monitor was made with", :gc_stress do
    settings = config
    expect(PatientHttp::Sidekiq::TaskMonitor.new(settings).config).to equal(settings)
  end

  it "needs no more of a config than the three settings" do
    bare = Class.new(BasicObject) do
      def max_connections
        10
      end

      def heartbeat_interval
        60
      end

      def orphan_threshold
        300
      end
    end
    made = PatientHttp::Sidekiq::TaskMonitor.new(bare.new)
    made.ping_process
    made.register(one = task)
    expect(made.registered?(one)).to be(true)
  end

  it "must be given" do
    expect { PatientHttp::Sidekiq::TaskMonitor.new }.to raise_error(ArgumentError)
  end
end

RSpec.describe "TaskMonitor#full_task_id" do
  it "is the process id, a slash and the task's id", :gc_stress do
    one = monitor
    expect(one.full_task_id("task-1")).to eq("#{process_id(one)}/task-1")
  end

  it "takes any id as string interpolation would" do
    one = monitor
    [:symbol, 42, 4.5, nil, ""].each { |id| expect(one.full_task_id(id)).to eq("#{process_id(one)}/#{id}") }
  end

  it "keeps slashes, quotes, line ends and emoji" do
    id = %(a/b:c"d'\n\t\0 \u{1F680})
    one = monitor
    expect(one.full_task_id(id)).to eq("#{process_id(one)}/#{id}")
  end
end
