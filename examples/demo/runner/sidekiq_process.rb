# frozen_string_literal: true

module Demo
  # One of the two Sidekiq processes, as the registry shows it.
  class SidekiqProcess
    APPLICATION = File.expand_path("../app.rb", __dir__)
    COMMAND = %W[bundle exec sidekiq --require #{APPLICATION} --concurrency 5 --timeout 6 --environment demo].freeze
    # What of the environment would change it: its Redis is the demo's, and it is not under test.
    ENVIRONMENT = {"REDIS_PROVIDER" => nil, "RAILS_ENV" => nil, "RACK_ENV" => nil, "APP_ENV" => nil}.freeze
    private_constant :APPLICATION, :COMMAND, :ENVIRONMENT

    # @return [String] as people call it: A or B
    attr_reader :letter
    # @return [String, nil] as the monitor calls it, once it has shown that it lives
    attr_reader :host_and_pid
    # @return [Integer]
    attr_reader :in_flight, :capacity
    attr_reader :child

    def initialize(letter, children, redis_url)
      @letter = letter
      @child = children.start("Sidekiq #{letter}", *COMMAND, env: {**ENVIRONMENT, "REDIS_URL" => redis_url})
      @in_flight = @capacity = 0
      @killed = false
    end

    def pid
      child.pid
    end

    def name
      child.name
    end

    def booted?
      !host_and_pid.nil?
    end

    def killed?
      @killed
    end

    # @param counts [Hash] what `TaskMonitor.inflight_counts_by_process` returns
    def read(counts)
      key, numbers = counts.find { |host_and_pid, _| host_and_pid.end_with?(":#{pid}") }
      @host_and_pid ||= key
      @in_flight, @capacity = numbers ? numbers.values_at(:inflight, :max_capacity) : [0, 0]
    end

    # @return [Integer] its entries in the registry, whether it lives or not
    def registered_requests
      ids = Sidekiq.redis { |redis| redis.call("ZRANGE", PatientHttp::Sidekiq::TaskMonitor::INFLIGHT_INDEX_KEY, 0, -1) }
      ids.count { |id| id.start_with?("#{host_and_pid}:") }
    end

    def kill
      child.kill
      @killed = true
    end

    # @raise [Failure] when it is gone and nobody killed it
    def check
      return if killed? || child.running?

      raise Failure.of(child, "#{name} (pid #{pid}) should run, but #{child.fate}.")
    end
  end
end
