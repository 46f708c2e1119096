# frozen_string_literal: true

module PatientHttpMonitor
  # One sweep: leases the orphans, pushes their jobs, settles what was pushed. Whatever fails or dies on the way, a job is in the
  # registry or in the queue; only between its push and its settling it is in both.
  #
  # @api private
  class Recovery
    # Begins each line of the log.
    PREFIX = "[PatientHttp::Sidekiq] "
    # An orphan on lease.
    Orphan = Struct.new(:id, :payload, :counted_by, :recoveries)
    # What a sweep did, by number of orphans; the last is those whose lease went to someone else.
    Tally = Struct.new(:recovered, :repeated, :dead, :ghosts, :restored, :failed, :lost)
    # After so many pushes in a row that found no Redis, a sweep ends.
    FAILURES_OF_REDIS = 3
    # What every sweep says while Redis is away is said once a minute in a process.
    LIMIT = LineLimit.new(60)
    # Shorter arguments stand in too many words that are none.
    SHORTEST_QUOTE = 4
    private_constant :PREFIX, :Orphan, :Tally, :FAILURES_OF_REDIS, :LIMIT, :SHORTEST_QUOTE

    # @param monitor [PatientHttp::Sidekiq::TaskMonitor] who sweeps
    # @param orphan_threshold_seconds [#to_f] in s
    # @param logger [#info, #error, nil] gets a line for each job
    def initialize(monitor, orphan_threshold_seconds, logger)
      @monitor = monitor
      @threshold = orphan_threshold_seconds
      @logger = logger
      @tally = Tally.new(*Array.new(Tally.members.size, 0))
      @failures_of_redis = 0
    end

    # @return [Integer] how many jobs were handed to Sidekiq
    # @raise [RedisClient::Error] when Redis fails before anything was leased; later it ends the sweep with a line
    def run
      started = now
      @sweep = Sweep.begin(@monitor, @threshold)
      return wait_for_peers unless @sweep

      step = @sweep.claim
      finish(step)
      summarize(started)
      @tally.recovered
    end

    private

    def finish(step)
      while step
        lease, orphans, ghosts = step
        ghosts.each { |id| report_ghost(id) }
        recover(orphans.map { |fields| Orphan.new(*fields) }, lease)
        @sweep.keep_alive
        step = @sweep.claim
      end
      @sweep.stopped? ? wait_for_peers : restore
    rescue ::RedisClient::Error, ::ConnectionPool::TimeoutError => error
      line = "Sweep ended early, the rest is left to the next one: #{error.class} - #{one_line(error.message)}"
      return ::Sidekiq.logger.error("#{PREFIX}#{line}") if error.is_a?(::RedisClient::CommandError)

      LIMIT.line(error.class) { |note| ::Sidekiq.logger.error("#{PREFIX}#{line}#{note}") }
    end

    def wait_for_peers
      LIMIT.line(:waiting) do |note|
        ::Sidekiq.logger.warn("#{PREFIX}No orphans are taken yet: this process's own proof of life had run out, so Redis was away " \
          "or this process stood still. Its peers get one capacity TTL to show that they live.#{note}")
      end
      0
    end

    def recover(orphans, lease)
      leased_at = now
      until orphans.empty?
        if @sweep.lease_old?(now - leased_at)
          lease, kept = @sweep.renew(lease, orphans.map(&:id))
          leased_at = now
          @tally.lost += orphans.size - kept.size
          kept = kept.to_h { |id| [id, true] }
          orphans.select! { |orphan| kept[orphan.id] }
          next
        end
        hand_on(orphans.shift, lease)
        @sweep.keep_alive
      end
    end

    def hand_on(orphan, lease)
      job = parse(orphan.payload)
      limit = PatientHttpMonitor.settings.recovery_limit
      return bury_poison(job, orphan, lease) if limit && orphan.recoveries >= limit

      jid = ::Sidekiq::Client.push(job)
    rescue UnusableJobError => error
      refuse(orphan, nil, lease, error)
    rescue StandardError, ScriptError => error
      refused?(orphan.payload) ? refuse(orphan, job, lease, error) : fail_push(orphan, error, job)
    else
      @failures_of_redis = 0
      @tally.recovered += 1
      @tally.repeated += 1 if orphan.recoveries.positive?
      begin
        settle(orphan, lease, PatientHttpMonitor.settings.recovery_window)
      ensure
        # The job is pushed, whatever becomes of its entry.
        report_success(orphan, job, jid)
      end
    end

    # @return [Hash] the job exactly as it was registered
    def parse(payload)
      value = StoredJob.parse(payload)
      value.is_a?(Hash) ? value : raise(UnusableJobError, "the stored job is not a Hash but #{value.class}")
    end

    # Whether Sidekiq itself refuses the job, or cannot write it: an ArgumentError may come from a client middleware as well, and
    # counts for nothing then. The job as it was registered is asked about: a middleware may have left anything in the args.
    def refused?(payload)
      ::Sidekiq.dump_json(Object.new.extend(::Sidekiq::JobUtil).send(:normalize_item, parse(payload)))
      false
    rescue
      true
    end

    # A push that fails leaves the lease, and the job is tried again when it runs out. Where Redis is gone, trying the rest would
    # take a timeout for each.
    def fail_push(orphan, error, job)
      report_failure(orphan.id, error, job)
      return @failures_of_redis = 0 unless error.is_a?(::RedisClient::ConnectionError)

      @failures_of_redis += 1
      raise error if @failures_of_redis >= FAILURES_OF_REDIS
    end

    # What can never be pushed is tried as often as a job may be recovered, since a deploy may mend it, and buried then.
    def refuse(orphan, job, lease, error)
      limit = PatientHttpMonitor.settings.recovery_limit
      refusals = @sweep.count_refusal(orphan.counted_by, PatientHttpMonitor.settings.recovery_window)
      return report_failure(orphan.id, error, job) unless limit && refusals > limit

      bury(orphan, lease, error, job) { DeadJobs.bury_unusable(orphan.payload, orphan.id, without_job(error.message, job)) }
    end

    def bury_poison(job, orphan, lease)
      error = PoisonError.new("recovered #{orphan.recoveries} times within #{PatientHttpMonitor.settings.recovery_window} s, " \
        "and its process died each time")
      bury(orphan, lease, error, job) { DeadJobs.bury(job, orphan.id, error) }
    end

    # @yieldreturn [Boolean] whether the job was added to the dead set
    def bury(orphan, lease, error, job)
      added = yield
      settle(orphan, lease, nil)
      @tally.dead += 1
      fate = added ? "it is in Sidekiq's dead set now" : "it is discarded, since the job says `dead: false`"
      failed(orphan.id, error.class, "#{without_job(error.message, job)}; #{fate}")
    rescue ::RedisClient::ConnectionError
      raise
    rescue => raised
      report_failure(orphan.id, raised, job)
    end

    def settle(orphan, lease, window)
      @tally.lost += 1 if @sweep.settle(orphan.id, lease, orphan.counted_by, window) == :lease_lost
    end

    def restore
      while (ids = @sweep.restore)
        @tally.restored += ids.size
      end
    end

    def report_success(orphan, job, jid)
      if jid
        log(:info, "Re-enqueued orphaned request #{printable(orphan.id)} to #{one_line(job["class"])}")
      else
        ::Sidekiq.logger.info("#{PREFIX}Orphaned request #{printable(orphan.id)} to #{one_line(job["class"])} was stopped by a " \
          "client middleware")
      end
    end

    def report_ghost(id)
      @tally.ghosts += 1
      failed(id, GhostError, "it had no job; the entry is removed")
    end

    def report_failure(id, error, job)
      @tally.failed += 1
      failed(id, error.class, without_job(error.message, job))
    end

    def failed(id, error_class, message)
      log(:error, "Failed to re-enqueue orphaned request #{printable(id)}: #{error_class} - #{one_line(message)}")
    end

    # A logger that fails must not stop the jobs that it is told of.
    def log(level, line)
      @logger&.public_send(level, "#{PREFIX}#{line}")
    rescue => error
      ::Sidekiq.logger.error("#{PREFIX}The logger of a sweep failed: #{error.class}")
    end

    # Ids are the application's and may hold anything; a line of the log is one line of text.
    def printable(id)
      id.valid_encoding? && id.encoding == Encoding::UTF_8 && !id.match?(/[[:cntrl:]]/) ? id : id.inspect
    end

    # Sidekiq quotes the whole job in its errors, and a middleware may quote its arguments; a log is no place for them.
    def without_job(message, job)
      message = RedisErrors.without_arguments(text(message))
      return message unless job

      quotes = [job.to_s, json(job), job["args"].inspect, json(job["args"]), *strings(job["args"])].map { |quote| text(quote) }
      quotes.reject! { |quote| quote.size < SHORTEST_QUOTE }
      quotes.sort_by { |quote| -quote.size }.reduce(message) { |cut, quote| cut.gsub(quote, "[...]") }
    end

    def json(value)
      JSON.generate(value)
    rescue JSON::JSONError
      ""
    end

    # @return [Array<String>] all that are anywhere in a JSON value
    def strings(value)
      case value
      when String then [value]
      when Array then value.flat_map { |each| strings(each) }
      when Hash then value.values.flat_map { |each| strings(each) }
      else []
      end
    end

    def one_line(string)
      text(string).gsub(/[[:cntrl:]]+/, " ").strip
    end

    def text(object)
      object.to_s.dup.force_encoding(Encoding::UTF_8).scrub
    end

    def summarize(started)
      line = "#{PREFIX}Swept in #{((now - started) * 1000).round} ms: " \
        "#{@tally.to_h.map { |name, count| "#{name} #{count}" }.join(", ")}"
      if @tally.restored.positive?
        ::Sidekiq.logger.warn(line)
      elsif @tally.recovered.positive?
        ::Sidekiq.logger.info(line)
      else
        ::Sidekiq.logger.debug(line)
      end
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
  private_constant :Recovery
end
