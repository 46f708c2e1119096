# frozen_string_literal: true

module PatientHttpMonitor
  # What a process says of itself at each ping, where that is not `config.max_connections` alone: asked for by the native class.
  #
  # @api private
  class ProcessLoad
    # What keeps a process from telling its processors is said once a minute.
    LIMIT = LineLimit.new(60)
    # What Redis and every version can add up.
    MOST = 2**53
    private_constant :LIMIT, :MOST

    class << self
      # @param config [#max_connections]
      # @param max_connections [#call, nil]
      # @param processors [#call, nil]
      # @return [ProcessLoad, nil] nil when the config alone is to be asked
      # @raise [ArgumentError] for what cannot be called
      def of(config, max_connections, processors)
        {max_connections: max_connections, processors: processors}.each do |name, callable|
          next if callable.nil? || callable.respond_to?(:call)

          raise ArgumentError, "#{name}: must be something that answers `call` (a Proc, for instance), got an instance of #{callable.class}"
        end
        new(config, max_connections, processors) if max_connections || processors
      end

      # @param texts [Array<String>] each as {#call} answers it
      # @return [Hash{String => Hash{Symbol => Integer}}] name to `{inflight:, max_capacity:}`, summed; what cannot be read is
      #   left out
      def merge(texts)
        texts.flat_map { |text| read(text) }.each_with_object({}) do |(name, load), sum|
          total = sum[name] ||= {inflight: 0, max_capacity: 0}
          total.each_key { |key| total[key] += load[key] }
        end
      end

      private

      def read(text)
        parsed = JSON.parse(text)
        return [] unless parsed.is_a?(Hash)

        parsed.filter_map do |name, load|
          next unless load.is_a?(Hash)

          [name, {inflight: Integer(load["inflight"] || 0), max_capacity: Integer(load["max_capacity"] || 0)}]
        rescue ArgumentError, TypeError, FloatDomainError
          nil
        end
      rescue JSON::JSONError, ArgumentError, EncodingError
        []
      end
    end

    def initialize(config, max_connections, processors)
      @config = config
      @max_connections = max_connections
      @processors = processors
    end

    # @return [Array(Integer, (String, nil))] the capacity, and the processors as JSON
    def call
      processors, json = @processors && told_processors
      [capacity(processors), json]
    end

    private

    def capacity(processors)
      return @max_connections.call if @max_connections

      processors ? processors.each_value.sum { |load| load["max_capacity"] } : @config.max_connections
    end

    # A proof of life is worth more than what is shown of it: whatever is wrong here, the process pings.
    #
    # @return [Array(Hash, String), nil] them, and as JSON; nil where they are not told
    def told_processors
      loads = @processors.call
      raise TypeError, "no Hash" unless loads.is_a?(Hash)

      processors = loads.to_h do |name, load|
        [name.to_s, %w[inflight max_capacity].to_h { |key| [key, Integer(load.fetch(key.to_sym) { load.fetch(key) })] }]
      end
      sum = processors.each_value.sum { |load| load["max_capacity"] }
      raise RangeError, "a capacity of #{sum}" if sum.abs > MOST

      [processors, JSON.generate(processors)]
    rescue StandardError, ScriptError, SystemStackError => error
      raise if InflightDetails.time_is_over?(error)

      LIMIT.line(error.class) do |note|
        ::Sidekiq.logger.warn("[PatientHttp::Sidekiq] This process pings without its processors: #{error.class} - " \
          "`processors:` must answer a Hash, name to {inflight:, max_capacity:}#{note}")
      end
      nil
    end
  end
  private_constant :ProcessLoad
end
