# frozen_string_literal: true

# How late a fiber wakes in a reactor of the async gem whose other fibers register requests, at a Redis 1 ms away: started by
# `rake bench:reactor`, within a lane that has async. The goals are those of a machine that does nothing else meanwhile; the "own"
# figures leave out the time for which it ran other processes although the reactor was ready (Linux alone tells that).

$LOAD_PATH.unshift(File.expand_path("../spec", __dir__))

require "async"
require "async/barrier"
require "patient_http_monitor"
require "support/distance"
require "support/plain_ruby_monitor"
require "support/redis_server"
require "support/tasks"
require "support/ticker"

# One situation, told as a line of the table.
class ReactorBench
  include Tasks

  FIBERS = 100
  # In s.
  DURATION = 3.0
  FREEZE_AFTER = 0.5
  FROZEN = 1.0
  # In ms.
  GOALS = {p99: 5.0, worst: 20.0}.freeze
  HEADER = format("%-36s%8s%10s%10s%10s%12s%12s%10s", "", "ticks", "p50 ms", "p99 ms", "worst ms", "own p99 ms", "own worst", "calls/s")

  # @param server [RedisServer]
  # @param url [String] where it is 1 ms away
  def initialize(server, url)
    @server = server
    # As many connections as ours has at most, for the plain Ruby class too; none gives up while Redis is frozen.
    @pool = Sidekiq::RedisConnection.create(url: url, size: 50, timeout: 10, pool_timeout: 10)
  end

  # @param name [String] of the line
  # @param implementation [Class, nil] whose objects register; none: the reactor is idle
  # @return [Boolean] whether the goals are met
  def run(name, implementation = nil, freeze: false)
    monitor = implementation&.new(config)
    calls = 0
    ticks = nil
    GC.start
    Sync do |reactor|
      # The first calls connect.
      register(monitor) { |count| count == 1 } if monitor
      ticker = Ticker.start
      freezer = Process.spawn("sleep #{FREEZE_AFTER}; kill -STOP #{@server.pid}; sleep #{FROZEN}; kill -CONT #{@server.pid}") if freeze
      ends = now + DURATION
      if monitor
        calls = register(monitor) { now >= ends }
      else
        sleep DURATION
      end
      ticks = ticker.stop
      Process.wait(freezer) if freezer
    end
    tell(name, ticks, calls)
  end

  private

  # @yieldparam count [Integer] of one fiber's calls so far
  # @yieldreturn [Boolean] whether that is enough
  # @return [Integer] how many calls there were
  def register(monitor)
    calls = 0
    barrier = Async::Barrier.new
    FIBERS.times do |number|
      barrier.async do
        # `Sidekiq::Client.via` is a setting of one fiber.
        Sidekiq::Client.via(@pool) do
          request = task(number.to_s)
          count = 0
          until yield(count)
            monitor.register(request)
            count += 1
          end
          calls += count
        end
      end
    end
    barrier.wait
    calls
  end

  def tell(name, ticks, calls)
    late = [50, 99, 100].map { |percent| ticks.late(percent) * 1_000 }
    own = [99, 100].map { |percent| ticks.late_by_own_fault(percent) * 1_000 }
    puts format("%-36s%8d%10.2f%10.2f%10.2f%12.2f%12.2f%10d", name, ticks.count, *late, *own, calls / DURATION)
    late.drop(1).zip(GOALS.values).all? { |figure, goal| figure <= goal }
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end

Sidekiq.default_configuration.logger.level = Logger::ERROR
server = RedisServer.start
met = Distance.open(server.port) do |url|
  bench = ReactorBench.new(server, url)
  ours = PatientHttp::Sidekiq::TaskMonitor
  puts "Ruby #{RUBY_VERSION}, async #{Async::VERSION}, Sidekiq #{Sidekiq::VERSION}; load of this machine: #{`uptime`[/load average.*/]}"
  puts "#{ReactorBench::FIBERS} fibers register, Redis is 1 ms away; how late a fiber wakes that sleeps for 1 ms at a time:"
  puts ReactorBench::HEADER
  bench.run("idle reactor")
  met = [bench.run("this gem", ours), bench.run("this gem, Redis frozen for 1 s", ours, freeze: true)].all?
  bench.run("plain Ruby", PlainRubyMonitor)
  bench.run("plain Ruby, Redis frozen for 1 s", PlainRubyMonitor, freeze: true)
  met
end
server.stop
goals = ReactorBench::GOALS
puts "The goals (99 of 100 ticks at most #{goals[:p99]} ms late, none more than #{goals[:worst]} ms) are #{"not " unless met}met by this gem."
exit(met)
