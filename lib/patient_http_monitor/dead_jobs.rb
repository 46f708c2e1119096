# frozen_string_literal: true

require "digest"

module PatientHttpMonitor
  # Hands a job that must not go back into the queue to Sidekiq's dead set, in a form that Sidekiq's own page can show.
  #
  # @api private
  module DeadJobs
    class << self
      # Adds the job to the dead set and calls Sidekiq's death handlers. A job with `dead: false` is not added, only handed to the
      # death handlers, as Sidekiq itself does.
      #
      # @param job [Hash]
      # @param registry_id [String] names the entry the job comes from
      # @param error [Exception] why
      # @return [Boolean] whether it was added
      def bury(job, registry_id, error)
        job = job.merge("error_class" => error.class.name, "error_message" => error.message)
        # The same one for the same entry, so that burying it twice adds it once.
        job["jid"] ||= Digest::SHA256.hexdigest(registry_id)[0, 24]
        added = job["dead"] != false
        add(::Sidekiq.dump_json(job)) if added
        call_death_handlers(job, error)
        added
      end

      # Adds a JSON value that is no Hash, wrapped in one that holds it as args: Sidekiq's page fails on anything else.
      #
      # @param value [Object]
      # @param registry_id [String]
      # @param error [Exception]
      # @return [Boolean] true
      def bury_value(value, registry_id, error)
        bury({"class" => "PatientHttp::Sidekiq::TaskMonitor", "args" => [value], "queue" => "default"}, registry_id, error)
      end

      # Adds text that is no JSON, byte for byte. Death handlers need a parsed job, so none is called.
      #
      # @param text [String]
      # @return [Boolean] true
      def bury_text(text)
        add(text)
        true
      end

      private

      def add(payload)
        # Loaded only now: it is large, and most processes never need it.
        require "sidekiq/api"
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
