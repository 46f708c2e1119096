# frozen_string_literal: true

# What valgrind watches (see memcheck.rb): each kind of call once, and each way for a call to end.
require "patient_http_monitor"
require "support/tasks"
require "support/children"
require "support/fiber_scheduler"
require "support/observing"
require "timeout"
include Tasks # rubocop:disable Style/MixinUsage -- a script
include Children # rubocop:disable Style/MixinUsage
include Observing # rubocop:disable Style/MixinUsage

Sidekiq.default_configuration.logger.level = Logger::FATAL
# valgrind makes everything 20 to 50 times as slow.
PATIENCE = 60
PLAIN = Sidekiq::RedisConnection.create(url: ENV.fetch("PLAIN_URL"), timeout: PATIENCE, pool_timeout: PATIENCE)
TLS = Sidekiq::RedisConnection.create(url: ENV.fetch("TLS_URL"), timeout: PATIENCE, ssl_params: {ca_file: ENV.fetch("CA_FILE")})
NOBODY = Sidekiq::RedisConnection.create(url: ENV.fetch("NOBODY_URL"), reconnect_attempts: 0)
SERVER = Integer(ENV.fetch("SERVER_PID"))
INDEX = PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_INDEX_KEY

def via(pool, &block) = Sidekiq::Client.via(pool, &block)

def redis(*command) = Sidekiq.redis { |client| client.call(*command) }

def expect_that(what, answer)
  answer or abort "wrong: #{what}"
end

def frozen_server
  Process.kill(:STOP, SERVER)
  yield
ensure
  Process.kill(:CONT, SERVER)
end

def all_calls(one)
  one.ping_process
  tasks = Array.new(5) { |number| task(number.to_s, args: ["x" * (4_000 * number), {"\u{1F4E6}" => [1.5, nil]}]) }
  tasks.each { |each| one.register(each) }
  one.update_heartbeats(tasks.map(&:id))
  expect_that "registered", one.registered?(tasks.first) && one.heartbeat_timestamp_for(tasks.last)
  expect_that "ids", one.registered_task_ids.sort == tasks.map { |each| one.full_task_id(each.id) }.sort
  expect_that "the lock", one.acquire_gc_lock && one.release_gc_lock
  one.record_gc_run
  expect_that "no run is needed", !one.gc_needed?
  klass = one.class
  [klass.inflight_count, klass.inflight_counts_by_process, klass.total_max_connections, klass.registered_process_ids]
  tasks.each { |each| one.unregister(each) }
  one.remove_process
end

def recoveries(one)
  PatientHttpMonitor.settings.recovery_limit = 1
  one.register(task("poison", jid: "poison"))
  redis("HSET", PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_JOBS_KEY, "gone:1:ff/1", "{no json")
  counts = Array.new(4) do
    one.register(task("poison", jid: "poison"))
    redis("ZADD", INDEX, 1, "gone:1:ff/1", 1, "ghost:1:ff/1")
    sleep 0.01
    monitor.cleanup_orphaned_requests(0, nil)
  end
  expect_that "recovered: #{counts}", counts.sum.between?(1, 2)
end

def errors(one)
  redis("SET", INDEX, "text")
  expect_that "an error of the server", raised { one.register(task) }.is_a?(RedisClient::CommandError)
  redis("DEL", INDEX)
  expect_that "an odd task", raised { one.register(nil) }.is_a?(NoMethodError)
  expect_that "nobody there", raised { via(NOBODY) { one.register(task) } }.is_a?(RedisClient::CannotConnectError)
  redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
  expect_that "lost connections", one.registered?(task) == false
end

def interrupts(one)
  frozen_server do
    expect_that "a timeout", raised { Timeout.timeout(0.5) { one.registered?(task) } }.is_a?(Timeout::Error)
    victim = Thread.new { via(PLAIN) { one.registered?(task) } }
    eventually(within: PATIENCE) { victim.stop? }
    victim.kill.join
  end
  expect_that "afterwards", one.registered?(task) == false
end

def forks(one)
  one.register(known = task)
  expect_that "a child", in_child { [one.registered?(known), one.register(known), one.registered?(known)] } == [false, nil, true]
  expect_that "its parent", one.registered?(known)
  one.unregister(known)
end

# More than the 50 connections that there are at most.
def many_callers(one)
  callers = nil
  frozen_server do
    callers = Array.new(60) { |number| Thread.new { via(PLAIN) { one.registered?(task(number.to_s)) } } }
    eventually(within: PATIENCE) { callers.all?(&:stop?) }
  end
  expect_that "threads", callers.map(&:value).none?
  answers = []
  FiberScheduler.run { 10.times { Fiber.schedule { via(PLAIN) { answers << one.registered?(task) } } } }
  expect_that "fibers", answers == [false] * 10
end

one = monitor
[PLAIN, TLS].each do |pool|
  via(pool) { %i[all_calls recoveries errors interrupts forks].each { |step| send(step, one) } }
end
via(PLAIN) { many_callers(one) }
GC.start
GC.compact if GC.respond_to?(:compact)
via(TLS) { all_calls(one) }
puts "complete"
