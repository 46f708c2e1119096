# frozen_string_literal: true

require "spec_helper"
require "rbconfig"
require "support/interrupting"
require "support/ruby_process"
require "support/tls_server"

RSpec.describe "A signal to a process whose call waits for a frozen Redis" do
  include_context "with a server of its own"

  before(:context) do
    @server.stop
    @server, @tls = TLSServer.start
  end

  # Says that it is ready, makes its call when it is told to, and says at what moment of the machine's clock something happened.
  let(:program) do
    <<~RUBY
      $stdout.sync = true
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      POOL = Sidekiq::RedisConnection.create(url: ENV.fetch("URL"), timeout: 30, ssl_params: {ca_file: ENV["CA_FILE"]}.compact)
      MONITOR = monitor()
      KNOWN, UNKNOWN = task("known"), task("unknown")
      MAIN = Thread.current

      def tell(what) = puts("\#{what} \#{Process.clock_gettime(Process::CLOCK_MONOTONIC)}")
      def call(&block) = Sidekiq::Client.via(POOL, &block)

      # Says so once the thread waits.
      def when_waiting(thread)
        Thread.new do
          sleep 0.01 until thread.status == "sleep"
          sleep 0.05
          tell("waiting")
        end
      end

      call { MONITOR.register(KNOWN) }
      tell("ready")
      gets
    RUBY
  end

  # The same in another process, whose Redis is frozen from "ready" on.
  #
  # @yield [IO, Integer] what it says, and its pid
  # @return [Process::Status]
  def while_frozen(code, settings)
    env = {"URL" => settings[:url], "CA_FILE" => settings.dig(:ssl_params, :ca_file), "REDIS_PROVIDER" => nil}
    includes = %w[lib spec].flat_map { |path| ["-I", File.join(RubyProcess::ROOT, path)] }
    Open3.popen2e(env, RbConfig.ruby, *includes, "-e", program + code) do |input, output, process|
      heard(output, "ready")
      server.freeze_for_a_while do
        input.puts
        yield output, process.pid
      end
      raise "it goes on" unless process.join(20)

      process.value
    ensure
      Process.kill(:KILL, process.pid) if process.alive?
    end
  end

  # @return [Float] when it happened
  def heard(output, what)
    text = []
    while output.wait_readable(20) && (line = output.gets)
      return Float(line.split.last) if line.start_with?("#{what} ")

      text << line
    end
    raise "#{what.inspect} was not said, but: #{text.join}"
  end

  def send_signal(name, pid)
    monotonic.tap { Process.kill(name, pid) }
  end

  def expect_prompt(title, times)
    tell(title, times)
    expect(times).to all(be < Interrupting::PROMPT)
  end

  def wires
    {"plain" => {url: server.url}, "over TLS" => @tls}
  end

  {"INT" => "Interrupt", "TERM" => "SignalException"}.each do |name, raised_class|
    it "SIG#{name} by Ruby's own handler raises #{raised_class} out of the call, and the next call works" do
      wires.each do |wire, settings|
        times = []
        status = while_frozen(<<~RUBY, settings) do |output, pid|
          5.times do
            when_waiting(MAIN)
            call { MONITOR.registered?(KNOWN) }
          rescue #{raised_class} => error
            tell(error.class)
          end
          tell("thaw")
          answers = call { [MONITOR.registered?(UNKNOWN), MONITOR.registered?(KNOWN)] }
          exit!(answers == [false, true])
        RUBY
          5.times do
            heard(output, "waiting")
            sent = send_signal(name, pid)
            times << (heard(output, raised_class) - sent)
          end
          heard(output, "thaw")
        end
        expect_prompt("SIG#{name} until #{raised_class} is rescued, #{wire}", times)
        expect(status).to be_success
      end
    end

    it "SIG#{name} that nobody rescues ends the process by that signal" do
      wires.each do |wire, settings|
        time = nil
        status = while_frozen(<<~RUBY, settings) do |output, pid|
          when_waiting(MAIN)
          call { MONITOR.registered?(KNOWN) }
        RUBY
          heard(output, "waiting")
          sent = send_signal(name, pid)
          # Until its end of the pipe is closed, with whatever it says on the way.
          output.read if output.wait_readable(20)
          time = monotonic - sent
        end
        expect_prompt("SIG#{name} until the process has ended, #{wire}", [time])
        expect(status.termsig).to eq(Signal.list.fetch(name))
      end
    end
  end

  it "SIGINT and SIGTERM with handlers like Sidekiq's are handled by the main thread, and its exit ends the waiting threads" do
    %w[INT TERM].each do |name|
      times = []
      status = while_frozen(<<~RUBY, {url: server.url}) do |output, pid|
        reader, writer = IO.pipe
        %w[INT TERM].each { |signal| trap(signal) { writer.puts(signal) } }
        callers = Array.new(10) { Thread.new { call { MONITOR.registered?(KNOWN) } } }
        sleep 0.01 until callers.all?(&:stop?)
        tell("waiting")
        reader.wait_readable
        tell(reader.gets.strip)
        exit(7)
      RUBY
        heard(output, "waiting")
        sent = send_signal(name, pid)
        times << (heard(output, name) - sent)
        output.read if output.wait_readable(20)
        times << (monotonic - sent)
      end
      expect_prompt("SIG#{name} until Sidekiq's main thread knows, and until the process has ended", times)
      expect(status.exitstatus).to eq(7)
    end
  end

  it "whose handler only writes to a pipe is handled at once, and the call goes on to its own answer" do
    times = []
    status = while_frozen(<<~RUBY, {url: server.url}) do |output, pid|
      reader, writer = IO.pipe
      trap("INT") { writer.puts("INT") }
      Thread.new { tell(reader.gets.strip) while true }
      when_waiting(MAIN)
      answers = call { [MONITOR.registered?(KNOWN), MONITOR.registered?(UNKNOWN)] }
      exit!(answers == [true, false])
    RUBY
      heard(output, "waiting")
      5.times do
        sent = send_signal("INT", pid)
        times << (heard(output, "INT") - sent)
      end
    end
    expect_prompt("SIGINT until another thread has read of it, the call going on", times)
    expect(status).to be_success
  end
end
