# frozen_string_literal: true

require "fileutils"
require "rubygems/package"
require "tmpdir"

# A precompiled gem: the gem's Ruby code and, for each minor version of Ruby, the library that lib/patient_http_monitor/native.rb
# loads there. Nothing is compiled where it is installed.
class NativeGem
  # The minor versions that the gem accepts, in order. RubyGems installs by a range, so a gem holds neighbours only.
  MINORS = %w[3.2 3.3 3.4 4.0].freeze
  SOURCES = %r{\A(ext/|Cargo\.)}
  BUILD_ONLY = %w[rb_sys].freeze

  # @param source [Gem::Specification] the source gem's
  # @param libraries [Hash{String => String}] the built library by the minor version of its Ruby
  def initialize(source, libraries)
    @source = source
    @libraries = libraries.transform_values { |path| File.expand_path(path) }
    unless libraries.any? && MINORS.each_cons(libraries.size).include?(minors)
      raise ArgumentError, "a precompiled gem is for neighbours among Ruby #{MINORS.join(", ")}, not for #{minors.join(", ")}"
    end
  end

  # @param folder [String] where the gem is written
  # @return [String] its path
  def build(folder)
    path = File.expand_path(File.join(folder, specification.file_name))
    FileUtils.mkdir_p(folder)
    Dir.mktmpdir do |stage|
      files.each do |target, file|
        FileUtils.mkdir_p(File.dirname(File.join(stage, target)))
        FileUtils.install(file, File.join(stage, target), mode: @libraries.value?(file) ? 0o755 : 0o644)
      end
      Dir.chdir(stage) { Gem::Package.build(specification, false, false, path) }
    end
    path
  end

  # @return [Gem::Specification]
  def specification
    @specification ||= @source.dup.tap do |spec|
      spec.platform = platform
      spec.files = files.keys
      spec.extensions = []
      spec.dependencies.reject! { |dependency| BUILD_ONLY.include?(dependency.name) }
      spec.required_ruby_version = [">= #{minors.first}", "< #{Gem::Version.new("#{minors.last}.0").bump}.dev"]
    end
  end

  # @return [String, nil] the oldest C library that has all that the libraries ask for; nil where that is not glibc
  def glibc
    symbols = @libraries.values.flat_map { |path| File.binread(path).scan(/GLIBC_(\d+(?:\.\d+)+)/) }.flatten
    symbols.max_by { |version| Gem::Version.new(version) }
  end

  def minors
    MINORS & @libraries.keys | @libraries.keys
  end

  private

  # What is in the gem, and which file of this machine that is.
  def files
    @files ||= @source.files.grep_v(SOURCES).to_h { |path| [path, File.expand_path(path)] }.merge(
      minors.to_h { |minor| ["lib/patient_http_monitor/#{minor}/#{File.basename(@libraries[minor])}", @libraries[minor]] }
    )
  end

  # Without the release of the system it is built on; with the C library's name, since neither runs with the other's libraries.
  def platform
    local = Gem::Platform.local
    version = local.os == "linux" ? local.version || "gnu" : nil
    Gem::Platform.new([local.cpu, local.os, version])
  end
end
