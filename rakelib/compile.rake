# frozen_string_literal: true

require "rake/extensiontask"

GEMSPEC = Gem::Specification.load("patient_http_monitor.gemspec")

Rake::ExtensionTask.new("patient_http_monitor", GEMSPEC) do |extension|
  extension.lib_dir = "lib/patient_http_monitor"
  extension.source_pattern = "*.{rs,toml}"
  # Its own precompiled gem would depend on rb_sys and hold one library without its Ruby's version: see package.rake.
  extension.no_native = true
end

# The task watches the binding crate only; the library is made of these as well.
library = "tmp/#{RbConfig::CONFIG["arch"]}/patient_http_monitor/#{RUBY_VERSION}/patient_http_monitor.#{RbConfig::CONFIG["DLEXT"]}"
sources = FileList["Cargo.{toml,lock}", "ext/*/Cargo.toml", "ext/*/src/**/*.rs", "ext/inflight_registry/scripts/*.lua"]
file library => sources
