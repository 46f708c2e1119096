# frozen_string_literal: true

require "tmpdir"

module Demo
  # The processes that the demo starts, each a process group of its own, so that Ctrl-C on the terminal reaches the runner alone,
  # which ends them; and the temporary folder with their logs.
  class Children
    GUARD = File.expand_path("guard.sh", __dir__)
    private_constant :GUARD

    attr_reader :folder

    def initialize
      @folder = Dir.mktmpdir("patient_http_demo")
      reader, @guard_input = IO.pipe
      @guard_input.sync = true
      @guard = Process.spawn("sh", GUARD, folder, in: reader, pgroup: true)
      reader.close
    end

    # @return [Child]
    def start(name, *command, env: {})
      log = File.join(folder, "#{name.tr(" ", "-")}.log")
      pid = Process.spawn(env, *command, in: File::NULL, out: log, err: %i[child out], pgroup: true)
      @guard_input.puts(pid)
      Child.new(name, pid, log)
    end

    # The guard kills whatever still runs and removes the folder; returns when all are gone.
    def clean_up
      @guard_input.close
      Process.wait(@guard)
      Process.waitall
    end
  end

  # One of them.
  class Child
    attr_reader :name, :pid, :log

    def initialize(name, pid, log)
      @name = name
      @pid = pid
      @log = log
      @status = nil
    end

    def running?
      @status ||= Process.wait2(pid, Process::WNOHANG)&.last
      @status.nil?
    end

    # @return [String] how it ended
    def fate
      running? ? "still runs" : "ended (#{@status.to_s.sub(/\Apid \d+ /, "")})"
    end

    def kill
      Process.kill(:KILL, pid)
      @status = Process.wait2(pid).last
    end

    def terminate
      Process.kill(:TERM, pid)
    end

    # @return [String] the end of its log, to be shown when something went wrong
    def log_tail(lines = 15)
      File.readlines(log, encoding: "UTF-8").last(lines).map { |line| "  | #{line.scrub.chomp}\n" }.join
    end
  end
end
