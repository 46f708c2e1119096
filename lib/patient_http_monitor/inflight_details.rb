# frozen_string_literal: true

require "timeout"
require "uri"

module PatientHttpMonitor
  # What people may see of the requests in flight, for applications whose `config` answers true to `inflight_details?`. Written by
  # the native class together with the entry; nothing here is needed to recover anything.
  #
  # @api private
  module InflightDetails
    # How many characters of a URL are kept at most.
    MAX_URL_LENGTH = 500
    # What is shown instead of a URL that cannot be taken apart and may hold a password.
    UNREADABLE = "(unreadable URL)"
    # How many records one request to Redis reads.
    PAGE = 500
    # More there cannot be.
    MOST = 2**31
    private_constant :PAGE, :MOST

    class << self
      # @param task [#request]
      # @param processor [String, Symbol, nil] the name of the one that carries the request out
      # @param config [#inflight_url_sanitizer, #logger, Object]
      # @return [String, nil] JSON; nil when it could not be built, of which the config's logger is told
      def of(task, processor, config)
        request = task.request
        JSON.generate("url" => url_of(request, config), "method" => request.http_method&.to_s&.upcase, "processor" => processor&.to_s)
      rescue StandardError, ScriptError, SystemStackError => error
        failed(task, config, error)
      end

      # @param error [Exception] what kept the details from being built
      # @return [nil]
      # @raise [Timeout::Error, Async::TimeoutError] which are not of the details' making, but the caller's time that is over
      def failed(task, config, error)
        raise error if time_is_over?(error)

        # Without the error's message, which may quote the URL.
        warn_through(config, "The request #{task.id.inspect} is registered without details: #{error.class}")
      end

      # @return [Boolean] whether it came from who waits for the call
      def time_is_over?(error)
        error.is_a?(::Timeout::Error) || (defined?(::Async::TimeoutError) && error.is_a?(::Async::TimeoutError)) || false
      end

      # @param url [#to_s]
      # @return [String] without user, password, query and fragment
      def sanitize(url)
        text = url.to_s.dup.force_encoding(Encoding::UTF_8).scrub.strip
        # What follows is never shown, and it is what takes URI its time; only an "@" in it might be the end of a password.
        shown = text[/\A[^?#]*/]
        text = shown unless text.index("@", shown.size)
        uri = URI.parse(text)
        return without_what_follows(text) if uri.opaque || uri.host.nil?
        return UNREADABLE if password_beyond_authority?(uri, text)

        port = ":#{uri.port}" if uri.port && uri.port != uri.default_port
        "#{"#{uri.scheme}:" if uri.scheme}//#{uri.host}#{port}#{uri.path}"
      rescue StandardError, ScriptError
        text ? without_what_follows(text) : UNREADABLE
      end

      # @param limit [Integer]
      # @yieldparam offset [Integer]
      # @yieldparam count [Integer]
      # @yieldreturn [Array(Integer, Array)] the server's time in ms, and a page of records: registry id, when it was registered in
      #   ms, JSON
      # @return [Array<Hash>]
      def oldest(limit)
        limit = [limit, MOST].min
        found = []
        offset = 0
        while found.size < limit
          # Behind records that cannot be read there may be many more of them: one at a time would never end.
          now, records = yield offset, (offset.zero? ? [limit, PAGE].min : PAGE)
          break if records.empty?

          found.concat(records.filter_map { |id, registered, json| readable(id, now - registered, json) })
          offset += records.size
        end
        found.first(limit)
      end

      private

      # A password that is not encoded may have ended the authority too early.
      def password_beyond_authority?(uri, text)
        return text.count("@") > 1 if uri.userinfo

        case text[%r{//[^/?#]*}]
        when /:\z/ then text.include?("@")
        when /:/ then uri.path.include?("@") || (uri.path.empty? && text.include?("@"))
        end
      end

      # Of what is no URL by the book: without an "@" there is no password in it but behind "?" or "#".
      def without_what_follows(text)
        text.include?("@") ? UNREADABLE : text[/\A[^?#]*/]
      end

      def url_of(request, config)
        sanitizer = config.inflight_url_sanitizer if config.respond_to?(:inflight_url_sanitizer)
        url = sanitizer ? sanitizer.call(request.url) : sanitize(request.url)
        url && url.to_s[0, MAX_URL_LENGTH]
      end

      def readable(id, age, json)
        process, task = id.split("/", 2)
        details = JSON.parse(json) if json
        return unless task && details.is_a?(Hash)

        {request_id: task, process_id: process[/\A.*(?=:)/] || process, url: details["url"], http_method: details["method"],
         processor: details["processor"], age: [age / 1_000.0, 0.0].max.round(1)}
      rescue JSON::JSONError, ArgumentError, EncodingError
        nil
      end

      def warn_through(config, line)
        logger = config.logger if config.respond_to?(:logger)
        (logger || ::Sidekiq.logger).warn("[PatientHttp::Sidekiq] #{line}")
        nil
      rescue => error
        ::Sidekiq.logger.warn("[PatientHttp::Sidekiq] #{line} (and the config's logger failed: #{error.class})")
        nil
      end
    end
  end
  private_constant :InflightDetails
end
