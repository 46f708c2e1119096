# frozen_string_literal: true

require "spec_helper"
require "support/sidekiq_application"
require "support/registry"

# That a job's calls go to the pool of its capsule is in spec/connection/moments_spec.rb.
RSpec.describe "In a process that embeds Sidekiq, a monitor" do
  include SidekiqApplication

  # As patient_http does it: the monitor begins with Sidekiq and ends with it, and a thread of its own pings and sweeps.
  let(:embedded) { <<~RUBY }
    require "sidekiq/embedded"
    CONFIG = config(heartbeat_interval: 0.2, orphan_threshold: 1)
    PERFORMED = Thread::Queue.new

    class Service
      class << self
        attr_reader :monitor

        def start
          @monitor = PatientHttp::Sidekiq::TaskMonitor.new(CONFIG)
          @monitor.ping_process
          @stopping = Thread::Queue.new
          @thread = Thread.new { tick until @stopping.pop(timeout: 0.05) }
        end

        def tick
          @monitor.ping_process
          return unless @monitor.gc_needed? && @monitor.acquire_gc_lock

          @monitor.cleanup_orphaned_requests(CONFIG.orphan_threshold, LOGGER)
          @monitor.record_gc_run
          @monitor.release_gc_lock
        end

        def stop
          @stopping << true
          @thread.join
          @monitor.remove_process
        end
      end
    end

    # Registers its request, and ends without unregistering it when it is told to.
    class RequestJob
      include Sidekiq::Job

      def perform(name, how = nil)
        Service.monitor.register(request = task(name))
        Service.monitor.unregister(request) unless how
        PERFORMED << name
      end
    end

    RUNNING = Sidekiq.configure_embed do |config|
      config.logger.level = Logger::FATAL
      config.concurrency = 2
      config.on(:startup) { Service.start }
      config.on(:shutdown) { Service.stop }
    end

    def names(count)
      Array.new(count) { PERFORMED.pop(timeout: 20) }
    end
  RUBY

  it "lives from startup to shutdown, and its jobs' requests come and go" do
    lines = application(<<~RUBY)
      #{embedded}
      RUNNING.run
      puts PatientHttp::Sidekiq::TaskMonitor.total_max_connections
      3.times { |number| RequestJob.perform_async(number.to_s) }
      puts names(3).sort.join
      RUNNING.stop
      puts PatientHttp::Sidekiq::TaskMonitor.registered_process_ids.size
    RUBY
    expect(lines).to eq(%w[10 012 0])
    expect(entries).to be_empty
    expect(keys.grep(/max_connections/)).to be_empty
  end

  it "recovers what a dead process left, and Sidekiq performs it in this very process" do
    leave_orphans(task(class: "RequestJob", args: ["recovered"]))
    lines = application(<<~RUBY)
      #{embedded}
      RUNNING.run
      puts names(1)
      RUNNING.stop
      puts LOGGER.infos.size
    RUBY
    expect(lines).to eq(%w[recovered 1])
    expect([entries, queued]).to eq([[], []])
  end

  it "does not recover its own process's requests while that lives, and leaves them to others after its shutdown" do
    lines = application(<<~RUBY)
      #{embedded}
      RUNNING.run
      RequestJob.perform_async("kept", "open")
      puts names(1)
      sleep 1.5
      puts PatientHttp::Sidekiq::TaskMonitor.inflight_count, PERFORMED.size
      RUNNING.stop
    RUBY
    expect(lines).to eq(%w[kept 1 0])
    expect(entries.size).to eq(1)
    age(*entries)
    expect(monitor.cleanup_orphaned_requests(300, nil)).to eq(1)
  end

  it "sees the process through a quiet: it goes on living until the stop" do
    lines = application(<<~RUBY)
      #{embedded}
      RUNNING.run
      RUNNING.quiet
      sleep 0.5
      puts PatientHttp::Sidekiq::TaskMonitor.total_max_connections
      RequestJob.perform_async("late")
      RUNNING.stop
      puts PatientHttp::Sidekiq::TaskMonitor.total_max_connections, PERFORMED.size
    RUBY
    expect(lines).to eq(%w[10 0 0])
  end
end
