# frozen_string_literal: true

require "spec_helper"
require "sidekiq/capsule"
require "support/meeting"
require "support/own_server"
require "support/ruby_process"

RSpec.describe "the Redis that Sidekiq uses in this thread at this moment" do
  include_context "with a server of its own"
  include Meeting
  include RubyProcess

  # Around each example Sidekiq::Client.via names `pool`, for its own thread.
  let(:here) { [server.port, 0] }
  let(:by_default) { [REDIS.port, 0] }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  def pool_of(db)
    Sidekiq::RedisConnection.create(url: server.url(db))
  end

  it "is the monitor's within Sidekiq::Client.via inside another one, and after each, however it was left" do
    met = [meet(monitor)]
    Sidekiq::Client.via(pool_of(1)) do
      met << meet(monitor)
      Sidekiq::Client.via(pool_of(2)) { met << meet(monitor) }
      raised { Sidekiq::Client.via(pool_of(3)) { raise KeyError, "left" } }
      met << meet(monitor)
      catch(:left) { Sidekiq::Client.via(pool_of(4)) { throw :left } }
      met << meet(monitor)
    end
    expect(met << meet(monitor)).to eq([here, [server.port, 1], [server.port, 2], [server.port, 1], [server.port, 1], here])
  end

  it "is the monitor's in a thread, and in a fiber, that began within Sidekiq::Client.via and inherited nothing of it" do
    expect(Thread.new { meet(monitor) }.value).to eq(by_default)
    expect(Fiber.new { meet(monitor) }.resume).to eq(by_default)
    expect(meet(monitor)).to eq(here)
  end

  it "is the monitor's in each of two fibers that take turns in one thread" do
    met = Array.new(2) { [] }
    fibers = met.each_with_index.map do |places, number|
      Fiber.new { Sidekiq::Client.via(pool_of(number + 1)) { 3.times { Fiber.yield(places << meet(monitor)) } } }
    end
    3.times { fibers.each(&:resume) }
    expect(met).to eq([[[server.port, 1]] * 3, [[server.port, 2]] * 3])
  end

  it "is the monitor's in a capsule's thread, within Sidekiq::Client.via there, and in a thread that one started" do
    configuration = Sidekiq::Config.new.tap { |it| it.logger = Logger.new(nil) }
    configuration.redis = {url: server.url(5)}
    capsule = Sidekiq::Capsule.new("reports", configuration)
    met = Thread.new do
      Thread.current[:sidekiq_capsule] = capsule
      [meet(monitor), Sidekiq::Client.via(pool_of(6)) { meet(monitor) }, Thread.new { meet(monitor) }.value, meet(monitor)]
    end
    expect(met.value).to eq([[server.port, 5], [server.port, 6], by_default, [server.port, 5]])
  end

  it "is the one that the class itself asks, too" do
    monitor.ping_process
    monitor.register(task)
    Sidekiq::Client.via(pool_of(1)) do
      expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(0)
      expect(PatientHttp::Sidekiq::TaskMonitor.registered_process_ids).to eq([])
      expect(PatientHttp::Sidekiq::TaskMonitor.total_max_connections).to eq(0)
      expect(PatientHttp::Sidekiq::TaskMonitor.inflight_counts_by_process).to eq({})
    end
    expect(PatientHttp::Sidekiq::TaskMonitor.inflight_count).to eq(1)
  end

  describe "in a process of its own" do
    let(:beginning) do
      <<~RUBY
        require "patient_http_monitor"
        require "support/meeting"
        include Meeting
        Sidekiq.default_configuration.logger.level = Logger::ERROR
      RUBY
    end

    # @return [Array<String>] the lines that it writes
    def told(code, **options)
      outcome = ruby(beginning + code, env: {"REDIS_URL" => server.url}, **options)
      expect(outcome.errors).to eq("")
      outcome.output.lines(chomp: true)
    end

    it "is the monitor's when the settings change at run time, as soon as Sidekiq follows them" do
      places = told(<<~RUBY)
        monitor = monitor()
        tell = ->(what) { puts "\#{what} \#{meet(monitor)&.last.inspect}" }
        tell.call("at first")
        Sidekiq.default_configuration.redis = {db: 1}
        # Sidekiq has its pool already, and keeps it.
        tell.call("settings")
        Sidekiq.default_configuration.instance_variable_set(:@redis, nil)
        tell.call("pool")
        Sidekiq.instance_variable_set(:@config, nil)
        Sidekiq.default_configuration.logger.level = Logger::ERROR
        Sidekiq.configure_client { |config| config.redis = {db: 2} }
        tell.call("configuration")
        Sidekiq.redis_pool.reload(&:close)
        tell.call("clients")
      RUBY
      expect(places.first).to eq("at first 0")
      expect(places.drop(2)).to eq(["pool 1", "configuration 2", "clients 2"])
      # Nothing is asked of Sidekiq here but that the monitor is where it is.
      expect(places[1]).to match(/settings [01]/)
    end

    it "is the monitor's while other threads are in the middle of their calls when the settings change" do
      expect(told(<<~RUBY)).to eq(["10 threads, apart: 0"])
        monitor = monitor()
        done = false
        apart = Queue.new
        threads = Array.new(10) do
          Thread.new do
            until done
              # Of each moment that a change does not fall into, both must tell the same.
              before = Sidekiq.redis_pool
              place = meet(monitor)
              apart << 1 if place.nil? && before.equal?(Sidekiq.redis_pool)
            end
          end
        end
        20.times do |db|
          sleep 0.02
          Sidekiq.default_configuration.redis = {db: db % 4}
          Sidekiq.default_configuration.instance_variable_set(:@redis, nil)
        end
        done = true
        threads.each(&:join)
        puts "\#{threads.size} threads, apart: \#{apart.size}"
      RUBY
    end

    it "is the monitor's in the jobs of a running Sidekiq, one connection for each of its capsules" do
      expect(told(<<~RUBY, warnings: false)).to eq(["default: here, by its pool", "reports: here, by its pool", "2 connections"])
        require "sidekiq/embedded"
        PORT = #{server.port}
        MONITOR = monitor
        TOLD = Queue.new
        class Job
          include Sidekiq::Job

          def perform(queue)
            places = Array.new(3) { meet(MONITOR) }.uniq
            capsule = Thread.current[:sidekiq_capsule]
            pool = Sidekiq.redis_pool.equal?(capsule.redis_pool) ? "its" : "another"
            TOLD << "\#{capsule.name}: \#{(places == [[PORT, 0]]) ? "here" : places}, by \#{pool} pool"
          end
        end
        running = Sidekiq.configure_embed do |config|
          config.logger = Logger.new(nil)
          config.concurrency = 1
          config.capsule("reports") { |capsule| capsule.concurrency = 1 and capsule.queues = ["reports"] }
        end
        running.run
        %w[default reports].each { |queue| Job.set(queue: queue).perform_async(queue) }
        puts Array.new(2) { TOLD.pop(timeout: 20) }.sort
        pools = ObjectSpace.each_object(PatientHttpMonitor.const_get(:Pool))
        puts "\#{pools.sum { |pool| pool.counts.first }} connections"
        running.stop
      RUBY
    end
  end
end
