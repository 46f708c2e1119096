# frozen_string_literal: true

module Demo
  # Ctrl-C and its kind. A signal is noticed where the runner pauses, never in the middle of a step: so what was started is always
  # known, and a second Ctrl-C does not interrupt the cleaning up after the first.
  class Signals
    # Raised by {#pause}.
    class Stop < StandardError
      # @return [Integer] of the signal
      attr_reader :number

      def initialize(name)
        @number = Signal.list.fetch(name)
        super("stopped by SIG#{name}")
      end
    end

    def initialize
      @received = Queue.new
      %w[INT TERM HUP].each do |name|
        before = trap(name) { @received << name }
        # As nohup(1) wants it.
        trap(name, "IGNORE") if name == "HUP" && before == "IGNORE"
      end
    end

    # @param seconds [Float] how long, unless a signal comes
    # @raise [Stop] on a signal
    def pause(seconds)
      name = @received.pop(timeout: seconds)
      raise Stop.new(name) if name
    end
  end
end
