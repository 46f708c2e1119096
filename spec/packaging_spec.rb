# frozen_string_literal: true

require "bundler"
require "open3"
require "rubygems/package"
require "tmpdir"

RSpec.describe "the packed gem" do
  root = File.expand_path("..", __dir__)

  around do |example|
    Dir.mktmpdir { |dir| @dir = dir and example.run }
  end

  # @return [String] what the command printed
  def run(*command, env: {}, chdir: @dir)
    output, status = Bundler.with_unbundled_env { Open3.capture2e(env, *command, chdir: chdir) }
    raise "#{command.join(" ")} failed:\n#{output}" unless status.success?

    output
  end

  def build_gem(root)
    path = File.join(@dir, "patient_http_monitor.gem")
    output = run("gem", "build", "patient_http_monitor.gemspec", "--output", path, chdir: root)
    # The gem has no home on the web yet; every other warning is a mistake.
    expect(output.scan(/WARNING:.*/).grep_v(/no homepage specified|guides.rubygems.org/)).to be_empty
    path
  end

  it "holds everything that a build needs, and neither tests nor anything built" do
    files = Gem::Package.new(build_gem(root)).contents

    expect(files).to include(
      "Cargo.toml", "Cargo.lock", "ext/patient_http_monitor/extconf.rb", "ext/patient_http_monitor/Cargo.toml",
      "ext/patient_http_monitor/src/lib.rs", "ext/inflight_registry/Cargo.toml", "ext/inflight_registry/src/lib.rs",
      "ext/inflight_registry/scripts/claim.lua", "lib/patient_http_monitor.rb", "sig/patient_http_monitor.rbs", "README.md",
      "CHANGELOG.md", "LICENSE"
    )
    expect(files.grep(/\.(so|bundle|gem)\z|\A(spec|bin|bench|target|tmp|examples)\/|\/tests\//)).to be_empty
    tracked = run("git", "ls-files", chdir: root).split("\n")
    expect(files - tracked).to be_empty
  end

  it "installs into an empty GEM_HOME, builds there, and defines the class" do
    home = File.join(@dir, "home")
    env = {"GEM_HOME" => home, "RUBYOPT" => nil, "RUBYLIB" => nil}

    run("gem", "install", "--local", "--no-document", build_gem(root), env: env)
    script = "require 'patient_http_monitor'; p PatientHttp::Sidekiq::TaskMonitor; puts $LOADED_FEATURES.grep(/patient_http_monitor\\.so/)"
    output = run("ruby", "-w", "-e", script, env: env)

    expect(output).to start_with("PatientHttp::Sidekiq::TaskMonitor\n")
    expect(output).to include(home)
  end
end
