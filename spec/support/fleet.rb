# frozen_string_literal: true

require "json"
require "rbconfig"
require "support/observing"
require "support/registry"

# Processes of their own that share a registry (see fleet_member.rb), each of which can be killed, stopped, and given a clock that
# is wrong.
module Fleet
  include Observing

  # A process of the fleet, seen from here.
  class Member
    # How long it may take to start or to answer, in s.
    PATIENCE = 30
    ROOT = File.expand_path("../..", __dir__)

    attr_reader :pid

    # @param redis [RedisServer]
    # @param env [Hash{String => String}] in addition to this process's own
    # @param options [Hash] see FleetMember
    def initialize(redis, env, options)
      # Outside a test suite, where the registry's clock and the limits are those of production.
      env = {"REDIS_URL" => redis.url, "RACK_ENV" => "production", "RAILS_ENV" => nil, "APP_ENV" => nil}.merge(env)
      script = File.join(__dir__, "fleet_member.rb")
      theirs, @calls = IO.pipe
      @answers, out = IO.pipe
      @pid = Process.spawn(env, RbConfig.ruby, "-I", File.join(ROOT, "lib"), script, JSON.generate(options), in: theirs, out: out)
      [theirs, out].each(&:close)
    end

    # @return [Object] what the process answered, as JSON expresses it
    # @raise [RuntimeError] when it raised, or does not answer
    def call(name, *arguments)
      tell(name, *arguments)
      line = @answers.wait_readable(PATIENCE) ? @answers.gets : raise("no answer to #{name} for #{PATIENCE} s")
      answer = JSON.parse(line || raise("the process ended at #{name}"))
      raise "in the process: #{answer["error"]}" if answer["error"]

      answer["answer"]
    end

    # A call whose answer nobody waits for.
    def tell(name, *arguments)
      @calls.puts(JSON.generate([name, *arguments]))
      @calls.flush
    end

    # @return [String]
    def process_id
      @process_id ||= call("process_id")
    end

    def stop
      Process.kill(:STOP, pid)
    end

    def continue
      Process.kill(:CONT, pid)
    end

    def kill
      return unless pid

      Process.kill(:KILL, pid)
      wait
    end

    # Until it has ended by itself.
    #
    # @return [Process::Status]
    def wait
      _, status = Process.wait2(pid)
      @pid = nil
      [@calls, @answers].each(&:close)
      status
    end
  end

  # @param redis [RedisServer]
  # @param env [Hash{String => String}]
  # @param options [Hash] see FleetMember
  # @return [Member] which may still be starting
  def member(redis: REDIS, env: {}, **options)
    Member.new(redis, env, options).tap { |started| members << started }
  end

  # @return [Array<Member>] all that were started in this example
  def members
    @members ||= []
  end

  # @return [Array] the args of the jobs in the queue
  def queued_tasks
    queued.map { |job| job["args"].first }
  end

  # Watches the queue, by nothing but reading it.
  #
  # @param ids [Array<String>] of tasks
  # @param within [Float] for how long it looks, in s
  # @return [Float] the moment (see {Observing}) at which the job of the last one was there; infinity when not all came
  def moment_when_queued(ids, within:)
    eventually(within: within) { (ids - queued_tasks).empty? } ? monotonic : Float::INFINITY
  end

  # Waits until the collectors have recorded so many sweeps.
  def wait_for_sweeps(count)
    last = REDIS.call("GET", Registry::GC_LAST_RUN)
    count.times do
      run = eventually(within: 20) { (now = REDIS.call("GET", Registry::GC_LAST_RUN)) && now != last && now }
      raise "nobody sweeps" unless run

      last = run
    end
  end

  # Tells a figure beside the results.
  def report(line)
    RSpec.configuration.reporter.message("  #{line}")
  end
end

RSpec.shared_context "with a fleet" do
  include Fleet

  after { members.each(&:kill) }
end
