# frozen_string_literal: true

# Collectors in processes of their own, which can be killed.
module DyingCollectors
  # How long a child may take, in s.
  PATIENCE = 20

  # Runs the block in a forked child, which ends without a trace of this process's own exit handlers.
  #
  # @yieldparam report [IO] what the child writes here, the parent reads
  # @return [Array(Integer, IO)] pid, and what the child reports
  def fork_collector
    reader, writer = IO.pipe
    pid = fork do
      reader.close
      writer.sync = true
      yield writer
      exit!(0)
    rescue Exception => error # rubocop:disable Lint/RescueException -- nobody else would see it
      warn error.full_message
      exit!(1)
    end
    writer.close
    [pid, reader]
  end

  # @return [String] what the child reports until it has ended
  def report_of(collector)
    pid, reader = collector
    report = reader.read if reader.wait_readable(PATIENCE)
    Process.kill(:KILL, pid) unless report
    Process.wait(pid)
    report || raise("the collector was silent for #{PATIENCE} s")
  ensure
    reader.close
  end

  # Waits until the child has reported this many lines, and kills it with a signal that it cannot catch.
  def kill_after(lines, collector)
    pid, reader = collector
    lines.times { raise "the collector was silent for #{PATIENCE} s" unless reader.wait_readable(PATIENCE) && reader.gets }
  ensure
    Process.kill(:KILL, pid)
    Process.wait(pid)
    reader.close
  end
end

RSpec.configure { |config| config.include DyingCollectors }
