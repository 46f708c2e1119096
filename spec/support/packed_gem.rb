# frozen_string_literal: true

require "bundler"
require "open3"
require "rbconfig"
require "rubygems/package"

# Packs the gem, installs it into an empty GEM_HOME, and runs Ruby with what is there. Includers set @dir, a folder of the example's
# own.
module PackedGem
  ROOT = File.expand_path("../..", __dir__)
  NAME = "patient_http_monitor"
  Outcome = Struct.new(:output, :success)
  # In place of the executable `gem`, which PATH may lack, or which may be a script of a version manager.
  GEM = ["-e", "require 'rubygems/gem_runner'; Gem::GemRunner.new.run(ARGV.dup)", "--"].freeze

  def source_gem
    path = File.join(@dir, "#{NAME}.gem")
    complaints = run(*ruby, *GEM, "build", "#{NAME}.gemspec", "--output", path, chdir: ROOT).scan(/WARNING:.*/)
    # The gem has no home on the web yet; every other warning is a mistake.
    expect(complaints.grep_v(/no homepage specified|guides.rubygems.org/)).to be_empty
    path
  end

  # By the task, with this process's own gems.
  def native_gem
    output, status = Open3.capture2e(*ruby, Gem.bin_path("rake", "rake"), "package:native[#{@dir}]", chdir: ROOT)
    expect(status.success?).to be(true), output
    expect(output.scan(/WARNING:.*/).grep_v(/no homepage specified|guides.rubygems.org/)).to be_empty
    Dir[File.join(@dir, "*.gem")].first
  end

  # @return [String] what was printed
  def run(...)
    outcome = try(...)
    raise outcome.output unless outcome.success

    outcome.output
  end

  def try(*command, env: {}, chdir: @dir)
    output, status = Bundler.with_unbundled_env { Open3.capture2e(env, *command, chdir: chdir) }
    Outcome.new(output, status.success?)
  end

  def install_command(path)
    [*ruby, *GEM, "install", "--local", "--no-document", path]
  end

  def ruby
    [RbConfig.ruby]
  end

  def home
    File.join(@dir, "home")
  end

  # The gems of this process serve as dependencies; its load path does not.
  def env
    {"GEM_HOME" => home, "GEM_PATH" => [home, *Gem.path].join(File::PATH_SEPARATOR), "RUBYOPT" => nil, "RUBYLIB" => nil}
  end

  # The files of the repository that a gem may be made of.
  def tracked(*patterns)
    files = run("git", "ls-files", chdir: ROOT).split("\n")
    files.select { |path| patterns.any? { |pattern| File.fnmatch(pattern, path, File::FNM_PATHNAME) } }
  end
end
