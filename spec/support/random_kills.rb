# frozen_string_literal: true

require "support/dying_collectors"
require "support/many_orphans"
require "support/observing"

# Collectors in processes of their own, each killed at a random moment of its sweep.
module RandomKills
  include DyingCollectors
  include ManyOrphans
  include Observing

  # In s: leases run out soon.
  THRESHOLD = 1
  # How many orphans tell how long one takes.
  SAMPLE = 200
  # How many are added where the others were through before the last kill.
  MORE = 500

  # What one kill left: jobs in neither place, and in both.
  Kill = Struct.new(:delay, :lost, :in_both)

  # Kills collectors in the middle of their sweeps, one after another, until that many have died; each dies by SIGKILL after a time
  # that is random within its share of the sweep. One that ends before it is killed does not count.
  #
  # @param jobs [Hash{String => Hash}] as {ManyOrphans#many_orphans} returned them; where they are through before the last kill,
  #   more are added
  # @param random [Random]
  # @yieldreturn [Object] a monitor, made in the collector's process
  # @return [Array<Kill>]
  def kill_collectors(count, jobs, random, &make)
    pace = pace_of(make)
    killed = []
    while killed.size < count
      jobs.merge!(many_orphans(MORE, first: jobs.size)) if stale_entries.zero?
      delay = random.rand * 1.5 * stale_entries * pace / (count - killed.size)
      next unless die_after(delay, &make)

      places = [queued.map { |job| job["jid"] }, registered_jids]
      killed << Kill.new(delay, jobs.keys - places.flatten, places.first.uniq & places.last)
    end
    killed
  end

  # How many a sweep would find; waits for leases to run out where they are few.
  def stale_entries
    count = -> { REDIS.call("ZCOUNT", Registry::INDEX, "-inf", "(#{server_ms - (THRESHOLD * 1000)}") }
    sleep THRESHOLD + 0.1 if count.call < 100
    count.call
  end

  private

  # In s for each orphan, measured on orphans of another number, whose jobs are taken away again.
  def pace_of(make)
    before = [Registry::JOBS, Registry::INDEX].to_h { |key| [key, "#{key}:aside"] }
    before.each { |key, aside| REDIS.call("RENAME", key, aside) }
    many_orphans(SAMPLE, first: 1_000_000)
    seconds { make.call.cleanup_orphaned_requests(THRESHOLD, nil) } / SAMPLE
  ensure
    before.each { |key, aside| REDIS.call("RENAME", aside, key) }
    REDIS.call("DEL", "queue:default")
  end

  # @return [Boolean] whether it died of the kill
  def die_after(delay)
    pid, reader = fork_collector do |report|
      collector = yield
      report.puts("begin")
      collector.cleanup_orphaned_requests(THRESHOLD, nil)
    end
    raise "the collector was silent" unless reader.wait_readable(DyingCollectors::PATIENCE) && reader.gets

    sleep delay
    Process.kill(:KILL, pid)
    _, status = Process.wait2(pid)
    status.signaled?
  ensure
    reader&.close
  end
end

RSpec.configure { |config| config.include RandomKills }
