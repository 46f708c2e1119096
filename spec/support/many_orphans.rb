# frozen_string_literal: true

require "support/registry"

# Orphans by the thousand, and the account of what became of their jobs.
module ManyOrphans
  include Registry

  PIECE = 500

  # What became of jobs: the jids of those that are nowhere, of those in the queue more often than once, and of those whose hash
  # in the queue is not the registered one.
  Account = Struct.new(:jobs, :lost, :repeated, :corrupted, :registered, :most) do
    def to_s
      "#{jobs} jobs: #{lost.size} lost, #{repeated.size} repeated (each up to #{most} times), #{corrupted.size} corrupted, " \
        "#{registered} still registered"
    end
  end

  # Entries of a process that is dead, an hour old, each with arguments of its own.
  #
  # @param first [Integer] the first one's number
  # @return [Hash{String => Hash}] jid to job
  def many_orphans(count, first: 0, queue: ->(_) { "default" })
    last_heartbeat = server_ms - 3_600_000
    (first...(first + count)).each_slice(PIECE).with_object({}) do |numbers, jobs|
      made = numbers.to_h { |number| [number, orphaned_job(number, queue.call(number))] }
      REDIS.call("HSET", Registry::JOBS, *made.flat_map { |number, job| [orphan_id(number), JSON.generate(job)] })
      REDIS.call("ZADD", Registry::INDEX, *made.keys.flat_map { |number| [last_heartbeat + number, orphan_id(number)] })
      made.each_value { |job| jobs[job["jid"]] = job }
    end
  end

  # @return [String] registry id
  def orphan_id(number)
    "gone-host:4711:00000000000000ff/#{number}"
  end

  def orphaned_job(number, queue)
    {"class" => "ReportJob", "args" => [number, "naïve \u0000 \u2028 \u{1F980}", {"deep" => [1.5, nil, -1]}],
     "jid" => format("%024x", number), "queue" => queue, "retry" => true}
  end

  # @return [Array<String>] jids of the jobs that the registry has
  def registered_jids
    REDIS.call("HVALS", Registry::JOBS).map { |job| JSON.parse(job)["jid"] }
  end

  # The queue is read before the registry: a job moves in that direction.
  #
  # @param jobs [Hash{String => Hash}] as {#many_orphans} returned them
  # @return [Account]
  def account_of(jobs, queues: ["default"])
    pushed = queues.flat_map { |queue| queued(queue) }
    tally = pushed.map { |job| job["jid"] }.tally
    registered = registered_jids
    corrupted = pushed.reject { |job| jobs[job["jid"]] == job.slice(*jobs.fetch(job["jid"], job).keys) }
    Account.new(jobs.size, jobs.keys - tally.keys - registered, tally.select { |_, times| times > 1 }.keys,
      corrupted.map { |job| job["jid"] }, entries.size, tally.values.max || 0)
  end

  # Sweeps of a collector to whom nothing happens, leases that have not run out included, until there is nothing left.
  #
  # @return [Integer] how many jobs it re-enqueued
  def sweep_the_rest(collector = monitor)
    re_enqueued = 0
    5.times do
      re_enqueued += collector.cleanup_orphaned_requests(-1, nil)
      break if entries.empty?
    end
    re_enqueued
  end
end

RSpec.configure { |config| config.include ManyOrphans }
