# frozen_string_literal: true

require "spec_helper"
require "support/patient_http_sidekiq"
require "support/ruby_process"

# A folder that is known from the start is in spec/install_spec.rb.
RSpec.describe "putting the class into its place before the folder of patient_http-sidekiq is on the load path" do
  include RubyProcess

  around do |example|
    Dir.mktmpdir("patient_http_monitor") do |folder|
      @folder = File.realpath(folder)
      example.run
    end
  end

  let(:env) { {"REDIS_URL" => REDIS.url} }
  let(:report) { <<~RUBY }
    Sidekiq.default_configuration.logger.level = Logger::ERROR
    native = PatientHttp::Sidekiq::TaskMonitor
    puts native::INFLIGHT_INDEX_KEY, native.inflight_count,
      native.instance_method(:register).source_location.first.include?("monitor/task_monitor"), PatientHttpMonitor.installed?
  RUBY
  let(:native) { "sidekiq:patient_http:inflight_index\n0\ntrue\ntrue" }

  def grown(other, *requires)
    "require \"patient_http_monitor\"\n$LOAD_PATH.unshift(#{other.lib.inspect})\n" +
      requires.map { |name| "require #{name.inspect}\n" }.join
  end

  %i[autoload autoload_by_path autoload_by_file].each do |way|
    it "is not undone by a gem that brings its class by #{way}, nor when its file is required by its name" do
      other = PatientHttpSidekiq.new(@folder, way: way)
      files = %w[patient_http/sidekiq patient_http/sidekiq/task_monitor patient_http/sidekiq/task_monitor.rb]
      outcome = ruby(grown(other, *files) + report, env: env)
      expect([outcome.output, outcome.errors]).to eq([native, ""]), outcome.to_s
    end
  end

  it "leaves other files of that name to be required by their path" do
    other = PatientHttpSidekiq.new(@folder)
    File.write(File.join(@folder, "task_monitor.rb"), "puts 'another file'")
    outcome = ruby(grown(other) + "require #{File.join(@folder, "task_monitor").inspect}\n" + report, env: env)
    expect(outcome.output).to eq("another file\n#{native}"), outcome.to_s
  end

  it "says that it did not take effect where the Ruby file was loaded by its path all the same" do
    file = File.join(@folder, "reopening.rb")
    File.write(file, PatientHttpSidekiq::CLASS.sub("def register", "def unregister(task) = nil\n\ndef register"))
    outcome = ruby("require \"patient_http_monitor\"\nload #{file.inspect}\nputs PatientHttpMonitor.installed?", env: env, warnings: false)
    expect(outcome.output).to eq("false"), outcome.to_s
  end

  it "says that it took effect where the application prepends a module of its own" do
    outcome = ruby(<<~RUBY, env: env)
      require "patient_http_monitor"
      2.times { PatientHttp::Sidekiq::TaskMonitor.prepend(Module.new { def unregister(task) = super }) }
      puts PatientHttpMonitor.installed?
    RUBY
    expect([outcome.output, outcome.errors]).to eq(["true", ""])
  end
end
