# frozen_string_literal: true

# A fiber that sleeps again and again, and how late it woke each time: for so long the others of its thread let it wait.
class Ticker
  # In s.
  INTERVAL = 0.001
  # For how long a thread was ready to run while the machine ran others: where Linux tells it, the second figure, in ns.
  DELAYS = "/proc/thread-self/schedstat"

  # @return [Ticker] that ticks in a fiber of this thread's scheduler
  def self.start
    new.tap { |ticker| Fiber.schedule { ticker.tick } }
  end

  def initialize
    @late = []
    @own = []
    @delays = File.open(DELAYS) if File.readable?(DELAYS)
    @ticking = true
  end

  def tick
    while @ticking
      @delayed = delayed
      @due = now + INTERVAL
      sleep INTERVAL
      note if @ticking
    end
  ensure
    @delays&.close
  end

  # @return [self]
  def stop
    # It may have been its turn for long.
    note if @due && now > @due
    @ticking = false
    self
  end

  def count
    @late.size
  end

  # @param percent [Integer]
  # @return [Float] how late at most that many of a hundred ticks were, in s
  def late(percent)
    percentile(@late, percent)
  end

  # The same without the time for which the machine ran other threads instead of this one.
  def late_by_own_fault(percent)
    percentile(@own, percent)
  end

  private

  def note
    late = now - @due
    @late << late
    @own << [late - (delayed - @delayed), 0].max
  end

  def percentile(times, percent)
    times.sort.fetch([(times.size * percent / 100.0).ceil - 1, 0].max)
  end

  def delayed
    @delays ? Integer(@delays.pread(100, 0).split[1]) / 1e9 : 0
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
