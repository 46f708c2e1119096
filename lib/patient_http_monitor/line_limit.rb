# frozen_string_literal: true

module PatientHttpMonitor
  # Keeps a line that repeats, as it does in each sweep while Redis is away, from filling a log.
  #
  # @api private
  class LineLimit
    # @param period [Numeric] how long after a line another one of its kind is left out, in s
    def initialize(period)
      @period = period
      @mutex = Mutex.new
      @last = {}
      @left_out = Hash.new(0)
    end

    # @param kind [Object] what lines of one kind have in common
    # @yield when the line should be written
    # @yieldparam note [String] what to append to it: how many were left out since the last one
    # @return [void]
    def line(kind)
      # A forked child has said nothing yet.
      kind = [Process.pid, kind]
      left_out = @mutex.synchronize do
        now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
        if @last[kind] && now - @last[kind] < @period
          @left_out[kind] += 1
          next
        end
        @last[kind] = now
        @left_out.delete(kind) || 0
      end
      yield(left_out.zero? ? "" : " (#{left_out} more like this were left out)") if left_out
    end
  end
  private_constant :LineLimit
end
