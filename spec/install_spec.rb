# frozen_string_literal: true

require "spec_helper"
require "support/patient_http_sidekiq"
require "support/ruby_process"

RSpec.describe "putting the class into its place" do
  include RubyProcess

  around do |example|
    Dir.mktmpdir("patient_http_monitor") do |folder|
      @folder = File.realpath(folder)
      example.run
    end
  end

  let(:env) { {"REDIS_URL" => REDIS.url} }

  # What every order must come to: the native class, whole and with nothing of the other in it, that works.
  let(:check) do
    <<~RUBY
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      require "support/tasks"
      include Tasks
      native = PatientHttp::Sidekiq::TaskMonitor
      puts [native.name, native::INFLIGHT_INDEX_KEY, native.inflight_count, monitor.register(task("a")).inspect,
        native.inflight_count, native.instance_method(:unregister).source_location.inspect].join(" ")
    RUBY
  end
  let(:native) { "PatientHttp::Sidekiq::TaskMonitor sidekiq:patient_http:inflight_index 0 nil 1 nil" }

  def expect_native(outcome, warning: /\A\z/)
    expect(outcome.output).to eq(native), outcome.to_s
    expect(outcome.errors).to match(warning)
    expect(outcome.errors).not_to match(/already initialized|redefin|previous definition/)
    expect(outcome.status).to be_success
  end

  it "works without patient_http-sidekiq, and twice changes nothing" do
    expect_native(ruby(<<~RUBY + check, env: env))
      require "patient_http_monitor"
      first = PatientHttp::Sidekiq::TaskMonitor
      raise "required twice" if require "patient_http_monitor"
      raise "required by path" if require #{File.join(RubyProcess::ROOT, "lib/patient_http_monitor.rb").inspect}
      raise "another class" unless first.equal?(PatientHttp::Sidekiq::TaskMonitor)
      raise "not its business" if defined?(PatientHttp::Sidekiq::VERSION) || PatientHttp.respond_to?(:testing?)
    RUBY
  end

  PatientHttpSidekiq::WAYS.each_key do |way|
    describe "with a patient_http-sidekiq that brings its class by #{way}" do
      let(:other) { PatientHttpSidekiq.new(@folder, way: way) }
      let(:eager) { way == :require_relative }

      it "works when required before it" do
        expect_native(ruby(<<~RUBY + check, env: env, load_path: [other.lib]))
          require "patient_http_monitor"
          require "patient_http/sidekiq"
        RUBY
      end

      it "works when required after it" do
        warning = eager ? /\Apatient_http_monitor: .*replaced.*\z/ : /\A\z/
        expect_native(ruby(<<~RUBY + check, env: env, load_path: [other.lib]), warning: warning)
          require "patient_http/sidekiq"
          require "patient_http_monitor"
        RUBY
      end

      it "is not undone when the Ruby file is required by its name, its path, or from beside it" do
        file = File.join(other.lib, "patient_http/sidekiq/task_monitor")
        expect_native(ruby(<<~RUBY + check, env: env, load_path: [other.lib]))
          require "patient_http_monitor"
          require "patient_http/sidekiq"
          require "patient_http/sidekiq/task_monitor"
          require #{file.inspect}
          require #{"#{file}.rb".inspect}
          eval('require_relative "task_monitor"', binding, #{File.join(File.dirname(file), "elsewhere.rb").inspect})
        RUBY
      end
    end
  end

  it "replaces the Ruby class when that was loaded already, says so, and leaves its objects as they are" do
    other = PatientHttpSidekiq.new(@folder)
    outcome = ruby(<<~RUBY + check, env: env, load_path: [other.lib])
      require "patient_http/sidekiq"
      old = PatientHttp::Sidekiq::TaskMonitor.new(nil)
      require "patient_http_monitor"
      raise "changed" unless old.register(nil) == "in plain Ruby"
      raise "not replaced" if old.is_a?(PatientHttp::Sidekiq::TaskMonitor)
    RUBY
    expect_native(outcome, warning: /\Apatient_http_monitor: .*TaskMonitor was in use already and is replaced.*\z/)
  end

  it "is not undone by a folder that is a symbolic link" do
    other = PatientHttpSidekiq.new(@folder)
    link = File.join(@folder, "link")
    File.symlink(other.lib, link)
    expect_native(ruby(<<~RUBY + check, env: env, load_path: [link]))
      require "patient_http_monitor"
      require "patient_http/sidekiq"
      require "patient_http/sidekiq/task_monitor"
      require #{File.join(other.lib, "patient_http/sidekiq/task_monitor.rb").inspect}
    RUBY
  end

  it "tells whether it took effect, without loading anything" do
    other = PatientHttpSidekiq.new(@folder)
    outcome = ruby(<<~RUBY, env: env, load_path: [other.lib])
      require "patient_http_monitor"
      require "patient_http/sidekiq"
      puts PatientHttpMonitor.installed?
      PatientHttp::Sidekiq.send(:remove_const, :TaskMonitor)
      puts PatientHttpMonitor.installed?
      PatientHttp::Sidekiq.autoload(:TaskMonitor, "patient_http/sidekiq/not_there")
      puts PatientHttpMonitor.installed?
    RUBY
    expect([outcome.output, outcome.errors]).to eq(["true\nfalse\nfalse", ""]), outcome.to_s
  end

  describe "where the environment says PATIENT_HTTP_MONITOR=off" do
    let(:env) { {"REDIS_URL" => REDIS.url, "PATIENT_HTTP_MONITOR" => "off"} }

    PatientHttpSidekiq::WAYS.each_key do |way|
      [%w[patient_http_monitor patient_http/sidekiq], %w[patient_http/sidekiq patient_http_monitor]].each do |order|
        it "leaves the Ruby class alone: by #{way}, #{order.join(" first, then ")}" do
          other = PatientHttpSidekiq.new(@folder, way: way)
          outcome = ruby(<<~RUBY, env: env, load_path: [other.lib])
            #{order.map { |name| "require #{name.inspect}" }.join("\n")}
            puts PatientHttp::Sidekiq::TaskMonitor.inflight_count, PatientHttp::Sidekiq::TaskMonitor.new(nil).register(nil),
              PatientHttp::Sidekiq::TaskMonitor.instance_methods(false).sort.inspect, PatientHttpMonitor.installed?
          RUBY
          expect([outcome.output, outcome.errors]).to eq(["in plain Ruby\nin plain Ruby\n[:register]\nfalse", ""]), outcome.to_s
        end
      end
    end

    it "leaves the name free where there is no Ruby class" do
      outcome = ruby(<<~RUBY, env: env)
        require "patient_http_monitor"
        puts defined?(PatientHttp::Sidekiq::TaskMonitor).inspect, PatientHttpMonitor.installed?, PatientHttpMonitor.testing?
      RUBY
      expect([outcome.output, outcome.errors]).to eq(["nil\nfalse\ntrue", ""]), outcome.to_s
    end
  end

  describe "in an application that loads everything" do
    it "works with eager loading of the constants of the Ruby gem" do
      other = PatientHttpSidekiq.new(@folder)
      [%w[patient_http_monitor patient_http/sidekiq], %w[patient_http/sidekiq patient_http_monitor]].each do |order|
        REDIS.call("FLUSHALL")
        expect_native(ruby(<<~RUBY + check, env: env, load_path: [other.lib]))
          #{order.map { |name| "require #{name.inspect}" }.join("\n")}
          PatientHttp::Sidekiq.constants.each { |name| PatientHttp::Sidekiq.const_get(name) }
          Dir[File.join(#{other.lib.inspect}, "**/*.rb")].sort.each { |file| require file }
        RUBY
      end
    end

    # Bundler.require requires the gems in the order of the Gemfile, each by its name.
    %w[patient_http_monitor patient_http-sidekiq].permutation.each do |order|
      it "works with Bundler.require, #{order.join(" before ")}" do
        PatientHttpSidekiq.new(@folder).as_path_gem
        gemfile = File.join(@folder, "Gemfile")
        paths = {"patient_http_monitor" => RubyProcess::ROOT, "patient_http-sidekiq" => File.join(@folder, "gems/patient_http-sidekiq-1.0.3")}
        File.write(gemfile, order.map { |name| "gem #{name.inspect}, path: #{paths.fetch(name).inspect}\n" }.join)
        expect_native(ruby(<<~RUBY + check, env: env.merge("BUNDLE_GEMFILE" => gemfile, "BUNDLE_FROZEN" => "false", "BUNDLE_APP_CONFIG" => @folder), warnings: false))
          require "bundler"
          Bundler.ui = Bundler::UI::Silent.new
          Bundler.require
        RUBY
      end
    end
  end

  describe "with patient_http-sidekiq installed as a gem, and no Bundler" do
    # So that the process finds the gems by itself.
    def without_bundler(code, gem_path)
      names = ENV.keys.grep(/\A(BUNDLE|BUNDLER|RUBYOPT|RUBYLIB|GEM_)/)
      ruby(code, env: env.merge(names.to_h { |name| [name, nil] }, "GEM_PATH" => gem_path), warnings: false)
    end

    it "works when required before the gem is activated" do
      expect_native(without_bundler(<<~RUBY + check, PatientHttpSidekiq.new(@folder).install))
        require "patient_http_monitor"
        require "patient_http/sidekiq"
        require "patient_http/sidekiq/task_monitor"
        raise "not activated" unless Gem.loaded_specs["patient_http-sidekiq"]
      RUBY
    end

    it "works when required after it" do
      expect_native(without_bundler(<<~RUBY + check, PatientHttpSidekiq.new(@folder).install))
        require "patient_http/sidekiq"
        require "patient_http_monitor"
        require "patient_http/sidekiq/task_monitor"
      RUBY
    end

    it "warns of a version whose monitor thread dies at the first Redis error" do
      outcome = without_bundler(<<~RUBY + check, PatientHttpSidekiq.new(@folder, version: "1.0.1").install)
        require "patient_http/sidekiq"
        require "patient_http_monitor"
      RUBY
      expect_native(outcome, warning: /\Apatient_http_monitor: patient_http-sidekiq 1\.0\.1 .*1\.0\.2 or later/)
    end

    it "does not warn of the first version that is reliable" do
      expect_native(without_bundler(<<~RUBY + check, PatientHttpSidekiq.new(@folder, version: "1.0.2").install))
        require "patient_http/sidekiq"
        require "patient_http_monitor"
      RUBY
    end
  end
end
