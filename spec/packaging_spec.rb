# frozen_string_literal: true

require "spec_helper"
require "support/packed_gem"
require "tmpdir"

RSpec.describe "the packed gem" do
  include PackedGem

  around do |example|
    Dir.mktmpdir { |dir| @dir = File.realpath(dir) and example.run }
  end

  runtime = %w[lib/**/*.rb sig/**/*.rbs README.md CHANGELOG.md LICENSE]
  # A build needs the workspace whole; it needs no tests.
  build = %w[Cargo.toml Cargo.lock ext/*/Cargo.toml ext/*/extconf.rb ext/*/src/**/* ext/*/scripts/**/*]
  minor = RUBY_VERSION[/\A\d+\.\d+/]
  library = "lib/patient_http_monitor/#{minor}/patient_http_monitor.#{RbConfig::CONFIG["DLEXT"]}"

  # A Redis, the class and a request, from beginning to end; then where the library came from.
  smoke = <<~RUBY
    require "patient_http_monitor"
    Sidekiq.default_configuration.logger.level = Logger::WARN
    Task = Struct.new(:id, :task_handler)
    Handler = Struct.new(:sidekiq_job)
    Config = Struct.new(:max_connections, :heartbeat_interval, :orphan_threshold)
    monitor = PatientHttp::Sidekiq::TaskMonitor.new(Config.new(10, 60, 300))
    task = Task.new("a", Handler.new({"class" => "ReportJob", "args" => []}))
    counts = %i[register unregister].map { |call| monitor.public_send(call, task) || monitor.class.inflight_count }
    puts monitor.class, counts.inspect, $LOADED_FEATURES.grep(/patient_http_monitor\\.(so|bundle)\\z/)
  RUBY

  def expect_to_work(smoke, env)
    printed = run(*ruby, "-w", "-e", smoke, env: env.merge("REDIS_URL" => REDIS.url)).lines(chomp: true)
    expect(printed.first(2)).to eq(["PatientHttp::Sidekiq::TaskMonitor", "[1, 0]"])
    expect(printed.last).to start_with("#{home}/")
    expect(printed.size).to eq(3)
  end

  describe "as source" do
    it "holds everything that a build needs, and neither tests nor anything built" do
      package = Gem::Package.new(source_gem)

      expect(package.contents).to match_array(tracked(*runtime, *build))
      expect(package.contents).to include("ext/patient_http_monitor/extconf.rb", "ext/inflight_registry/scripts/claim.lua", "Cargo.lock")
      expect(package.contents.grep(/\.(so|bundle|gem)\z|\A(spec|bin|bench|target|tmp|examples|rakelib)\/|\/tests\//)).to be_empty
    end

    it "says for whom it is, and that its releases take a second factor" do
      spec = Gem::Package.new(source_gem).spec

      expect(spec.required_ruby_version.to_s).to eq(">= 3.2")
      expect(spec.metadata).to include("rubygems_mfa_required" => "true")
      expect(spec.dependencies.map { |dependency| "#{dependency.name} #{dependency.requirement}" })
        .to contain_exactly("rb_sys ~> 0.9.87", "sidekiq >= 7.0, < 9")
      # As soon as it has a home on the web, its source and its changelog have one too.
      links = spec.metadata.values_at("source_code_uri", "changelog_uri").compact
      expect(links.size).to eq(spec.homepage ? 2 : 0)
      expect(links).to all(start_with("https://"))
    end

    it "installs into an empty GEM_HOME without any network once the crates are there, and works" do
      # Cargo has them already, or brings them now.
      host = run("rustc", "-vV")[/^host: (.*)/, 1]
      run("cargo", "fetch", "--quiet", "--locked", "--target", host, chdir: PackedGem::ROOT)
      # What is proven is that it builds; how well it is optimized, which takes most of the time, is not.
      fast = {"CARGO_PROFILE_RELEASE_LTO" => "off", "CARGO_PROFILE_RELEASE_OPT_LEVEL" => "0", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS" => "16"}
      nobody = %w[http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY].to_h { |name| [name, "http://127.0.0.1:1"] }

      run(*install_command(source_gem), env: env.merge(fast, nobody, "CARGO_NET_OFFLINE" => "true"))
      expect_to_work(smoke, env)
    end

    it "says what is missing on a machine without Rust" do
      outcome = try(*install_command(source_gem), env: env.merge("PATH" => @dir))

      expect(outcome.success).to be(false)
      expect(outcome.output).to include("cargo is missing. The gem is built from Rust source and needs Rust >= 1.88")
    end
  end

  describe "precompiled" do
    it "holds the Ruby code and this Ruby's library, and nothing to build" do
      expect(Gem::Package.new(native_gem).contents).to match_array([*tracked(*runtime), library])
    end

    it "is for this platform and this version of Ruby, and depends on Sidekiq alone" do
      path = native_gem
      spec = Gem::Package.new(path).spec

      expect(File.basename(path)).to eq("#{spec.name}-#{spec.version}-#{spec.platform}.gem")
      expect(Gem::Platform.match_spec?(spec)).to be(true)
      expect(spec.platform).not_to eq("ruby")
      expect(spec.required_ruby_version).to be_satisfied_by(Gem::Version.new(RUBY_VERSION))
      expect(%W[#{minor}.0 #{minor}.99 #{minor}.0.rc1 3.1.9 #{minor.next}.0 #{minor.next}.0.preview1]
        .select { |version| spec.required_ruby_version.satisfied_by?(Gem::Version.new(version)) }).to eq(%W[#{minor}.0 #{minor}.99])
      expect(spec.extensions).to be_empty
      expect(spec.dependencies.map(&:name)).to eq(["sidekiq"])
      expect(spec.metadata).to include("rubygems_mfa_required" => "true")
    end

    it "installs and works on a machine without Rust or any other tool" do
      # Nothing at all is on PATH.
      bare = env.merge("PATH" => File.join(@dir, "empty"))

      run(*install_command(native_gem), env: bare)
      expect_to_work(smoke, bare)
    end

    it "needs no newer C library than the README says" do
      floor = File.read(File.join(PackedGem::ROOT, "README.md"))[/glibc >= (\d+\.\d+)/, 1]
      asked = File.binread(Dir[File.join(PackedGem::ROOT, "lib/patient_http_monitor/*.{so,bundle}")].first)
        .scan(/GLIBC_(\d+(?:\.\d+)+)/).flatten

      expect(asked.reject { |version| Gem::Version.new(version) <= Gem::Version.new(floor) }).to be_empty
    end
  end
end
