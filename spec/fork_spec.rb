# frozen_string_literal: true

require "spec_helper"
require "support/children"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "a forked child" do
  include_context "with a server of its own"
  include Children
  include RubyProcess

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:parents_id) { monitor.full_task_id("").chomp("/") }

  def connection_ids
    clients_of(server).map { |client| client["id"] }
  end

  def child_process_id
    in_child { monitor.full_task_id("").chomp("/") }
  end

  before { monitor.register(task("of-parent")) }

  it "has a process id of its own, with its own pid and another random part, and keeps it" do
    ids = in_child { [Process.pid, monitor.full_task_id("a"), monitor.full_task_id("a")] }
    expect(ids[1]).to match(%r{\A[^:/]+:#{ids[0]}:\h{16}/a\z})
    expect(ids[2]).to eq(ids[1])
    expect(ids[1][/\h{16}/]).not_to eq(parents_id[/\h{16}/])
    expect([child_process_id, child_process_id, parents_id].uniq.size).to eq(3)
  end

  it "is another one in each generation" do
    ids = in_child do
      child = monitor.full_task_id("")
      [child, in_child { monitor.full_task_id("") }, in_child { monitor.full_task_id("") }, monitor.full_task_id("")]
    end
    expect(ids.first).to eq(ids.last)
    expect([monitor.full_task_id(""), *ids].uniq.size).to eq(4)
  end

  it "sees and changes its own entries alone, and its parent likewise" do
    registered = in_child do
      monitor.register(task("of-child"))
      [monitor.registered_task_ids.size, monitor.registered?(task("of-parent")), monitor.full_task_id("of-child")]
    end
    expect(registered.first(2)).to eq([1, false])
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("of-parent")])
    expect(server.call("ZRANGE", "sidekiq:patient_http:inflight_index", 0, -1))
      .to contain_exactly(monitor.full_task_id("of-parent"), registered.last)
  end

  it "has connections of its own, which go with it, while its parent's stays" do
    parents = connection_ids
    observer = server.call("CLIENT", "ID").to_s
    seen, counts = in_child do
      monitor.register(task)
      [connection_ids, pool_counts(pool)]
    end
    expect(seen).to include(*parents)
    expect((seen - parents - [observer]).size).to eq(1)
    expect(counts).to eq([1, 1])

    expect(eventually { connection_ids == parents }).to be(true)
    expect(monitor.registered?(task("of-parent"))).to be(true)
    expect(connection_ids).to eq(parents)
  end

  it "leaves its parent's connection alone when it only ends, with finalizers, or after a garbage collection" do
    parents = connection_ids
    [-> {}, -> { GC.start }, -> { monitor.register(task) && GC.start }].product(%i[exit exit!]).each do |work, leave|
      in_child(leave: leave) { work.call }
      expect(monitor.registered_task_ids).to eq([monitor.full_task_id("of-parent")])
    end
    expect(eventually { connection_ids == parents }).to be(true)
  end

  it "may work at the same time as its parent, each reading its own answers" do
    reader, writer = IO.pipe
    pid = fork do
      right = (1..300).all? do |number|
        monitor.register(task("child-#{number}"))
        monitor.registered?(task("child-#{number}")) && !monitor.registered?(task("parent-#{number}"))
      end
      writer.write(right ? "right" : "wrong")
      Process.exit!(true)
    end
    writer.close
    right = (1..300).all? do |number|
      monitor.register(task("parent-#{number}"))
      monitor.registered?(task("parent-#{number}")) && !monitor.registered?(task("child-#{number}"))
    end
    Process.wait(pid)
    expect([right, reader.read]).to eq([true, "right"])
  ensure
    reader&.close
  end

  # Whatever a child does: it works, it works and collects garbage, it ends by itself with finalizers, or it does nothing at all.
  def child(number)
    return if number % 4 == 3

    GC.start if number % 4 == 1
    monitor.register(task("of-child"))
    ids = monitor.registered_task_ids
    raise "#{ids} instead of its own" unless ids == [monitor.full_task_id("of-child")] && ids.first.include?(":#{Process.pid}:")

    GC.start if number % 4 == 1
    monitor.unregister(task("of-child"))
  end

  # @return [Integer] its pid
  def fork_child(number)
    fork do
      error = raised { child(number) }
      warn error.full_message if error
      number.even? ? Process.exit!(error.nil?) : exit(error.nil?)
    end
  end

  # @return [Process::Status, nil] nil when it hangs, and is killed for that
  def status_of(pid)
    eventually(within: 60) { Process.wait2(pid, Process::WNOHANG) }&.last.tap { |status| Process.kill(:KILL, pid) unless status }
  end

  it "works 500 times in a row, beside threads of its parent that go on working" do
    done = false
    answers = Queue.new
    parents = threads(3) do |number|
      request = task("parent-#{number}")
      until done
        monitor.register(request)
        answers << [monitor.registered?(request), monitor.registered?(task("unknown")), monitor.unregister(request)]
        sleep 0.001
      end
    end
    statuses = (0...500).each_slice(4).flat_map { |numbers| numbers.map { |number| fork_child(number) }.map { |pid| status_of(pid) } }
    done = true
    parents.each(&:join)
    expect(statuses).to all(be_success)
    expect(Array.new(answers.size) { answers.pop }.tally).to match([true, false, nil] => be > 500)
    expect(monitor.registered_task_ids).to eq([monitor.full_task_id("of-parent")])
    expect(server.call("ZCARD", "sidekiq:patient_http:inflight_index")).to eq(1)
    expect(eventually { clients_of(server).size == pool_counts(pool).first }).to be(true)
  end

  it "may be one of Process.daemon" do
    outcome = ruby(<<~RUBY, env: {"REDIS_URL" => server.url})
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      MONITOR = monitor
      MONITOR.register(task("before"))
      reader, writer = IO.pipe
      Process.wait(fork do
        Process.daemon(true, true)
        MONITOR.register(task("after"))
        writer.write(MONITOR.registered_task_ids.inspect, MONITOR.full_task_id("after").include?(":\#{Process.pid}:").inspect)
        Process.exit!(true)
      end)
      writer.close
      ids = MONITOR.registered_task_ids
      raise ids.inspect unless ids == [MONITOR.full_task_id("before")]
      print reader.read
    RUBY
    expect(outcome.output).to match(%r{\A\["[^"]+/after"\]true\z}), outcome.to_s
  end

  it "begins while other threads are in the middle of their calls, which end as if nothing had been" do
    callers = threads(4) { |number| 200.times { |n| monitor.register(task("#{number}-#{n}")) } }
    children = Array.new(10) { in_child { [monitor.register(task), monitor.registered_task_ids.size, pool_counts(pool)] } }
    callers.each(&:join)

    expect(children.map { |registered| registered[1] }).to all(eq(1))
    expect(children.map(&:last)).to all(eq([1, 1]))
    expect(monitor.registered_task_ids.size).to eq(801)
  end

  it "begins while all connections are busy and callers wait for one, of which it inherits nothing" do
    callers = nil
    outcome = nil
    server.freeze_for_a_while do
      callers = threads(60) { |number| monitor.register(task(number.to_s)) }
      eventually { callers.all?(&:stop?) }
      reader, writer = IO.pipe
      pid = fork do
        begin
          monitor.register(task("of-child"))
          writer.write("#{monitor.registered_task_ids.size} #{pool_counts(pool).inspect}")
        rescue => error
          writer.write(error.inspect)
        end
        Process.exit!(true)
      end
      writer.close
      Process.kill(:CONT, server.pid)
      outcome = reader.read
      Process.wait(pid)
      reader.close
    end
    expect(outcome).to eq("1 [1, 1]")
    expect(callers.map(&:value)).to all(be_nil)
    expect(monitor.registered_task_ids.size).to eq(61)
  end

  it "does not know its parent's pings and locks for its own" do
    monitor.ping_process
    expect(monitor.acquire_gc_lock).to be(true)
    seen = in_child do
      locked = [monitor.acquire_gc_lock, monitor.release_gc_lock]
      monitor.register(task)
      [locked, PatientHttp::Sidekiq::TaskMonitor.registered_process_ids]
    end
    expect(seen).to eq([[false, false], [parents_id]])
    expect(monitor.release_gc_lock).to be(true)
  end

  it "may be a daemon of two forks, whose parents have ended" do
    reader, writer = IO.pipe
    pid = fork do
      fork do
        Process.setsid
        monitor.register(task("of-daemon"))
        writer.write(monitor.full_task_id("of-daemon"))
        Process.exit!(true)
      end
      Process.exit(true)
    end
    writer.close
    Process.wait(pid)
    id = reader.read
    reader.close
    expect(server.call("HKEYS", "sidekiq:patient_http:inflight_jobs")).to contain_exactly(monitor.full_task_id("of-parent"), id)
    expect(monitor.registered?(task("of-parent"))).to be(true)
  end
end
