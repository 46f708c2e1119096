# frozen_string_literal: true

require "fileutils"
require "open3"
require "rbconfig"
require "tmpdir"

# Runs spec/support/memcheck_run.rb under valgrind's memcheck, with the extension built so that its frames have names and
# lines, and tells which errors are ours.
#
# Ruby's garbage collector takes what lies on the stack for values, so values that nobody initialised wander through Ruby, and
# from there into the strings that the extension reads: such a value is ours only where the memory that it came from was the
# extension's. And its fibers change the stack, which valgrind does not know: of what concerns a stack nothing is ours, and what
# happens inside Ruby on our behalf is ours where it concerns a block of the heap.
class Memcheck
  ROOT = File.expand_path("../..", __dir__)
  LIBRARY = "patient_http_monitor.so"
  UNINITIALISED = /<kind>Uninit/
  # With a report as XML they cannot be switched off. What is still there at the end is no leak: Ruby leaves its objects to the
  # system. spec/memory_spec.rb looks for those.
  LEAK = /<kind>Leak_/
  STACK = / is on thread \d+'s stack/
  BUILD = {"CARGO_PROFILE_RELEASE_STRIP" => "false", "CARGO_PROFILE_RELEASE_DEBUG" => "1", "CARGO_PROFILE_RELEASE_LTO" => "off",
           "CARGO_PROFILE_RELEASE_CODEGEN_UNITS" => "16", "CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS" => "true",
           "CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS" => "true"}.freeze
  OPTIONS = ["--error-limit=no", "--track-origins=yes", "--num-callers=60", "--xml=yes",
    "--suppressions=#{File.join(__dir__, "memcheck.supp")}"].freeze

  class << self
    def missing
      "valgrind is missing: apt-get install valgrind (on Debian 12 with packages of trixie: -t trixie)" unless
        system("command -v valgrind >/dev/null")
    end
  end

  # @param dir [String] where the extension is built; kept for the next time
  def initialize(dir = File.join(ROOT, "tmp/memcheck"))
    @dir = dir
  end

  # @return [String] the load path of the gem with the library for valgrind
  def build
    FileUtils.mkdir_p(@dir)
    extconf = File.join(ROOT, "ext/patient_http_monitor/extconf.rb")
    output, status = Open3.capture2e(BUILD, RbConfig.ruby, extconf, chdir: @dir)
    output, status = Open3.capture2e(BUILD, "make", chdir: @dir) if status.success?
    raise "the extension could not be built:\n#{output}" unless status.success?

    lib = File.join(@dir, "lib")
    FileUtils.rm_rf(lib)
    FileUtils.cp_r(File.join(ROOT, "lib"), lib)
    FileUtils.cp(File.join(@dir, LIBRARY), File.join(lib, "patient_http_monitor", LIBRARY))
    lib
  end

  # @param lib [String] the load path of the gem
  # @param env [Hash{String => String}] for the run
  # @return [Array<String>] the errors of ours: what, and the frames of each stack
  # @raise [RuntimeError] when the run did not get to its end, which would have found nothing
  def errors(lib, env)
    Dir.mktmpdir("memcheck") do |reports|
      # Forked children write a report of their own.
      command = ["valgrind", *OPTIONS, "--xml-file=#{reports}/%p.xml", RbConfig.ruby, "-I", lib, "-I", File.join(ROOT, "spec"),
        File.join(__dir__, "memcheck_run.rb")]
      output, status = Open3.capture2e({"RACK_ENV" => "test", "REDIS_PROVIDER" => nil}.merge(env), *command)
      raise "the run ended with #{status}:\n#{output[-4_000..] || output}" unless status.success? && output.end_with?("complete\n")

      of_ours(reports)
    end
  end

  # @param reports [String] a folder of valgrind's reports
  # @return [Array<String>] the errors of ours: what, and the frames of each stack
  # @raise [RuntimeError] when there is no report: then there was no valgrind
  def of_ours(reports)
    files = Dir.glob("#{reports}/*.xml")
    raise "valgrind has left no report in #{reports}" if files.empty?

    all = files.flat_map { |file| File.binread(file).scan(%r{<error>.*?</error>}m) }
    all.select { |error| ours?(error) }.map { |error| readable(error) }
  end

  private

  def ours?(error)
    return false if LEAK.match?(error) || STACK.match?(error)

    stacks = error.scan(%r{<stack>.*?</stack>}m)
    # The first is where it happened, the last where the memory came from.
    return stacks.size > 1 && library_first?(stacks.last) if UNINITIALISED.match?(error)

    library_first?(stacks.first) || (error.include?(LIBRARY) && error.include?(" a block of size "))
  end

  # Whether the extension is the innermost one in a stack, but for malloc, memcpy and their kind.
  def library_first?(stack)
    objects = stack.scan(%r{<obj>(.*?)</obj>}).flatten
    objects.find { |object| !object.match?(%r{/valgrind/|/libc\.so}) }.to_s.end_with?(LIBRARY)
  end

  def readable(error)
    error.scan(%r{<what>(.*?)</what>|<text>(.*?)</text>|<auxwhat>(.*?)</auxwhat>|<frame>(.*?)</frame>}m).map { |*said, frame|
      next said.compact.first unless frame

      object, function, file, line = %w[obj fn file line].map { |name| frame[%r{<#{name}>(.*?)</#{name}>}, 1] }
      "    #{function || "?"} (#{file ? "#{file}:#{line}" : File.basename(object.to_s)})"
    }.join("\n")
  end
end
