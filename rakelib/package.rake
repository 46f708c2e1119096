# frozen_string_literal: true

require_relative "native_gem"

desc "Both gems into pkg: the source gem, and the precompiled one of this platform"
task package: %w[build package:native]

namespace :package do
  library = lambda do |version, arch, extension|
    "tmp/#{arch}/patient_http_monitor/#{version}/patient_http_monitor.#{extension}"
  end
  own = [RUBY_VERSION, *RbConfig::CONFIG.values_at("arch", "DLEXT")]

  desc "The precompiled gem of this platform: for this Ruby, and for those that RUBIES names (RUBIES=\"ruby3.4 /opt/ruby-3.2/bin/ruby\")"
  task :native, [:folder] => library.call(*own) do |_, arguments|
    # Each has rake, rake-compiler, rb_sys and RSpec, and builds beside this one's build: nothing of it gets into lib.
    further = ENV.fetch("RUBIES", "").split.map do |ruby|
      Bundler.with_unbundled_env do
        about = IO.popen([ruby, "-e", "puts RUBY_VERSION, RbConfig::CONFIG.values_at('arch', 'DLEXT')"], &:read).split
        sh ruby, "-e", "load Gem.bin_path('rake', 'rake')", library.call(*about)
        about
      end
    end
    libraries = [own, *further].to_h { |about| [about.first[/\A\d+\.\d+/], library.call(*about)] }
    native = NativeGem.new(GEMSPEC, libraries)
    path = native.build(arguments.fetch(:folder, "pkg"))
    puts "#{path}: #{File.size(path) / 1000} kB; for Ruby #{native.minors.join(", ")}#{native.glibc && "; glibc >= #{native.glibc}"}"
  end
end
