# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "A process whose background threads are in the middle of calls, and rescue what these raise" do
  include_context "with a server of its own"
  include RubyProcess

  # As Sidekiq's heartbeat does: an error is told, and the next call made.
  let(:program) do
    <<~RUBY
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      Sidekiq.default_configuration.redis = {url: ENV.fetch("URL"), timeout: 60}
      MONITOR = monitor
      MONITOR.register(task("known"))
      done = Thread::Queue.new
      threads = Array.new(5) do
        Thread.new do
          loop do
            MONITOR.register(task("known"))
            done << true
          rescue => error
            puts "rescued \#{error.class}: \#{error.message}, caused by \#{error.cause.inspect}"
            sleep 0.05
          end
        end
      end
      50.times { done.pop }
      # The server goes on with the example's end.
      freeze_server = -> do
        Process.kill(:STOP, Integer(ENV.fetch("SERVER_PID")))
        sleep 0.01 until threads.all?(&:stop?)
        sleep 0.1
      end
    RUBY
  end

  # Less than the calls' timeout: what still waits for a frozen Redis is killed then.
  let(:limit) { 40 }

  after { Process.kill(:CONT, server.pid) }

  def end_of(code)
    ruby(program + code, env: {"URL" => server.url, "SERVER_PID" => server.pid.to_s}, limit: limit)
  end

  it "ends when its own work is done" do
    3.times do
      outcome = end_of("")
      expect(outcome.status).to be_success, outcome.to_s
      expect([outcome.output, outcome.errors]).to eq(["", ""])
    end
  end

  it "ends when its own work is done though Redis is frozen" do
    outcome = end_of("freeze_server.call")
    expect(outcome.status).to be_success, outcome.to_s
    expect([outcome.output, outcome.errors]).to eq(["", ""])
  end

  %i[TERM INT].each do |signal|
    it "ends by SIG#{signal}" do
      outcome = end_of("Process.kill(:#{signal}, Process.pid)\nsleep")
      expect(outcome.status.termsig).to eq(Signal.list.fetch(signal.to_s)), outcome.to_s
      expect(outcome.output).to eq("")
    end

    it "ends by SIG#{signal} though Redis is frozen" do
      outcome = end_of("freeze_server.call\nProcess.kill(:#{signal}, Process.pid)\nsleep")
      expect(outcome.status.termsig).to eq(Signal.list.fetch(signal.to_s)), outcome.to_s
      expect(outcome.output).to eq("")
    end
  end
end

RSpec.describe "A call in a thread that may start no other" do
  include_context "with a server of its own"
  include RubyProcess

  # A frozen group is one way to that, a container's limit of processes another. Each thread says how its call ended.
  let(:program) do
    <<~RUBY
      require "patient_http_monitor"
      require "support/tasks"
      require "timeout"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      Sidekiq.default_configuration.redis = {url: ENV.fetch("URL"), timeout: 60}
      MONITOR = monitor
      MONITOR.registered?(task("known"))
      # Its thread exists from here on.
      Timeout.timeout(10) { nil }
      GROUP = ThreadGroup.new
      GO = Thread::Queue.new

      def started
        Thread.new do
          Thread.current.report_on_exception = false
          GO.pop
          begin
            yield
          rescue => error
            Thread.current[:rescued] = error.class
          end
          sleep
        end.tap { |thread| GROUP.add(thread) }
      end

      def within(seconds)
        deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
        sleep 0.01 until yield || Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline
      end

      killed, raised = Array.new(2) { started { MONITOR.registered?(task("known")) } }
      timed = started { Timeout.timeout(0.3) { MONITOR.registered?(task("known")) } }
      GROUP.freeze
      open_sockets = -> { ObjectSpace.each_object(Socket).count { |socket| !socket.closed? } }

      Process.kill(:STOP, Integer(ENV.fetch("SERVER_PID")))
      GO.close
      within(10) { open_sockets.call == 3 && [killed, raised].all?(&:stop?) }
      sleep 0.1
      killed.kill
      raised.raise(KeyError, "enough")
      within(10) { !killed.alive? && raised[:rescued] && timed[:rescued] }
      puts "killed: \#{killed.alive? ? "goes on after \#{killed[:rescued].inspect}" : "ended"}"
      puts "raised into: \#{raised[:rescued].inspect}"
      puts "timed out: \#{timed[:rescued].inspect}"
      puts "open sockets: \#{open_sockets.call}"
      $stdout.flush
      exit!(0)
    RUBY
  end

  after { Process.kill(:CONT, server.pid) }

  it "ends by what interrupts it, and closes its connection" do
    outcome = ruby(program, env: {"URL" => server.url, "SERVER_PID" => server.pid.to_s}, limit: 40)
    told = ["killed: ended", "raised into: KeyError", "timed out: Timeout::Error", "open sockets: 0"]
    expect(outcome.output.lines(chomp: true)).to eq(told), outcome.to_s
  end
end
