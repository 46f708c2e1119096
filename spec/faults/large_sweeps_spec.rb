# frozen_string_literal: true

require "spec_helper"
require "timeout"
require_relative "../support/children"
require_relative "../support/own_server"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

# Shortened here; `rake soak:sweeps` runs the full figures (SOAK=1) and prints them as a table.
RSpec.describe "A sweep over a large registry" do
  include Children
  include_context "with a server of its own"

  let(:soak) { !ENV["SOAK"].nil? }
  # What one step of a sweep may take of the server, in ms. In the suite the machine may have other work, and take the CPU away from
  # the server in the middle of a step.
  let(:slowest_allowed) { soak ? 5 : 250 }

  before do
    # Ahead of whatever else runs here, so that its figures are its own (where that is allowed).
    system("chrt", "--fifo", "--pid", "10", server.pid.to_s, out: File::NULL, err: File::NULL) if soak
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 500)
    server.call("CONFIG", "SET", "slowlog-max-len", 100_000)
  end

  # Writes entries as any version of the gem does, with a score that grows by `step` from one to the next. (Not by a script, whose
  # garbage would be collected in the middle of the scripts that are measured.)
  def write_many(ids, score:, step: 0)
    ids.each_slice(1_000) do |slice|
      server.client.pipelined do |pipeline|
        pipeline.call("ZADD", Registry::INDEX, slice.flat_map { |id| [score += step, id] })
        pipeline.call("HSET", Registry::JOBS, slice.flat_map { |id| [id, job_of(id)] })
      end
    end
  end

  def job_of(id)
    JSON.generate("class" => "ReportJob", "args" => [id], "jid" => id, "queue" => "default", "retry" => true)
  end

  # Makes processes live for longer than any of these examples, with `count` entries that had no heartbeat since 1970.
  def leave_stale_entries_of_live_processes(count, step: 0)
    processes = Array.new(10) { |number| "alive:#{number}:#{"a" * 16}" }
    processes.each do |process|
      server.call("SADD", Registry::PROCESSES, process)
      server.call("SET", "#{Registry::PROCESSES}:#{process}:max_connections", 10, "EX", 3_600)
    end
    write_many(Array.new(count) { |number| "#{processes[number % 10]}/#{number}" }, score: 1_000, step: step)
  end

  # Sorted behind those of live processes, though their score is the same.
  def leave_dead(count, score: 1_000)
    write_many(Array.new(count) { |number| "dead:1:#{"d" * 16}/#{number}" }, score: score)
  end

  # In kB.
  def memory(name)
    File.read("/proc/self/status")[/^#{name}:\s+(\d+)/, 1].to_i
  end

  # What the server did during the block.
  def work
    server.call("CONFIG", "RESETSTAT")
    server.call("SLOWLOG", "RESET")
    outcome = yield
    stats = server.call("INFO", "commandstats").scan(/^cmdstat_(\w+):calls=(\d+),usec=(\d+)/)
      .to_h { |name, calls, usec| [name, [Integer(calls), Integer(usec)]] }
    slow = server.call("SLOWLOG", "GET", -1).reject { |entry| %w[CONFIG SLOWLOG INFO].include?(entry[3].first.upcase) }
    scripts = stats.values_at("evalsha", "eval").compact
    slowest = slow.max_by { |entry| entry[2] }
    outcome.merge(scripts: scripts.sum(&:first), server_ms: scripts.sum(&:last) / 1000,
      slowest_ms: slowest ? slowest[2] / 1000.0 : 0.5, slowest: slowest && slowest[3].first(2), over_5_ms: slow.count { |entry| entry[2] > 5_000 })
  end

  # Sweeps in a process of its own, which has tasks in flight whose heartbeats are stale, and the GC lock.
  def sweep_in_child(threshold: 300)
    work do
      in_child do
        collector = monitor(heartbeat_interval: 1)
        own = Array.new(10) { |number| task("own-#{number}") }
        own.each { |request| collector.register(request) }
        server.call("ZADD", Registry::INDEX, "XX", *own.flat_map { |request| [999, collector.full_task_id(request.id)] })
        collector.ping_process
        raise "no lock" unless collector.acquire_gc_lock

        measure(collector, threshold).merge(
          own_left: own.count { |request| collector.heartbeat_timestamp_for(request) == 999 },
          entries: PatientHttp::Sidekiq::TaskMonitor.inflight_count
        )
      end
    end
  end

  def measure(collector, threshold)
    watcher, seen = watch(collector)
    GC.start
    File.write("/proc/self/clear_refs", "5") # the peak begins anew
    before = memory("VmRSS")
    recovered = nil
    took = seconds { recovered = collector.cleanup_orphaned_requests(threshold, nil) }
    growth = memory("VmHWM") - before
    watcher.kill.join
    {recovered: recovered, seconds: took, growth_mb: growth / 1024.0, looks: seen.size,
     times_dead: seen.count { |alive, _| alive.zero? }, least_lock_s: (seen.map(&:last).min || 120_000) / 1000}
  end

  # Looks all the while whether the collector's proof of life and its lock are there.
  def watch(collector)
    client = RedisClient.config(port: server.port).new_client
    seen = []
    thread = Thread.new do
      loop do
        seen << [client.call("EXISTS", capacity_key(collector)), client.call("PTTL", Registry::GC_LOCK)]
        sleep 0.05
      end
    end
    [thread, seen]
  end

  def queued_jids
    total = server.call("LLEN", "queue:default")
    (0...total).step(10_000).flat_map do |from|
      server.call("LRANGE", "queue:default", from, from + 9_999).map { |job| JSON.parse(job)["jid"] }
    end
  end

  # A line of the soak's table.
  def tell(what, figures)
    return unless soak

    version = server.call("INFO", "server")[/redis_version:(\S+)/, 1]
    puts format("%-7s %-58s %7.2f s %6.1f MB %8d scripts %7d ms in scripts, slowest step %5.1f ms %p, over 5 ms: %d", version, what,
      figures[:seconds], figures[:growth_mb], figures[:scripts], figures[:server_ms], figures[:slowest_ms], figures[:slowest],
      figures[:over_5_ms])
  end

  it "recovers every orphan once, in bounded memory, and does not look dead meanwhile" do
    count = soak ? 100_000 : 10_000
    leave_dead(count)
    figures = sweep_in_child
    tell("#{count} orphans", figures)
    expect(figures).to include(recovered: count, own_left: 10, entries: 10, times_dead: 0)
    expect(figures[:looks]).to be > figures[:seconds] * 5
    expect(figures[:least_lock_s]).to be > 110
    expect(figures[:growth_mb]).to be < (soak ? 64 : 32)
    expect(figures[:slowest_ms]).to be < slowest_allowed
    expect(queued_jids.sort).to eq(Array.new(count) { |number| "dead:1:#{"d" * 16}/#{number}" }.sort)
  end

  it "finds the orphans behind any number of stale entries of live processes that have the same score" do
    count, orphans = soak ? [1_000_000, 1_000] : [100_000, 200]
    leave_stale_entries_of_live_processes(count)
    leave_dead(orphans)
    figures = sweep_in_child
    tell("#{orphans} orphans behind #{count} entries of live processes", figures)
    expect(figures).to include(recovered: orphans, own_left: 10, entries: count + 10, times_dead: 0)
    expect(figures[:growth_mb]).to be < (soak ? 64 : 32)
    expect(figures[:slowest_ms]).to be < slowest_allowed
    expect(queued_jids.uniq.size).to eq(orphans)
  end

  it "finds them behind entries that live processes left at different times" do
    count, orphans = soak ? [1_000_000, 1_000] : [20_000, 200]
    leave_stale_entries_of_live_processes(count, step: 1)
    leave_dead(orphans, score: count + 2_000)
    figures = sweep_in_child
    tell("#{orphans} orphans behind #{count} entries of live processes, scores differ", figures)
    expect(figures).to include(recovered: orphans, own_left: 10, entries: count + 10)
    expect(figures[:slowest_ms]).to be < slowest_allowed
  end

  it "takes work that grows with the number of entries and no faster" do
    sizes = soak ? [125_000, 250_000, 500_000, 1_000_000] : [5_000, 10_000, 20_000, 40_000]
    figures = sizes.map do |size|
      server.call("FLUSHALL")
      leave_stale_entries_of_live_processes(size)
      leave_dead(100)
      sweep_in_child.tap { |found| tell("100 orphans behind #{size} entries of live processes", found) }
    end
    expect(figures.map { |found| found[:recovered] }).to eq([100] * 4)
    figures.each_cons(2) { |smaller, larger| expect(larger[:scripts]).to be < smaller[:scripts] * 2.2 }
    expect(figures.last[:server_ms]).to be < (figures.first[:server_ms] + 5) * 8 * 2.5
  end

  it "takes work that grows with the number of orphans and no faster" do
    sizes = soak ? [12_500, 25_000, 50_000, 100_000] : [250, 500, 1_000, 2_000]
    figures = sizes.map do |size|
      server.call("FLUSHALL")
      leave_dead(size)
      sweep_in_child.tap { |found| tell("#{size} orphans", found) }
    end
    expect(figures.map { |found| found[:recovered] }).to eq(sizes)
    figures.each_cons(2) { |smaller, larger| expect(larger[:scripts]).to be < smaller[:scripts] * 2.2 }
  end

  [0, -1, 1].each do |threshold|
    it "ends with a threshold of #{threshold} s though every push fails, and loses nothing" do
      count = soak ? 20_000 : 1_000
      leave_dead(count)
      tried = Hash.new(0)
      failing = lambda do |job|
        tried[job["jid"]] += 1
        # Longer in all than a threshold of 1 s.
        sleep 0.002 if tried.size < 700
        raise "the push fails"
      end
      logger = RecordingLogger.new
      recovered = Timeout.timeout(soak ? 300 : 60) do
        on_push(failing) { monitor.cleanup_orphaned_requests(threshold, logger) }
      end
      expect([recovered, tried.size, tried.values.uniq, logger.errors.size]).to eq([0, count, [1], count])
      expect(server.call("ZCARD", Registry::INDEX)).to eq(count)
      expect(server.call("HLEN", Registry::JOBS)).to eq(count)
      sleep [threshold, 0].max + 1.1
      expect(monitor.cleanup_orphaned_requests(threshold, nil)).to eq(count)
    end
  end
end
