# frozen_string_literal: true

require_relative "lib/patient_http_monitor/version"

Gem::Specification.new do |spec|
  spec.name = "patient_http_monitor"
  spec.version = PatientHttpMonitor::VERSION
  spec.authors = ["The patient_http_monitor contributors"]
  spec.summary = "PatientHttp::Sidekiq::TaskMonitor as a native extension: a crash-safe Redis registry of in-flight HTTP requests"
  spec.description = "Remembers in Redis every long HTTP request that a Sidekiq process has in flight, finds those whose " \
    "process died, and hands their jobs back to Sidekiq without losing any. Written in Rust; a drop-in for the class in plain Ruby."
  spec.license = "MIT"
  spec.required_ruby_version = ">= 3.2"
  spec.require_paths = ["lib"]
  spec.extensions = ["ext/patient_http_monitor/extconf.rb"]
  spec.metadata = {"rubygems_mfa_required" => "true"}
  spec.files = Dir[
    "lib/**/*.rb", "sig/**/*.rbs", "ext/**/*.{rs,rb,toml,lua}", "Cargo.{toml,lock}", "README.md", "CHANGELOG.md", "LICENSE",
    base: __dir__
  ].reject { |path| path.include?("/tests/") }

  spec.add_dependency "rb_sys", "~> 0.9.87"
  spec.add_dependency "sidekiq", ">= 7.0", "< 9"
end
