# frozen_string_literal: true

module Demo
  # The closing line, and what it says about the exit status.
  class Verdict
    # @param feeder [Feeder] knows how many jobs there were
    # @param victim [SidekiqProcess, nil] who was killed
    # @param orphans [Integer, nil] how many requests it had in flight
    # @param recovered [Integer] what the sweeps returned, summed
    def initialize(feeder, victim, orphans, recovered)
      @victim = victim
      @orphans = orphans
      @recovered = recovered
      jobs = Ledger.finished_jobs
      @registered = Ledger.registered_count
      @finished = jobs.size
      @repeated = jobs.values.count { |times| times > 1 }
      @lost = feeder.enqueued - @finished
      @left = Sidekiq.redis do |redis|
        [redis.call("ZCARD", PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_INDEX_KEY),
          redis.call("HLEN", PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_JOBS_KEY)].max
      end
    end

    # @return [Integer] exit status
    def announce(screen)
      screen.line
      complaints.each { |complaint| screen.event(complaint, :red) }
      screen.line(screen.paint("registered #{@registered}, finished #{@finished}, recovered #{@recovered}, lost #{@lost}, " \
        "repeated #{@repeated}", complaints.empty? ? :green : :red))
      complaints.empty? ? 0 : 1
    end

    private

    def complaints
      @complaints ||= [
        ("no process was killed: none had enough requests in flight" unless @victim),
        ("only #{@orphans} requests were in flight at the death" if @victim && @orphans < Runner::PROMISED),
        ("nothing was recovered" if @victim && @recovered.zero?),
        ("#{@left} requests are still registered" if @left.positive?),
        ("#{@lost} jobs did not finish: #{whereabouts}" if @lost.positive?)
      ].compact
    end

    def whereabouts
      "#{Sidekiq::Queue.new.size} are in the queue, #{Sidekiq::RetrySet.new.size} to be retried, " \
        "#{Sidekiq::DeadSet.new.size} dead"
    end
  end
end
