# frozen_string_literal: true

require "open3"
require "rbconfig"

# Ruby code in a process of its own: for what is decided once in a process's life, and for what may crash it.
module RubyProcess
  ROOT = File.expand_path("../..", __dir__)
  Outcome = Struct.new(:output, :errors, :status) do
    def to_s
      "status #{status.inspect}\n#{output}\n#{errors}"
    end
  end

  # In s; what hangs is killed then, and its status is that of a killed process.
  LIMIT = 30

  # @param code [String]
  # @param env [Hash{String => String, nil}] in addition to this process's own
  # @param load_path [Array<String>] folders that come before the gem's own
  # @param warnings [Boolean] whether Ruby tells all its warnings
  # @param limit [Numeric] how long it may take, in s
  # @return [Outcome]
  def ruby(code, env: {}, load_path: [], warnings: true, limit: LIMIT)
    includes = [*load_path, File.join(ROOT, "lib"), File.join(ROOT, "spec")].flat_map { |path| ["-I", path] }
    command = [RbConfig.ruby, *(warnings ? ["-w"] : []), *includes, "-e", code]
    # The locale decides how Ruby reads code of the command line.
    base = {"RACK_ENV" => "test", "REDIS_PROVIDER" => nil, "LC_ALL" => "C.UTF-8"}
    Open3.popen3(base.merge(env), *command) do |input, output, errors, process|
      input.close
      texts = [output, errors].map { |io| Thread.new { io.read } }
      # Ruby may be past answering any other signal.
      Process.kill(:KILL, process.pid) unless process.join(limit)
      output_text, error_text = texts.map { |text| text.value.strip }
      Outcome.new(output_text, error_text, process.value).tap do |outcome|
        # Each password of the specs has this in it; bin/test searches what they print themselves.
        raise "a password was shown:\n#{outcome}" if outcome.to_s.include?("s3cret")
      end
    end
  end
end
