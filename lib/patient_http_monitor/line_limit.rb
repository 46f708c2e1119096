# frozen_string_literal: true

module PatientHttpMonitor
  # Keeps a line that repeats, as it does in each sweep while Redis is away, from filling a log.
  #
  # @api private
  class LineLimit
    # @param period [Numeric] how long after a line another one of its kind is left out, in s
    def initialize(period)
      @period = period
      @last = {}
      @left_out = Hash.new(0)
    end

    # Without a Mutex, which a trap handler could not lock: of two threads at the very same moment both may be let through.
    #
    # @param kind [Object] what lines of one kind have in common
    # @yield when the line should be written
    # @yieldparam note [String] what to append to it: how many were left out since the last one
    # @return [void]
    def line(kind)
      # A forked child has said nothing yet.
      kind = [Process.pid, kind]
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      last = @last[kind]
      return @left_out[kind] += 1 if last && now - last < @period

      @last[kind] = now
      left_out = @left_out.delete(kind)
      yield(left_out ? " (#{left_out} more like this were left out)" : "")
    end
  end
  private_constant :LineLimit
end
