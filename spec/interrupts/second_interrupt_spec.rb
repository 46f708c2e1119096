# frozen_string_literal: true

require "spec_helper"
require "support/own_server"
require "support/ruby_process"

# Each in a process of its own: a kill that is lost makes a thread that nothing ends, and what Ruby keeps of a kill, once it is
# wiped out, has crashed processes.
RSpec.describe "Thread#kill of a call" do
  include_context "with a server of its own"
  include RubyProcess

  # The second interrupt comes at a moment that the code after this chooses.
  let(:program) do
    <<~RUBY
      require "patient_http_monitor"
      require "support/fiber_scheduler"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      MONITOR = monitor
      KNOWN = task("known")
      $second = nil

      # Raises something else into the victim, once, at the moment at which this is called.
      def interrupt_again
        return if $second

        $second = true
        Thread.new($victim) { |victim| victim.raise(KeyError, "second") }.join
      end

      def victim
        Thread.new do
          Thread.current.report_on_exception = false
          begin
            yield
          rescue => error
            puts "rescued \#{error.class}"
          ensure
            puts "ensure"
          end
          puts "goes on"
          sleep
        end
      end

      def freeze_server = Process.kill(:STOP, Integer(ENV.fetch("SERVER_PID")))

      def within(seconds)
        deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
        sleep 0.01 until yield || Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline
      end

      # 49 calls and the victim's hold what connections there may be; the fibers of a reactor wait for one.
      def fibers_wait_behind_the_victim(scheduler)
        Sidekiq.default_configuration.redis = {url: ENV.fetch("URL"), timeout: 60, pool_timeout: 60}
        MONITOR.registered?(KNOWN)
        freeze_server
        counts = -> { PatientHttpMonitor.const_get(:Pools).for(Sidekiq.redis_pool).counts.first }
        others = Array.new(49) { Thread.new { MONITOR.registered?(KNOWN) } }
        within(10) { counts.call == 49 && others.all?(&:stop?) }
        $victim = victim { MONITOR.registered?(KNOWN) }
        within(10) { counts.call == 50 && $victim.stop? }
        waiting = 0
        Thread.new do
          Fiber.set_scheduler(scheduler.new)
          3.times { Fiber.schedule { (waiting += 1) && MONITOR.registered?(KNOWN) } }
          waiting += 1
          Fiber.scheduler.run
        end
        within(10) { waiting == 4 }
      end

      # No thread but this one has a say in how the process ends.
      def kill_and_tell
        puts "ended" if $victim.kill.join(10)
        within(10) { $second }
        puts "and something else came" if $second
      rescue Exception => error
        puts "ended with \#{error.class}: \#{error.message}"
      ensure
        $stdout.flush
        exit!(0)
      end
    RUBY
  end

  after { Process.kill(:CONT, server.pid) }

  def output_of(code)
    outcome = ruby(program + code, env: {"URL" => server.url, "SERVER_PID" => server.pid.to_s}, limit: 40)
    expect(outcome.status).to be_success, outcome.to_s
    outcome.output.lines(chomp: true)
  end

  it "ends its thread though something else is raised while its connection is closed, in the middle of the handshake" do
    expect(output_of(<<~RUBY)).to eq(["ensure", "ended", "and something else came"])
      asked = Thread::Queue.new
      password = lambda do |_user|
        asked << true
        sleep
      end
      Sidekiq.default_configuration.redis = {url: ENV.fetch("URL"), username: "default", password: password, timeout: 60}
      Socket.prepend(Module.new do
        def close
          interrupt_again
          super
        end
      end)
      $victim = victim { MONITOR.registered?(KNOWN) }
      asked.pop
      within(10) { $victim.stop? }
      kill_and_tell
    RUBY
  end

  it "ends its thread though something else is raised while a fiber is woken that waits for its connection" do
    expect(output_of(<<~RUBY)).to eq(["ensure", "ended", "and something else came"])
      fibers_wait_behind_the_victim(Class.new(FiberScheduler) do
        def unblock(...)
          interrupt_again if Thread.current == $victim
          super
        end
      end)
      kill_and_tell
    RUBY
  end

  it "ends its thread though the scheduler of a fiber that waits for its connection rescues an error of its own meanwhile" do
    expect(output_of(<<~RUBY)).to eq(["ensure", "ended", "and something else came"])
      fibers_wait_behind_the_victim(Class.new(FiberScheduler) do
        def unblock(...)
          Integer("x") if Thread.current == $victim
          super
        rescue ArgumentError
          $second = true
          super
        end
      end)
      kill_and_tell
    RUBY
  end
end
