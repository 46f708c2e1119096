# frozen_string_literal: true

require "support/own_server"
require "timeout"

# Calls that cannot go on, and what ends them. How long that takes is told by the reporter; what is asserted is far more.
module Interrupting
  # How long an interrupt may take to act, in s. It takes about a millisecond and has to take less than 0.1 s, but on a machine
  # that has more to do than cores a thread waits that long for its turn alone.
  PROMPT = 1.0
  # By how much a timer may be early, in s.
  EARLY = 0.02

  # @param title [String]
  # @param times [Array<Float>] in s
  def tell(title, times)
    sorted = times.sort
    RSpec.configuration.reporter.message(
      format("      %<title>s: acts after %<median>.1f ms (median), %<worst>.1f ms (worst of %<count>d)",
        title: title, median: sorted[sorted.size / 2] * 1_000, worst: sorted.last * 1_000, count: times.size)
    )
  end

  # How many calls are interrupted in each place by each kind.
  def calls
    5
  end

  # Threads whose calls all wait.
  #
  # @return [Array<Thread>]
  def waiting_threads(count = calls, &call)
    threads(count, &call).tap { |waiting| eventually { waiting.all?(&:stop?) } }
  end
end

# Wants `in_place`, which yields a call, to be made in any number of threads, that waits there for longer than an example takes.
RSpec.shared_examples "a place where interrupts act at once" do |place|
  it "by Thread#kill, #{place}" do
    times = in_place { |call| waiting_threads(&call).map { |thread| seconds { thread.kill.join } } }
    tell("Thread#kill, #{place}", times)
    expect(times).to all(be < Interrupting::PROMPT)
  end

  it "by Thread#raise, #{place}" do
    times = in_place do |call|
      waiting_threads(&call).map do |thread|
        seconds do
          thread.raise(KeyError, "enough")
          expect { thread.value }.to raise_error(KeyError, "enough")
        end
      end
    end
    tell("Thread#raise, #{place}", times)
    expect(times).to all(be < Interrupting::PROMPT)
  end

  # Also of a class that the connecting itself may raise, and translates then.
  it "by Timeout.timeout(0.5), #{place}" do
    times = in_place do |call|
      classes = [nil, IOError] * calls
      timed = threads(classes.size) do |number|
        expected = classes[number] || Timeout::Error
        seconds { expect { Timeout.timeout(0.5, classes[number], &call) }.to raise_error(expected, "execution expired") }
      end
      timed.map { |thread| thread.value - 0.5 }
    end
    tell("Timeout.timeout(0.5), #{place}", times)
    expect(times).to all(be_between(-Interrupting::EARLY, Interrupting::PROMPT))
  end

  it "by a signal whose handler raises, #{place}" do
    before = trap("USR2") { raise KeyError, "by a signal" }
    times = in_place do |call|
      Array.new(3) do
        sent = nil
        main = Thread.current
        kicker = Thread.new do
          eventually { main.stop? }
          # Until it waits in the call itself, and not for anything on the way there.
          sleep 0.05
          sent = monotonic
          Process.kill(:USR2, Process.pid)
        end
        expect(&call).to raise_error(KeyError, "by a signal")
        monotonic.tap { kicker.join } - sent
      end
    end
    tell("A signal whose handler raises, #{place}", times)
    expect(times).to all(be < Interrupting::PROMPT)
  ensure
    trap("USR2", before || "DEFAULT")
  end
end

RSpec.configure { |config| config.include Interrupting }
