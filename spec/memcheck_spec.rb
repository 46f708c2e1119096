# frozen_string_literal: true

require "spec_helper"
require "support/certificates"
require "support/memcheck"

# `rake soak:valgrind`; elsewhere it would have to build the extension a second time.
RSpec.describe "The extension under valgrind", if: ENV["SOAK"] do
  before(:context) do
    Memcheck.missing&.then { |text| raise text }
    @dir = Dir.mktmpdir("patient_http_monitor")
    authority = Certificates.new(@dir, "authority")
    certificate, key = authority.issue("server", "DNS:localhost")
    @tls_port = RedisServer.free_port
    @server = RedisServer.start(tls_port: @tls_port, tls_cert_file: certificate, tls_key_file: key,
      tls_ca_cert_file: authority.ca_file, tls_auth_clients: "no")
    @ca_file = authority.ca_file
  end

  after(:context) do
    @server&.stop
    FileUtils.rm_rf(@dir) if @dir
  end

  it "reads and writes no memory that is not its own or was never set" do
    memcheck = Memcheck.new
    errors = memcheck.errors(memcheck.build, "PLAIN_URL" => @server.url, "TLS_URL" => "rediss://localhost:#{@tls_port}", "CA_FILE" => @ca_file,
      "NOBODY_URL" => "redis://127.0.0.1:#{RedisServer.free_port}", "SERVER_PID" => @server.pid.to_s)
    expect(errors).to be_empty, -> { "#{errors.size} errors of ours, the first of them:\n#{errors.first(3).join("\n")}" }
  end
end
