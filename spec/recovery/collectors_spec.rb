# frozen_string_literal: true

require "spec_helper"
require_relative "../support/dying_collectors"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "A collector that is killed in the middle of a sweep" do
  let(:jids) { Array.new(300) { |number| "jid-#{number}" } }

  before { leave_orphans(*jids.map { |jid| task(jid: jid) }) }

  def queued_jids
    queued.map { |job| job["jid"] }
  end

  def sweep_again
    sleep 0.005
    monitor.cleanup_orphaned_requests(-1, nil)
  end

  it "costs no job, and repeats one at most" do
    random = Random.new(RSpec.configuration.seed)
    collector = fork_collector do |report|
      on_push(->(job) { sleep 0.001 and report.puts(job["jid"]) }) { monitor.cleanup_orphaned_requests(300, nil) }
    end
    kill_after(random.rand(20..280), collector)
    expect(queued.size).to be < 300
    sweep_again
    expect(queued_jids.uniq).to match_array(jids)
    expect(queued.size).to be <= 301
    expect(entries).to be_empty
  end

  it "costs no job and repeats none when it dies just before a push" do
    collector = fork_collector do
      pushes = 0
      on_push(->(_) { Process.kill(:KILL, Process.pid) if (pushes += 1) == 150 }) { monitor.cleanup_orphaned_requests(300, nil) }
    end
    report_of(collector)
    expect(queued.size).to eq(149)
    expect(sweep_again).to eq(151)
    expect(queued_jids).to match_array(jids)
  end

  it "costs no job and repeats that one when it dies just after a push" do
    collector = fork_collector do
      Sidekiq::Client.prepend(Module.new do
        define_method(:raw_push) do |payloads|
          super(payloads)
          Process.kill(:KILL, Process.pid) if payloads.first["jid"] == "jid-149"
        end
      end)
      monitor.cleanup_orphaned_requests(300, nil)
    end
    report_of(collector)
    pushed = queued_jids
    sweep_again
    expect(pushed).to include("jid-149").and have_attributes(size: (1..300))
    expect(queued_jids.tally).to eq(jids.to_h { |jid| [jid, 1] }.merge("jid-149" => 2))
  end

  it "leaves what it has leased alone until the lease runs out" do
    collector = fork_collector do
      on_push(->(_) { Process.kill(:KILL, Process.pid) }) { monitor.cleanup_orphaned_requests(300, nil) }
    end
    report_of(collector)
    expect(monitor.cleanup_orphaned_requests(300, nil)).to eq(200)
    expect(entries.size).to eq(100)
    expect(entries.map { |id| score(id) }).to all(be_within(10_000).of(server_ms))
  end
end

RSpec.describe "Several collectors at once" do
  it "re-enqueue each job once, between them" do
    jids = Array.new(600) { |number| "jid-#{number}" }
    leave_orphans(*jids.map { |jid| task(jid: jid) })
    collectors = Array.new(3) { fork_collector { |report| report.puts(monitor.cleanup_orphaned_requests(300, nil)) } }
    counts = collectors.map { |collector| Integer(report_of(collector)) }
    expect(counts.sum).to eq(600)
    expect(queued.map { |job| job["jid"] }).to match_array(jids)
    expect(entries).to be_empty
  end

  it "may be threads of one process" do
    jids = Array.new(300) { |number| "jid-#{number}" }
    leave_orphans(*jids.map { |jid| task(jid: jid) })
    counts = on_push(->(_) { Thread.pass }) do
      Array.new(3) { Thread.new { monitor.cleanup_orphaned_requests(300, nil) } }.map(&:value)
    end
    expect(counts.sum).to eq(300)
    expect(queued.map { |job| job["jid"] }).to match_array(jids)
  end

  it "may share one monitor" do
    leave_orphans(*Array.new(300) { task })
    shared = monitor
    counts = Array.new(3) { Thread.new { shared.cleanup_orphaned_requests(300, nil) } }.map(&:value)
    expect([counts.sum, queued.size]).to eq([300, 300])
  end
end

RSpec.describe "The GC lock of a collector that is dead" do
  let(:dead) { monitor }

  before do
    dead.ping_process
    dead.register(task)
    dead.acquire_gc_lock
    expire_capacity(dead)
  end

  it "can be taken, also after someone has counted the processes" do
    PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process
    expect(monitor.acquire_gc_lock).to be(true)
  end

  it "can be taken, also after someone has swept" do
    age(*dead.registered_task_ids)
    monitor.cleanup_orphaned_requests(300, nil)
    expect(monitor.acquire_gc_lock).to be(true)
  end
end

RSpec.describe "A process that is killed with its requests in flight" do
  # A capacity TTL of 2 s.
  def working_process
    fork_collector do |report|
      process = monitor(heartbeat_interval: 1)
      process.ping_process
      process.acquire_gc_lock
      20.times { process.register(task) }
      report.puts(process_id(process))
      sleep
    end
  end

  it "has its requests recovered, and its GC lock taken over, as soon as its proof of life runs out, while its peers go on" do
    (peer = monitor).ping_process
    kill_after(1, working_process)
    still_alive = [peer.cleanup_orphaned_requests(0, nil), peer.acquire_gc_lock]
    sleep 0.05 until keys("#{Registry::PROCESSES}:*").size == 1
    expect(still_alive).to eq([0, false])
    expect([peer.acquire_gc_lock, peer.cleanup_orphaned_requests(0, nil)]).to eq([true, 20])
    expect(PatientHttp::Sidekiq::TaskMonitor.registered_process_ids).to eq([process_id(peer)])
  end
end
