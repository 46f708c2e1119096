# frozen_string_literal: true

require "spec_helper"
require_relative "../support/dying_collectors"
require_relative "../support/many_orphans"
require_relative "../support/observing"
require_relative "../support/plain_ruby_monitor"

# What each reads of the other's in one process is in recovery/mixed_fleet_spec.rb; here they are processes that live and die.
RSpec.describe "A fleet of ours and plain Ruby ones" do
  include Observing

  native = PatientHttp::Sidekiq::TaskMonitor
  {"ours" => native, "a plain Ruby one" => PlainRubyMonitor}.to_a.permutation(2) do |(name, one_class), (other_name, other_class)|
    describe "where #{name} meets what #{other_name} wrote" do
      let(:one) { one_class.new(config) }
      let(:other) { other_class.new(config(heartbeat_interval: 1)) }
      let(:jobs) { Array.new(200) { |number| orphaned_job(number, "default") } }

      # A process that works, until it is killed.
      #
      # @yieldparam process [String] its process id
      def with_worker(worker_class, jobs)
        pid, reader = fork_collector do |report|
          worker = worker_class.new(config(heartbeat_interval: 1))
          worker.ping_process
          requests = jobs.map { |job| task(job["jid"], **job.transform_keys(&:to_sym)) }
          requests.each { |request| worker.register(request) }
          report.puts(worker.full_task_id(""))
          loop do
            worker.ping_process
            worker.update_heartbeats(requests.map(&:id))
            sleep 0.1
          end
        end
        yield reader.gets.chomp.delete_suffix("/")
      ensure
        Process.kill(:KILL, pid)
        Process.wait(pid)
        reader.close
      end

      it "counts it, and leaves it alone while its process lives, whatever the threshold" do
        with_worker(other_class, jobs) do |process|
          age(*entries)
          expect(one.cleanup_orphaned_requests(0, nil)).to eq(0)
          expect(one_class.inflight_count).to eq(200)
          expect(one_class.registered_process_ids).to include(process)
          expect(one_class.inflight_counts_by_process).to eq(process.rpartition(":").first => {inflight: 200, max_capacity: 10})
          expect(one_class.total_max_connections).to eq(10)
          # Its heartbeats go on.
          expect(eventually { entries.all? { |id| score(id) > server_ms - 5_000 } }).to be(true)
        end
      end

      it "recovers it, each job once and as it was, when its process was killed" do
        with_worker(other_class, jobs) { nil }
        eventually { keys("#{Registry::PROCESSES}:*").empty? }
        # Without which a plain Ruby collector takes a member of the process set for alive.
        one_class.inflight_counts_by_process
        expect(one.cleanup_orphaned_requests(0, nil)).to eq(200)
        account = account_of(jobs.to_h { |job| [job["jid"], job] })
        expect([account.lost, account.repeated, account.corrupted, account.registered]).to eq([[], [], [], 0])
      end

      it "respects its GC lock, and gets it once it is given back" do
        expect(other.acquire_gc_lock).to be(true)
        expect([one.acquire_gc_lock, one.release_gc_lock]).to eq([false, false])
        expect(REDIS.call("GET", Registry::GC_LOCK)).to eq(process_id(other))
        other.release_gc_lock
        expect([one.acquire_gc_lock, other.acquire_gc_lock, other.release_gc_lock]).to eq([true, false, false])
        expect(ttl(Registry::GC_LOCK)).to be_between(1, 120)
      end

      it "agrees with it on when a sweep is due" do
        expect(one.gc_needed?).to be(true)
        other.record_gc_run
        expect(one.gc_needed?).to be(false)
        expect(eventually { one_class.new(config(heartbeat_interval: 0.2)).gc_needed? }).to be(true)
      end

      # As where the class is replaced under a process that runs, or a test that knows both: the wire format alone decides.
      it "reads, heartbeats and unregisters it as its own under the same process id" do
        same = PlainRubyMonitor.new(config)
        same.instance_variable_set(:@process_id, process_id(native_one = monitor))
        writer, reader = one_class == native ? [same, native_one] : [native_one, same]
        writer.register(request = task)
        age(id = writer.full_task_id(request.id))
        old = writer.heartbeat_timestamp_for(request)

        expect([reader.registered?(request), reader.registered_task_ids]).to eq([true, [id]])
        expect(reader.heartbeat_timestamp_for(request)).to eq(old)
        reader.update_heartbeats([request.id])
        expect(writer.heartbeat_timestamp_for(request)).to be_within(5_000).of(server_ms)
        expect(JSON.parse(payload(id))).to eq(request.task_handler.sidekiq_job)
        reader.ping_process
        expect([writer, reader].map { |monitor| monitor.class.total_max_connections }).to eq([10, 10])
        reader.unregister(request)
        reader.remove_process
        expect([writer.registered?(request), entries, writer.class.registered_process_ids]).to eq([false, [], []])
      end
    end
  end

  it "has the same bytes in the registry, whoever registers a job" do
    job = orphaned_job(1, "default").transform_keys(&:to_sym)
    payloads = [native, PlainRubyMonitor].map do |one_class|
      registering = one_class.new(config)
      registering.register(request = task(**job))
      payload(registering.full_task_id(request.id))
    end
    expect(payloads.uniq.size).to eq(1)
  end

  it "has ours take over the lock of a plain Ruby one that was killed" do
    holder = PlainRubyMonitor.new(config)
    holder.ping_process
    holder.acquire_gc_lock
    expect(monitor.acquire_gc_lock).to be(false)
    REDIS.call("DEL", capacity_key(holder))
    expect(monitor.acquire_gc_lock).to be(true)
  end
end
