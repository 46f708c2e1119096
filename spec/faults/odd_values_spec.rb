# frozen_string_literal: true

require "spec_helper"
require "timeout"
require_relative "../support/recording_logger"
require_relative "../support/registry"
require_relative "../support/ruby_process"
require_relative "../support/sidekiq_hooks"

# Ids and values that no version of the class writes, in keys of the right type. Keys of another type are in odd_state_spec.rb.
RSpec.describe "Odd ids and values" do
  # In s; no example may take longer.
  around { |example| Timeout.timeout(10) { example.run } }

  let(:collector) { monitor }
  let(:logger) { RecordingLogger.new }
  let(:job) { task.task_handler.sidekiq_job }

  def sweep(by: collector, seconds: 300)
    by.cleanup_orphaned_requests(seconds, logger)
  end

  def capacity_key_of(process)
    "#{Registry::PROCESSES}:".b + process.b + ":max_connections".b
  end

  # Each with the process that it belongs to: what stands before the first slash, the whole where there is none.
  ids = {
    "nothing" => ["", ""],
    "a slash alone" => ["/", ""],
    "two slashes" => ["//", ""],
    "no slash" => %w[no-slash no-slash],
    "a process id without a task" => ["h:1:ff/", "h:1:ff"],
    "several slashes" => ["h:1:ff/a/b", "h:1:ff"],
    "10 KB without a slash" => ["x" * 10_000] * 2,
    "10 KB of task" => ["h:1:ff/#{"x" * 10_000}", "h:1:ff"],
    "1 MB without a slash" => ["x" * 1_000_000] * 2,
    "1 MB of task" => ["h:1:ff/#{"x" * 1_000_000}", "h:1:ff"],
    "control characters and newlines" => ["a\r\n\t\e[31m:1:ff/b\r\n*3\r\n", "a\r\n\t\e[31m:1:ff"],
    "NUL" => ["a\0b:1:ff/\0", "a\0b:1:ff"],
    "bytes that are not UTF-8" => ["\xFF\xFE:1:ff/\xC3".b, "\xFF\xFE:1:ff".b],
    "the characters of globs" => ["h*?[a-z]\\^-:1:ff/*?[]\\^-", "h*?[a-z]\\^-:1:ff"],
    "the characters of Lua's patterns" => ["%w+(.)-^$%1:1:ff/%s*", "%w+(.)-^$%1:1:ff"],
    "what Redis takes for an option" => ["-1/WITHSCORES", "-1"],
    "letters beyond ASCII" => ["höst:1:ff/🦀", "höst:1:ff"]
  }

  ids.each do |kind, (id, process)|
    describe "such as an id of #{kind}," do
      it "are recovered like others once they are orphans, with one line" do
        write_entry(id, payload: JSON.generate(job))
        expect([sweep, entries, logger.errors]).to eq([1, [], []])
        expect(queued).to contain_exactly(a_hash_including(job))
        expect(logger.infos.map(&:lines).map(&:size)).to eq([1])
        expect(logger.infos.first).to match(/\A\[PatientHttp::Sidekiq\] Re-enqueued orphaned request .* to ReportJob\z/)
      end

      it "are left alone while the process lives that stands before the first slash, and no other's life saves them" do
        write_entry(id, payload: JSON.generate(job))
        REDIS.call("SET", capacity_key_of(process), 10)
        expect([sweep, entries.map(&:b)]).to eq([0, [id.b]])
        REDIS.call("DEL", capacity_key_of(process))
        # Taken for a pattern, the id would be one of these.
        %w[hxaxx:1:ff a h hxa\\^-:1:ff].each { |other| REDIS.call("SET", capacity_key_of(other), 10) }
        expect([sweep, entries]).to eq([1, []])
      end

      it "are taken out with one line where they have no job, without harm to others" do
        write_entry(id, payload: nil)
        leave_orphans(task, task)
        expect([sweep, entries, logger.errors.map(&:lines).map(&:size)]).to eq([2, [], [1]])
      end

      it "are put back where the index lost them, and recovered after that" do
        write_entry(id, payload: JSON.generate(job), score: nil)
        expect([sweep, score(id)]).to match([0, be_within(5_000).of(server_ms)])
        expect([sweep(seconds: -1), entries, queued.size]).to eq([1, [], 1])
      end

      it "serve as a task's id in every call of the process that registered it" do
        (one = monitor).register(odd = task(id))
        one.register(other = task)
        age(full = one.full_task_id(id))
        one.update_heartbeats([id])
        expect(full.b).to eq("#{process_id(one)}/".b + id.b)
        expect([one.registered?(odd), one.heartbeat_timestamp_for(odd)]).to match([true, be_within(5_000).of(server_ms)])
        expect(one.registered_task_ids).to contain_exactly(full, one.full_task_id(other.id))
        one.unregister(odd)
        expect([one.registered?(odd), one.registered_task_ids]).to eq([false, [one.full_task_id(other.id)]])
      end

      it "stand for a process that is counted, and that leaves the set once it is dead" do
        REDIS.call("SADD", Registry::PROCESSES, process)
        REDIS.call("SET", capacity_key_of(process), 7)
        write_entry(id, payload: JSON.generate(job))
        monitor_class = collector.class
        expect(monitor_class.registered_process_ids.map(&:b)).to eq([process.b])
        expect(monitor_class.total_max_connections).to eq(7)
        counts = monitor_class.inflight_counts_by_process.transform_keys(&:b)
        expect(counts).to eq(process.b.sub(/:[^:]*\z/n, "") => {inflight: 1, max_capacity: 7})
        REDIS.call("DEL", capacity_key_of(process))
        expect([monitor_class.inflight_counts_by_process, monitor_class.registered_process_ids]).to eq([{}, []])
      end

      it "give up the GC lock that they hold once they are members without a capacity key" do
        REDIS.call("SET", Registry::GC_LOCK, process)
        expect([collector.acquire_gc_lock, collector.release_gc_lock]).to eq([false, false])
        REDIS.call("SADD", Registry::PROCESSES, process)
        expect([collector.acquire_gc_lock, collector.release_gc_lock]).to eq([true, true])
      end
    end
  end

  {
    "h*?[a-z]^\\" => "h*?[a-z]^\\", "%w+(.)$%1" => "%w+(.)$%1", "a:b/c" => "a-b-c", "\xFF[".b => "\u{FFFD}["
  }.each do |host, shown|
    it "such as a host name of #{host.inspect} work in every call" do
      code = <<~RUBY
        require "fiddle"
        host = ["#{host.unpack1("H*")}"].pack("H*")
        address, types = Fiddle::Handle::DEFAULT["sethostname"], [Fiddle::TYPE_VOIDP, Fiddle::TYPE_SIZE_T]
        sethostname = Fiddle::Function.new(address, types, Fiddle::TYPE_INT)
        abort "not allowed" unless sethostname.call(host, host.bytesize).zero?
        require "patient_http_monitor"
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        require "support/tasks"
        include Tasks
        one, odd = monitor, task("odd")
        one.ping_process
        one.register(odd)
        puts JSON.generate([one.full_task_id("odd"), one.registered_task_ids, one.class.inflight_counts_by_process.to_a,
          one.acquire_gc_lock, one.release_gc_lock, one.cleanup_orphaned_requests(-1, nil)])
      RUBY
      outcome = in_own_host_name(code)
      skip "this machine does not let a test change its host name" unless outcome
      id, ids, counts, *answers = JSON.parse(outcome)
      expect([ids, answers]).to eq([[id], [true, true, 0]])
      expect(id).to match(%r{\A#{Regexp.escape(shown)}:\d+:\h{16}/odd\z})
      expect(counts).to eq([[id[/\A.*:\d+(?=:)/], {"inflight" => 1, "max_capacity" => 10}]])
      REDIS.call("DEL", capacity_key_of(id.delete_suffix("/odd")))
      age(id)
      expect([sweep, queued.size, collector.class.registered_process_ids]).to eq([1, 1, []])
    end
  end

  # @return [String, nil] what the code wrote, in a process whose host name may change without the machine's doing so
  def in_own_host_name(code)
    return unless system("unshare", "--uts", "true", out: File::NULL, err: File::NULL)

    folders = %w[lib spec].flat_map { |name| ["-I", File.join(RubyProcess::ROOT, name)] }
    output, status = Open3.capture2({"REDIS_URL" => REDIS.url}, "unshare", "--uts", RbConfig.ruby, *folders, "-e", code)
    output if status.success?
  end

  {
    "many" => 0, "" => 0, "0x10" => 0, "\xFF\x00".b => 0, "nan" => 0, "-5" => 0, "inf" => 0, "+7" => 7, "1e3" => 1_000, "10.9" => 10,
    " 12 " => 12, "9" * 30 => (2**63) - 1 - 10, "9" * 10_000 => 0
  }.each do |text, expected|
    it "such as a capacity of #{text[0, 40].inspect} prove life, and carry #{expected}" do
      (odd = monitor).ping_process
      (one = monitor).ping_process
      [odd, one].each { |process| process.register(task) }
      REDIS.call("SET", capacity_key(odd), text)
      age(*entries)
      expect(one.class.total_max_connections).to eq(10 + expected)
      expect(one.class.inflight_counts_by_process.values).to eq([{inflight: 2, max_capacity: 10 + expected}])
      expect([sweep, entries.size]).to eq([0, 2])
      odd.ping_process
      expect(one.class.total_max_connections).to eq(20)
    end
  end

  most = (2**63) - 1
  {
    "1700000000000.75" => [1_700_000_000_000, true], "0.5" => [0, true], "0" => [0, true], "-5.5" => [-5, true],
    "-1e308" => [-most - 1, true], "-inf" => [-most - 1, true], "1e308" => [most, false], "+inf" => [most, false]
  }.each do |score, (timestamp, stale)|
    it "such as a heartbeat of #{score} are read as #{timestamp}, and are #{"not " unless stale}stale" do
      dead = monitor
      odd, usual = task(jid: "odd"), task(jid: "usual")
      [odd, usual].each { |request| dead.register(request) }
      age(*entries)
      REDIS.call("ZADD", Registry::INDEX, score, dead.full_task_id(odd.id))
      expect([dead.registered?(odd), dead.heartbeat_timestamp_for(odd)]).to eq([true, timestamp])
      expect(dead.registered_task_ids.size).to eq(2)
      expect([sweep, sweep]).to eq([stale ? 2 : 1, 0])
      expect(entries).to eq(stale ? [] : [dead.full_task_id(odd.id)])
      next if stale

      # Nothing is lost: its process may heal it, or it is recovered after someone has.
      dead.update_heartbeats([odd.id])
      expect(dead.heartbeat_timestamp_for(odd)).to be_within(5_000).of(server_ms)
      age(*entries)
      expect([sweep, queued.map { |job| job["jid"] }]).to eq([1, %w[usual odd]])
    end
  end

  {
    "soon" => true, "" => true, "inf" => true, "-inf" => true, "nan" => true, "\xFF".b => true, "0x10" => true, "-5" => true,
    "0.75" => true, "%<now>d.75" => false, " %<now>d " => false
  }.each do |text, due|
    it "such as a last run of #{text.inspect} mean that a sweep is #{"not " unless due}due, until the next run is recorded" do
      REDIS.call("SET", Registry::GC_LAST_RUN, text.include?("now") ? format(text, now: server_ms) : text)
      expect(collector.gc_needed?).to be(due)
      collector.record_gc_run
      expect(collector.gc_needed?).to be(false)
      expect(Integer(REDIS.call("GET", Registry::GC_LAST_RUN))).to be_within(5_000).of(server_ms)
    end
  end

  describe "of a job's counters" do
    before do
      settings = PatientHttpMonitor::Settings.new.tap { |changed| changed.recovery_limit = 3 }
      allow(PatientHttpMonitor).to receive(:settings).and_return(settings)
    end

    {"many" => 0, "" => 0, "1e3" => 0, "-5" => 0, "9" * 30 => 0, "9223372036854775807" => 1}.each do |text, dead|
      it "such as #{text.inspect} recoveries cost no job: #{dead} in the dead set, the others re-enqueued" do
        REDIS.call("SET", "sidekiq:patient_http:recoveries:odd", text)
        leave_orphans(task(jid: "odd"), task(jid: "usual"))
        expect([sweep, queued.size, dead_set.map(&:jid), entries]).to eq([2 - dead, 2 - dead, ["odd"] * dead, []])
      end
    end

    {"many" => 0, "" => 0, "1e3" => 0, "-5" => 0, "9223372036854775807" => 1, "9223372036854775806" => 1}.each do |text, dead|
      it "such as #{text.inspect} refusals cost no job: #{dead} in the dead set, or it stays registered" do
        REDIS.call("SET", "sidekiq:patient_http:refusals:odd", text)
        id = write_entry("dead:1:00ff/odd", payload: JSON.generate("jid" => "odd", "args" => []))
        leave_orphans(task, task)
        expect([sweep, dead_set.size, entries]).to eq([2, dead, [id] * (1 - dead)])
      end
    end
  end

  it "such as jobs of 10 MB are recovered whole" do
    large = %w[a b c].to_h { |letter| ["large-#{letter}", letter * 10_000_000] }
    leave_orphans(*large.map { |jid, text| task(jid: jid, args: [text]) })
    expect([sweep, entries]).to eq([3, []])
    # Compared by hand: a failure must not print them.
    expect(queued.to_h { |pushed| [pushed["jid"], pushed["args"][0]] } == large).to be(true)
  end

  it "keep no good orphan back, thousands of them between the good ones" do
    (live = monitor).ping_process
    jids = Array.new(300) { |number| "good-#{number}" }
    good = jids.map { |jid| write_entry("dead:1:ff/#{jid}", payload: JSON.generate(job.merge("jid" => jid))) }
    scores = ["-inf", "-1e300", "-0.5", "0.5", "1e-7", "1700000000000.75", "1e300", "+inf"]
    good.each_with_index { |id, number| REDIS.call("ZADD", Registry::INDEX, scores[number % 6], id) }
    odd = Array.new(4_000) do |number|
      id = ["\xFF#{number}".b, "#{live.full_task_id("")}#{number}", "ghost\r\n#{number}", "far\0#{number}"][number % 4]
      [(number % 4 == 3) ? scores[6 + (number % 2)] : scores[number % 6], id]
    end
    REDIS.call("ZADD", Registry::INDEX, *odd.flatten)
    REDIS.call("SADD", Registry::PROCESSES, *Array.new(2_000) { |number| "\xFE*#{number}".b }, "")

    expect(sweep).to eq(300)
    expect(queued.map { |pushed| pushed["jid"] }).to match_array(jids)
    # Those without a job are gone, with a line each; the living one's and those of the far future are there.
    expect([logger.errors.size, entries.size]).to eq([2_000, 2_000])
    expect(live.registered_task_ids.size).to eq(1_000)
    expect(live.class.inflight_counts_by_process.values).to eq([{inflight: 1_000, max_capacity: 10}])
    expect(live.class.registered_process_ids).to eq([process_id(live)])
  end
end
