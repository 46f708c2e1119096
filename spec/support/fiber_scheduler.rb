# frozen_string_literal: true

require "io/wait"

# The least that a Fiber scheduler must be: one thread's fibers wait in one IO.select. Gems like async bring a better one; what
# is asked of the class under test is the same.
class FiberScheduler
  class << self
    # Runs the block in a fiber of a thread of its own, and every fiber that it schedules, until all have ended.
    #
    # @return [Object] what the block returned
    def run
      Thread.new do
        Fiber.set_scheduler(new)
        result = nil
        Fiber.schedule { result = yield }
        Fiber.scheduler.run
        result
      end.tap { |thread| thread.report_on_exception = false }.value
    end
  end

  def initialize
    @readable = {}
    @writable = {}
    # Fiber to the moment at which it wakes by itself.
    @deadlines = {}
    # The fibers that wait to be unblocked.
    @blocked = {}
    @ready = []
    @mutex = Thread::Mutex.new
    @wakeup, @signal = IO.pipe
  end

  def run
    step until idle?
  end

  # Ruby calls this when the thread ends.
  def close
    run
  ensure
    [@wakeup, @signal].each { |io| io.close unless io.closed? }
  end

  def fiber(&block)
    Fiber.new(blocking: false, &block).tap(&:resume)
  end

  def io_wait(io, events, timeout)
    fiber = Fiber.current
    @readable[fiber] = io if events.anybits?(IO::READABLE)
    @writable[fiber] = io if events.anybits?(IO::WRITABLE)
    @deadlines[fiber] = now + timeout if timeout
    Fiber.yield || false
  ensure
    [@readable, @writable, @deadlines].each { |waiting| waiting.delete(fiber) }
  end

  def kernel_sleep(duration = nil)
    block(:sleep, duration)
  end

  def block(_blocker, timeout = nil)
    fiber = Fiber.current
    @deadlines[fiber] = now + timeout if timeout
    @blocked[fiber] = true
    Fiber.yield ? true : false
  ensure
    [@blocked, @deadlines].each { |waiting| waiting.delete(fiber) }
  end

  # Called from any thread.
  def unblock(_blocker, fiber)
    @mutex.synchronize { @ready << fiber }
    @signal.write_nonblock(".", exception: false)
  end

  private

  def idle?
    @readable.empty? && @writable.empty? && @blocked.empty? && @mutex.synchronize { @ready.empty? }
  end

  def step
    readable, writable = IO.select([@wakeup, *@readable.values.uniq], @writable.values.uniq, nil, time_left)
    @wakeup.read_nonblock(4_096, exception: false) if readable&.include?(@wakeup)
    events = events_of(readable, writable)
    woken = @mutex.synchronize { @ready.slice!(0..) }
    late = @deadlines.select { |_, deadline| deadline <= now }.keys
    woken.each { |fiber| fiber.resume(true) if @blocked.key?(fiber) }
    events.each { |fiber, event| fiber.resume(event) if waits_for_io?(fiber) }
    late.each { |fiber| fiber.resume(nil) if @deadlines.fetch(fiber, Float::INFINITY) <= now }
  end

  def events_of(readable, writable)
    events = Hash.new(0)
    @readable.each { |fiber, io| events[fiber] |= IO::READABLE if readable&.include?(io) }
    @writable.each { |fiber, io| events[fiber] |= IO::WRITABLE if writable&.include?(io) }
    events
  end

  def waits_for_io?(fiber)
    @readable.key?(fiber) || @writable.key?(fiber)
  end

  def time_left
    first = @deadlines.values.min
    first && [first - now, 0].max
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
