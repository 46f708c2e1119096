# frozen_string_literal: true

require_relative "ruby_process"

# A small application of Sidekiq's in a process of its own: for what is set for a whole process, as Sidekiq's testing modes are.
module SidekiqApplication
  include RubyProcess

  CODE = <<~RUBY
    require "sidekiq"
    require "patient_http_monitor"
    require "support/tasks"
    require "support/recording_logger"
    include Tasks
    Sidekiq.default_configuration.logger.level = Logger::FATAL
    LOGGER = RecordingLogger.new

    # It performs, or fails, as its first argument says.
    class ReportJob
      include Sidekiq::Job

      def perform(*args)
        raise Object.const_get(args.first), "of the job" if args.first.to_s.match?(/Error\\z/)

        puts "performed \#{args.inspect}"
      end
    end

    # Registers a job for each list of arguments, by a process that never showed that it lives; they are orphans already.
    def orphans(*lists, **job)
      requests = lists.map { |args| task(args: args, **job) }
      requests.each { |request| monitor.register(request) }
      sleep 0.005
      requests
    end

    def sweep(by: monitor)
      by.cleanup_orphaned_requests(0, LOGGER)
    end
  RUBY

  # @param script [String] what the application does
  # @param libraries [Array<String>] what it requires first of all
  # @param options [Hash] see {RubyProcess#ruby}
  # @return [Array<String>] the lines that it puts
  def application(script, libraries: [], **options)
    requires = libraries.map { |name| "require #{name.inspect}\n" }.join
    outcome = ruby(requires + CODE + script, warnings: false, **options)
    expect(outcome.status).to be_success, outcome.to_s
    outcome.output.lines(chomp: true)
  end
end
