# frozen_string_literal: true

module PatientHttpMonitor
  # Why a job went to Sidekiq's dead set, or an entry out of the registry, instead of back into the queue. Death handlers get
  # one of these.
  class RecoveryError < StandardError; end

  # The job was recovered as often as {Settings#recovery_limit} allows, and its process died again.
  class PoisonError < RecoveryError; end

  # What is stored as the job can never be pushed: it is not JSON, or not a Hash, or Sidekiq refuses it.
  class UnusableJobError < RecoveryError; end

  # The entry had no job: there is nothing that could be pushed.
  class GhostError < RecoveryError; end

  # Makes the exceptions that redis-client would raise, so that existing `rescue` lines work. They carry its config, which knows
  # host and port, and never a command's arguments.
  #
  # @api private
  module RedisErrors
    class << self
      # @param name [String] a class under RedisClient
      # @param message [String] what happened
      # @param config [RedisClient::Config, RedisClient::SentinelConfig] of the server concerned
      # @return [RedisClient::Error]
      def connection(name, message, config)
        with_config(::RedisClient.const_get(name).new(message), config)
      end

      # @param message [String] the error as the server sent it
      # @param command [String] the name of the command
      # @param config [RedisClient::Config, RedisClient::SentinelConfig] of the server concerned
      # @return [RedisClient::Error] of the class that redis-client has for the error's code
      def command(message, command, config)
        error = ::RedisClient::CommandError.parse(without_arguments(message))
        error._set_command([command]) if error.respond_to?(:_set_command)
        with_config(error, config)
      end

      # Redis quotes the arguments of a command that it does not know (renamed by its owner, or missing in a proxy): a job's, or a
      # password.
      #
      # @param message [String]
      # @return [String] without them
      def without_arguments(message)
        message.sub(/,? with args beginning with:.*/m, "")
      end

      # @param error [RedisClient::Error] of redis-client's own making
      # @yieldparam message [String]
      # @yieldreturn [String] the same without passwords
      # @return [RedisClient::Error] one like it, without its cause, which knows of its command the name alone
      def without_secrets(error)
        config = error.config if error.respond_to?(:config)
        message = config ? error.message.delete_suffix(" (#{config.server_url})") : error.message
        copy = error.class.new(yield(without_arguments(message)))
        copy._set_command(error.command.first(1)) if error.respond_to?(:command) && error.command
        config ? with_config(copy, config) : copy
      end

      private

      def with_config(error, config)
        error._set_config(config) if error.respond_to?(:_set_config)
        error
      end
    end
  end
  private_constant :RedisErrors
end
