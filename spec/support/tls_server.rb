# frozen_string_literal: true

require "fileutils"
require "support/certificates"
require "support/redis_server"

# A real redis-server that speaks TLS on a second port, with a certificate of the suite's own.
module TLSServer
  class << self
    # @param options [Hash] see {RedisServer.start}
    # @return [Array(RedisServer, Hash)] and the settings by which Sidekiq connects to it
    def start(**options)
      dir = Dir.mktmpdir("patient_http_monitor")
      authority = Certificates.new(dir, "authority")
      certificate, key = authority.issue("server", "DNS:localhost")
      port = RedisServer.free_port
      server = RedisServer.start(tls_port: port, tls_cert_file: certificate, tls_key_file: key,
        tls_ca_cert_file: authority.ca_file, tls_auth_clients: "no", **options)
      [server, {url: "rediss://localhost:#{port}/0", ssl_params: {ca_file: authority.ca_file}}]
    end
  end
end
