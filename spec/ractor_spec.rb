# frozen_string_literal: true

require "spec_helper"
require "support/ruby_process"

RSpec.describe "A monitor in a Ractor" do
  include RubyProcess

  # Each attempt in one process, which must survive them all: name to the class and message of what was raised, or its answer.
  let(:outcomes) do
    outcome = ruby(<<~RUBY, env: {"REDIS_URL" => REDIS.url}, warnings: false, limit: 120)
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Warning[:experimental] = false
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      OUTCOMES = {}

      def attempt(name)
        answer = yield
        answer = answer.respond_to?(:value) ? answer.value : answer.take if answer.is_a?(Ractor)
        OUTCOMES[name] = "answered \#{answer.inspect}"
      rescue Exception => error
        error = error.cause while error.is_a?(Ractor::RemoteError)
        OUTCOMES[name] = "\#{error.class}: \#{error.message}"
      end

      def required(arity)
        arity.negative? ? ~arity : arity
      end

      KLASS = PatientHttp::Sidekiq::TaskMonitor
      (KLASS.singleton_methods(false) - [:allocate]).each do |name|
        arguments = (name == :sanitize_url) ? ["https://user@example.com"] : []
        attempt(".\#{name}") { Ractor.new(name, arguments) { |called, given| PatientHttp::Sidekiq::TaskMonitor.public_send(called, *given) } }
      end
      attempt("new") { Ractor.new { PatientHttp::Sidekiq::TaskMonitor.new(nil) } }
      attempt("new of a subclass") { Ractor.new { Class.new(PatientHttp::Sidekiq::TaskMonitor).new(nil) } }
      KLASS.public_instance_methods(false).each do |name|
        arguments = {cleanup_orphaned_requests: [0, nil]}.fetch(name, [nil] * required(KLASS.instance_method(name).arity))
        attempt("#\#{name}") do
          Ractor.new(name, arguments) { |called, given| PatientHttp::Sidekiq::TaskMonitor.allocate.public_send(called, *given) }
        end
      end

      SHARED = monitor.freeze
      attempt("constant") { Ractor.new { SHARED.config } }
      attempt("copied") { Ractor.new(monitor) { |sent| sent.config } }
      attempt("moved") { Ractor.new { Ractor.receive.config }.tap { |ractor| ractor.send(monitor, move: true) } }
      attempt("shareable?") { Ractor.shareable?(SHARED) }
      attempt("make_shareable") { Ractor.make_shareable(monitor) }
      attempt("keys") { Ractor.new { PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_INDEX_KEY } }

      GC.start
      one = monitor
      one.register(known = task)
      attempt("afterwards") { [one.registered?(known), SHARED.registered?(known)] }
      puts JSON.generate(OUTCOMES)
    RUBY
    expect(outcome.status).to be_success, outcome.to_s
    JSON.parse(outcome.output)
  end

  let(:monitor_class) { PatientHttp::Sidekiq::TaskMonitor }

  it "raises a clear error by whatever method, made there or brought there, and goes on working outside" do
    unsafe = monitor_class.singleton_methods(false).map { |name| ".#{name}" } - [".allocate", ".sanitize_url"] +
      monitor_class.public_instance_methods(false).map { |name| "##{name}" } + ["new", "new of a subclass"]
    expect(unsafe).to include(".inflight_count", ".clear_all!", "#register", "#cleanup_orphaned_requests", "#config")
    expect(outcomes.slice(*unsafe).size).to eq(unsafe.size)
    expect(outcomes.slice(*unsafe)).to all(match([anything, /\ARactor::(UnsafeError|IsolationError): /]))
    expect(outcomes.except(*unsafe)).to match(
      ".sanitize_url" => 'answered "https://example.com"',
      "constant" => /\ARactor::IsolationError: .*SHARED/,
      "copied" => /\ATypeError: .*cannot be copied/,
      "moved" => /\ARactor::Error: can ?not move PatientHttp::Sidekiq::TaskMonitor/,
      "make_shareable" => /\ARactor::Error: can ?not make shareable object for #<PatientHttp::Sidekiq::TaskMonitor/,
      "shareable?" => "answered false",
      "keys" => "answered \"sidekiq:patient_http:inflight_index\"",
      "afterwards" => "answered [true, false]"
    )
  end
end
