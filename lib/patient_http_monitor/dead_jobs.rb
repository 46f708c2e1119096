# frozen_string_literal: true

require "digest"

module PatientHttpMonitor
  # Hands a job that must not go back into the queue to Sidekiq's dead set, in a form that Sidekiq's own page can show.
  #
  # @api private
  module DeadJobs
    # Stands for the class of a job that has none.
    WRAPPER = "PatientHttp::Sidekiq::TaskMonitor"
    # What Sidekiq's pages read of a job.
    READERS = %i[display_class display_args bid created_at enqueued_at latency].freeze
    private_constant :WRAPPER, :READERS

    class << self
      # Adds the job to the dead set and calls Sidekiq's death handlers. A job with `dead: false` is not added, only handed to the
      # death handlers, as Sidekiq itself does. What Sidekiq's pages fail on is wrapped in a job that holds it as args.
      #
      # @param job [Hash, Object] a JSON value that is no job is wrapped as well
      # @param registry_id [String] names the entry the job comes from
      # @param error [Exception] why
      # @return [Boolean] whether it was added
      def bury(job, registry_id, error)
        job = wrap(job) unless showable?(job)
        job = job.merge("error_class" => error.class.name, "error_message" => error.message)
        # The same one for the same entry, so that burying it twice adds it once.
        job["jid"] ||= Digest::SHA256.hexdigest(registry_id)[0, 24]
        # As a push makes it: Sidekiq 8's page fails on any other queue than a String.
        job["queue"] = (job["queue"] || ::Sidekiq.default_job_options["queue"] || "default").to_s
        added = job["dead"] != false
        add(::Sidekiq.dump_json(job)) if added
        call_death_handlers(job, error)
        added
      end

      # Adds what Sidekiq can never push, in the closest form to it that Sidekiq's page can show: text that is no JSON byte for
      # byte (and without death handlers, which need a parsed job); a value that is no Hash, or a Hash that the page fails on,
      # wrapped in a job that holds it as args, as its text where Ruby cannot write it; any other Hash as it is.
      #
      # @param payload [String]
      # @param registry_id [String]
      # @param reason [String] why, without the payload
      # @return [Boolean] whether it was added
      def bury_unusable(payload, registry_id, reason)
        value = StoredJob.parse(payload)
        error = UnusableJobError.new(reason)
        begin
          bury(value, registry_id, error)
        rescue JSON::JSONError
          # Ruby reads it and does not write it: 1e999, or arrays as deep as can be read. So its text.
          bury(wrap(payload), registry_id, error)
        end
      rescue UnusableJobError
        add(payload)
        true
      end

      private

      def wrap(value)
        job = {"class" => WRAPPER, "args" => [value], "queue" => "default"}
        value.is_a?(Hash) && value["dead"] == false ? job.merge("dead" => false) : job
      end

      # Whether Sidekiq's pages can show it, by their own readers: one job that they fail on takes the whole list away.
      def showable?(value)
        return false unless value.is_a?(Hash)

        require_api
        # A copy: the readers change an encrypted job.
        record = ::Sidekiq::JobRecord.new(Marshal.load(Marshal.dump(value)))
        READERS.each { |name| record.public_send(name) }
        record.tags.is_a?(Array) && (record.error_backtrace.nil? || record.error_backtrace.is_a?(Array))
      rescue
        false
      end

      # Loaded only now: it is large, and most processes never need it.
      def require_api
        require "sidekiq/api"
      end

      def add(payload)
        require_api
        ::Sidekiq::DeadSet.new.kill(payload, notify_failure: false)
      end

      def call_death_handlers(job, error)
        config = ::Sidekiq.default_configuration
        config.death_handlers.each do |handler|
          handler.call(job, error)
        rescue => raised
          config.handle_exception(raised, {context: "Error calling death handler"})
        end
      end
    end
  end
  private_constant :DeadJobs
end
