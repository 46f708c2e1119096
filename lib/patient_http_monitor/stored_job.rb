# frozen_string_literal: true

module PatientHttpMonitor
  # What the registry keeps of a job: JSON, as `JSON.generate` wrote it when the request was registered.
  #
  # @api private
  module StoredJob
    class << self
      # @param payload [String]
      # @return [Object] the JSON value, a Hash where all is well
      # @raise [UnusableJobError] when it is no JSON; JSON is UTF-8, and Sidekiq could not write anything else
      def parse(payload)
        raise UnusableJobError, not_json(payload) unless payload.encoding == Encoding::UTF_8 && payload.valid_encoding?

        # Of a name that is there twice the last one counts, in every version of json; from 3.0 on it would refuse, unlike the core.
        JSON.parse(payload, allow_duplicate_key: true)
      rescue JSON::ParserError, EncodingError
        # Their own messages quote the payload, which belongs in no log.
        raise UnusableJobError, not_json(payload)
      end

      private

      def not_json(payload)
        "the stored job is not JSON (#{payload.bytesize} bytes)"
      end
    end
  end
  private_constant :StoredJob
end
