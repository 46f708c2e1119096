# frozen_string_literal: true

require "spec_helper"
require "support/interrupting"

RSpec.describe "A sweep whose Redis freezes" do
  include_context "with a server of its own"

  # More than one page.
  let(:orphans) { 150 }
  let(:settings) { {url: server.url, timeout: 30} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:index) { "sidekiq:patient_http:inflight_index" }
  let(:jids) { Array.new(orphans) { |number| format("%024x", number) } }

  # Freezes the server where the given number of jobs are in the queue and settled: the lines come after the settling.
  class FreezingLogger
    attr_reader :lines

    def initialize(server, after)
      @server = server
      @after = after
      @lines = 0
    end

    def info(_line)
      Process.kill(:STOP, @server.pid) if (@lines += 1) == @after
    end

    def error(line)
      raise line
    end
  end

  before do
    dead = PatientHttp::Sidekiq::TaskMonitor.new(config)
    jids.each { |jid| dead.register(task(jid, jid: jid)) }
    make_stale
  end

  after { Process.kill(:CONT, server.pid) }

  def make_stale
    server.call("ZRANGE", index, 0, -1).each { |id| server.call("ZADD", index, "XX", 1, id) }
  end

  def queued_jids
    server.call("LRANGE", "queue:default", 0, -1).map { |job| JSON.parse(job)["jid"] }
  end

  # What ends the sweep's thread; each as long as it takes.
  let(:ends) do
    {"Thread#kill" => ->(thread) { seconds { thread.kill.join } },
     "Thread#raise" => ->(thread) { seconds { thread.raise(Interrupt, "enough") && raised { thread.join } } }}
  end

  # Between two pages the next step is a claim; within one, a push.
  {"between two pages" => 100, "within a page" => 40}.each do |place, after|
    %w[Thread#kill Thread#raise].each do |name|
      it "#{place} is ended at once by #{name}, and no job is lost, or more often in the queue than it was pushed" do
        logger = FreezingLogger.new(server, after)
        thread = threads(1) { monitor.cleanup_orphaned_requests(60, logger) }.first
        expect(eventually { logger.lines == after && thread.stop? }).to be(true)
        time = ends.fetch(name).call(thread)
        Process.kill(:CONT, server.pid)
        tell("#{name}, #{place} of a sweep", [time])
        expect(time).to be < Interrupting::PROMPT

        # The leases of what it had claimed.
        make_stale
        monitor.cleanup_orphaned_requests(60, nil)
        expect(queued_jids.uniq).to match_array(jids)
        # One may have been on its way into the queue.
        expect(queued_jids.size - orphans).to be_between(0, 1)
        expect(server.call("ZCARD", index)).to eq(0)
      end
    end

    it "#{place} is ended by Timeout.timeout(0.5) at its time" do
      logger = FreezingLogger.new(server, after)
      elapsed = seconds do
        expect { Timeout.timeout(0.5) { monitor.cleanup_orphaned_requests(60, logger) } }.to raise_error(Timeout::Error)
      end
      expect(logger.lines).to eq(after)
      tell("Timeout.timeout(0.5), #{place} of a sweep", [elapsed - 0.5])
      expect(elapsed).to be_between(0.5 - Interrupting::EARLY, 0.5 + Interrupting::PROMPT)
    end
  end
end
