# frozen_string_literal: true

require "fileutils"

# A stand-in for the gem patient_http-sidekiq, as far as it matters for who defines the class: files of the same names, a class
# of the same name. Written to a folder, as a plain directory or as an installed gem.
class PatientHttpSidekiq
  CLASS = <<~RUBY
    module PatientHttp
      module Sidekiq
        class TaskMonitor
          INFLIGHT_INDEX_KEY = "in plain Ruby"

          def self.inflight_count
            "in plain Ruby"
          end

          def initialize(config)
            @config = config
          end

          def register(task)
            "in plain Ruby"
          end
        end
      end
    end
  RUBY

  # How the main file brings the class.
  WAYS = {
    autoload: 'autoload :TaskMonitor, "patient_http/sidekiq/task_monitor"',
    autoload_by_path: 'autoload :TaskMonitor, File.join(__dir__, "sidekiq/task_monitor")',
    autoload_by_file: 'autoload :TaskMonitor, File.join(__dir__, "sidekiq/task_monitor.rb")',
    require_relative: 'require_relative "sidekiq/task_monitor"'
  }.freeze

  attr_reader :lib

  # @param root [String] a folder that exists
  # @param way [Symbol] one of WAYS
  # @param version [String]
  def initialize(root, way: :autoload, version: "1.0.3")
    @root = root
    @version = version
    @lib = File.join(root, "gems", "patient_http-sidekiq-#{version}", "lib")
    write("patient_http.rb", <<~RUBY)
      module PatientHttp
        def self.testing? = false
      end
    RUBY
    write("patient_http/sidekiq.rb", <<~RUBY)
      require "patient_http"
      module PatientHttp
        module Sidekiq
          VERSION = #{version.inspect}
          #{WAYS.fetch(way)}
        end
      end
    RUBY
    write("patient_http/sidekiq/task_monitor.rb", CLASS)
  end

  # Makes it a gem that a Gemfile names by its path, required by its own name as Bundler does.
  def as_path_gem
    write("patient_http-sidekiq.rb", 'require "patient_http/sidekiq"')
    File.write(File.join(File.dirname(@lib), "patient_http-sidekiq.gemspec"), specification.to_ruby)
  end

  # Makes it an installed gem.
  #
  # @return [String] the GEM_PATH with it
  def install
    FileUtils.mkdir_p(File.join(@root, "specifications"))
    File.write(File.join(@root, "specifications", "#{specification.full_name}.gemspec"), specification.to_ruby)
    [@root, *Gem.path].join(File::PATH_SEPARATOR)
  end

  private

  def specification
    Gem::Specification.new do |spec|
      spec.name = "patient_http-sidekiq"
      spec.version = @version
      spec.summary = "A stand-in"
      spec.authors = ["The suite"]
      spec.files = []
    end
  end

  def write(name, text)
    path = File.join(@lib, name)
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, text)
  end
end
