# frozen_string_literal: true

require "spec_helper"
require "support/certificates"
require "support/ruby_process"

RSpec.describe "Ruby's compaction, in a process that uses all that the extension keeps," do
  include RubyProcess

  before(:context) do
    skip "this Ruby does not move objects" unless GC.respond_to?(:verify_compaction_references)

    @dir = Dir.mktmpdir("patient_http_monitor")
    authority = Certificates.new(@dir, "authority")
    certificate, key = authority.issue("server", "DNS:localhost")
    @tls_port = RedisServer.free_port
    @server = RedisServer.start(tls_port: @tls_port, tls_cert_file: certificate, tls_key_file: key,
      tls_ca_cert_file: authority.ca_file, tls_auth_clients: "no")
    @ca_file = authority.ca_file
  end

  after(:context) do
    @server&.stop
    FileUtils.rm_rf(@dir) if @dir
  end

  # In a process of its own, which it may crash: over the port, or the one with TLS.
  def outcome_of(code)
    ruby(<<~RUBY + code, env: {"CA_FILE" => @ca_file, "SERVER_PID" => @server.pid.to_s, "PLAIN_URL" => @server.url, "TLS_URL" => "rediss://localhost:#{@tls_port}"}, limit: 120)
      require "patient_http_monitor"
      require "support/tasks"
      require "support/observing"
      require "support/fiber_scheduler"
      include Tasks
      include Observing
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      PLAIN = Sidekiq::RedisConnection.create(url: ENV.fetch("PLAIN_URL"), timeout: 60, pool_timeout: 60, size: 5)
      TLS = Sidekiq::RedisConnection.create(url: ENV.fetch("TLS_URL"), timeout: 60, ssl_params: {ca_file: ENV.fetch("CA_FILE")})
      MONITOR = monitor

      # Moves what can be moved, and lets Ruby look whether anything still points to where it was.
      def move_objects
        GC.verify_compaction_references(expand_heap: true, toward: :empty)
        GC.verify_internal_consistency if GC.respond_to?(:verify_internal_consistency)
      end

      def frozen_server
        Process.kill(:STOP, Integer(ENV.fetch("SERVER_PID")))
        yield
      ensure
        Process.kill(:CONT, Integer(ENV.fetch("SERVER_PID")))
      end

      def via(pool, &block) = Sidekiq::Client.via(pool, &block)
    RUBY
  end

  before { @server.call("FLUSHALL") }

  it "breaks no idle connection, no caller in the middle of a call, and none who waits for a connection" do
    outcome = outcome_of(<<~RUBY)
      via(PLAIN) { 80.times { |number| MONITOR.register(task(number.to_s)) if number.even? } }
      [PLAIN, TLS].each { |pool| via(pool) { MONITOR.registered?(task("0")) or raise "lost" } }
      answers = nil
      frozen_server do
        # 50 of them get a connection, the others wait for one.
        callers = Array.new(80) { |number| Thread.new { via(PLAIN) { MONITOR.registered?(task(number.to_s)) } } }
        secure = Array.new(5) { Thread.new { via(TLS) { MONITOR.registered?(task("0")) } } }
        eventually { (callers + secure).all?(&:stop?) } or raise "some never began to wait"
        3.times { move_objects }
        answers = callers + secure
      end
      answers = answers.map(&:value)
      raise "wrong: \#{answers}" unless answers == (0...80).map(&:even?) + [true] * 5
      move_objects
      [PLAIN, TLS].each { |pool| p pool_counts(pool).uniq }
      [PLAIN, TLS].each { |pool| via(pool) { print MONITOR.registered_task_ids.size, " " } }
    RUBY
    expect([outcome.output, outcome.errors]).to eq(["[50]\n[5]\n40 40", ""]), outcome.to_s
  end

  it "breaks no fiber that waits under a Fiber scheduler" do
    outcome = outcome_of(<<~RUBY)
      via(PLAIN) { 60.times { |number| MONITOR.register(task(number.to_s)) if number.even? } }
      answers = {}
      frozen_server do
        thaw = Thread.new do
          eventually { PatientHttpMonitor.const_get(:Pools).for(PLAIN).counts.first == 50 }
          2.times { move_objects }
          Process.kill(:CONT, Integer(ENV.fetch("SERVER_PID")))
        end
        FiberScheduler.run do
          60.times { |number| Fiber.schedule { via(PLAIN) { answers[number] = MONITOR.registered?(task(number.to_s)) } } }
          5.times { |number| Fiber.schedule { via(TLS) { answers["tls-\#{number}"] = MONITOR.registered?(task("0")) } } }
        end
        thaw.join
      end
      wrong = answers.reject { |number, answer| answer == (number.is_a?(String) || number.even?) }
      puts answers.size, wrong.inspect
    RUBY
    expect([outcome.output, outcome.errors]).to eq(["65\n{}", ""]), outcome.to_s
  end

  it "breaks no sweep between its steps" do
    outcome = outcome_of(<<~RUBY)
      via(TLS) do
        10.times { |number| MONITOR.register(task(number.to_s, jid: number.to_s)) }
        sleep 0.003
        Sidekiq.default_configuration.client_middleware do |chain|
          chain.add(Class.new { define_method(:call) { |*_, &push| move_objects.then { push.call } } })
        end
        puts monitor.cleanup_orphaned_requests(0, nil), Sidekiq.redis { |redis| redis.call("LLEN", "queue:default") }
      end
    RUBY
    expect([outcome.output, outcome.errors]).to eq(["10\n10", ""]), outcome.to_s
  end
end
