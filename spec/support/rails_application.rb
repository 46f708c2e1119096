# frozen_string_literal: true

require "fileutils"
require "json"
require "open3"
require "rbconfig"

# A small Rails application in a folder, as `rails new` leaves one where it matters here: production loads it eagerly, an initializer
# brings the gem and tells Sidekiq which Redis to use, and puma preloads it and forks.
class RailsApplication
  WORKERS = 2
  # In s; what hangs is killed then.
  LIMIT = 60
  Outcome = Struct.new(:output, :errors, :status) do
    def to_s
      "#{status.inspect}\n#{output}\n#{errors}"
    end
  end

  FILES = {
    "Rakefile" => <<~RUBY,
      require_relative "config/application"
      Rails.application.load_tasks
    RUBY
    "bin/rails" => <<~RUBY,
      APP_PATH = File.expand_path("../config/application", __dir__)
      require "rails/commands"
    RUBY
    "config.ru" => <<~RUBY,
      require_relative "config/environment"
      run Rails.application
    RUBY
    "config/application.rb" => <<~RUBY,
      require "rails"
      require "action_controller/railtie"
      require "active_job/railtie"

      module Store
        class Application < Rails::Application
          config.load_defaults 7.2
          config.eager_load = true
          config.secret_key_base = "0" * 64
          config.log_level = :info
          config.active_job.queue_adapter = :sidekiq
        end
      end
    RUBY
    "config/environment.rb" => <<~RUBY,
      require_relative "application"
      Rails.application.initialize!
    RUBY
    "config/routes.rb" => <<~RUBY,
      Rails.application.routes.draw { post "/requests", to: "requests#create" }
    RUBY
    "config/initializers/patient_http.rb" => <<~RUBY,
      require "patient_http_monitor"

      Sidekiq.configure_client { |config| config.redis = {url: ENV.fetch("STORE_REDIS"), timeout: 5} }
      Sidekiq.default_configuration.logger.level = Logger::WARN
    RUBY
    "config/puma.rb" => <<~RUBY,
      environment "production"
      bind "unix://\#{ENV.fetch("STORE_SOCKET")}"
      workers #{WORKERS}
      threads 1, 1
      preload_app!
      before_fork { Requests.register("of-the-master") }
    RUBY
    "app/controllers/requests_controller.rb" => <<~RUBY,
      class RequestsController < ActionController::API
        def create
          render json: {pid: Process.pid, parent: Process.ppid, registered: Requests.register("of-a-worker")}
        end
      end
    RUBY
    "app/jobs/report_job.rb" => <<~RUBY,
      class ReportJob < ActiveJob::Base
        def perform(...)
        end
      end
    RUBY
    "app/models/requests.rb" => <<~RUBY,
      class Requests
        Settings = Struct.new(:max_connections, :heartbeat_interval, :orphan_threshold)
        Task = Struct.new(:id, :task_handler)
        TaskHandler = Struct.new(:sidekiq_job)
        JOB = {"class" => "ReportJob", "args" => ["a", 1], "jid" => "0123456789abcdef01234567", "queue" => "default"}.freeze
        # Made while the application is loaded, so that the children of a server have it from their parent.
        MONITOR = PatientHttp::Sidekiq::TaskMonitor.new(Settings.new(10, 1.minute, 5.minutes))

        def self.register(id, job = JOB)
          MONITOR.ping_process
          MONITOR.register(Task.new(id, TaskHandler.new(job)))
          MONITOR.full_task_id(id)
        end
      end
    RUBY
    # An application's own class beside the gem's.
    "app/models/patient_http/report.rb" => <<~RUBY
      module PatientHttp
        class Report
        end
      end
    RUBY
  }.freeze

  # @param folder [String] an empty one
  # @param redis [String] the URL that the initializer sets
  def initialize(folder, redis:)
    @folder = folder
    @redis = redis
    FILES.each do |path, text|
      path = File.join(folder, path)
      FileUtils.mkdir_p(File.dirname(path))
      File.write(path, text)
    end
  end

  # bin/rails with these arguments, in a process of its own.
  #
  # @return [Outcome]
  def rails(*arguments, environment: "production")
    Open3.popen3(env(environment), RbConfig.ruby, "bin/rails", *arguments, chdir: @folder) do |input, output, errors, process|
      input.close
      texts = [output, errors].map { |io| Thread.new { io.read } }
      Process.kill(:KILL, process.pid) unless process.join(LIMIT)
      Outcome.new(*texts.map(&:value), process.value)
    end
  end

  # @param code [String] what it returns is printed as JSON
  # @return [Object] that, read back
  # @raise [RuntimeError] where the code raised or the application complained
  def run(code, environment: "production")
    outcome = rails("runner", "puts JSON.generate((#{code}\n))", environment: environment)
    raise outcome.to_s unless outcome.status.success? && outcome.errors.empty?

    JSON.parse(outcome.output)
  end

  # @return [String] what the application logged in production
  def log
    File.read(File.join(@folder, "log/production.log"))
  end

  # puma for the block's time.
  #
  # @yieldparam pid [Integer] its master
  def serve
    said = File.join(@folder, "puma.log")
    command = [RbConfig.ruby, "-r", "puma/cli", "-e", "Puma::CLI.new(ARGV).run", "--", "-C", "config/puma.rb"]
    pid = Process.spawn(env("production"), *command, chdir: @folder, in: File::NULL, out: said, err: %i[child out], pgroup: true)
    yield pid
  rescue StandardError, RSpec::Expectations::ExpectationNotMetError => error
    raise error, "#{error.message}\npuma said:\n#{File.read(said)}", error.backtrace
  ensure
    stop(pid) if pid
  end

  # A request to the server, over its socket.
  #
  # @return [Hash, nil] what it answered; nil while there is nobody
  def post(path)
    UNIXSocket.open(socket) do |connection|
      connection.write("POST #{path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
      head, body = connection.read.split("\r\n\r\n", 2)
      raise "the server answered:\n#{head}\n#{body}" unless head.start_with?(/HTTP\S+ 200 /)

      JSON.parse(body)
    end
  rescue Errno::ENOENT, Errno::ECONNREFUSED
    nil
  end

  private

  def socket
    File.join(@folder, "puma.sock")
  end

  # What the spec's own process is told of its Redis, and that it is a test, is not for the application.
  def env(environment)
    {"RAILS_ENV" => environment, "RACK_ENV" => nil, "APP_ENV" => nil, "REDIS_URL" => nil, "REDIS_PROVIDER" => nil,
     "STORE_REDIS" => @redis, "STORE_SOCKET" => socket}
  end

  # At once, and its workers with it: puma 6 may hang for 30 s when it is asked to end, in the close of a pipe of its own.
  def stop(pid)
    Process.kill(:KILL, -pid)
    Process.wait(pid)
  end
end
