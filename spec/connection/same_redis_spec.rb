# frozen_string_literal: true

require "spec_helper"
require "support/certificates"
require "support/observing"
require "support/ruby_process"
require "support/sentinels"

# One row for each way to say which Redis: Sidekiq's own connection and ours are made by the same settings, and then it is the
# servers that are asked who came. Or both fail, in the same way. The rows are told as a table at the end.
RSpec.describe "the Redis of Sidekiq's settings" do
  include Observing
  include RubyProcess

  # Who came, as the server tells it; `port` is the server's, or the path of its socket.
  Guest = Struct.new(:server, :port, :db, :user, :name, :resp) do
    def to_s
      parts = ["#{server} (#{port.include?("/") ? "unix socket" : "port #{port}"})", "db #{db}", "user #{user}"]
      [*parts, ("RESP#{resp}" if resp), ("named #{name}" unless name.empty?)].compact.join(", ")
    end
  end

  # Sidekiq's own connection takes a callable since redis-client 0.23, ours always.
  CALLABLES = Gem::Version.new(RedisClient::VERSION) >= Gem::Version.new("0.23")
  TABLE = {} # rubocop:disable Style/MutableConstant -- a line is added by each row

  class << self
    # @param setting [String] what is set, and how
    # @param at [Symbol] the server that is meant
    # @param expected [Hash] of its {Guest}, beside the defaults
    # @yieldreturn [Hash] the settings
    def reaches(setting, at, **expected, &settings)
      TABLE[setting] = nil
      it "is the same server, db and user for both: #{setting}" do
        pool = Sidekiq::RedisConnection.create(instance_exec(&settings))
        expect_same_guest(setting, at, guests(pool), **expected)
      end
    end

    # @param errors [Array<Class>] of the error and those behind it
    # @param frozen [Symbol, nil] the server that does not answer
    def fails(setting, *errors, frozen: nil, &settings)
      TABLE[setting] = nil
      it("fails in the same way for both: #{setting}") { expect_same_failure(setting, errors, frozen, settings) }
    end
  end

  before(:context) do
    @dir = Dir.mktmpdir("patient_http_monitor")
    @authority = Certificates.new(@dir, "authority")
    @stranger = Certificates.new(@dir, "stranger")
    certificate, key = @authority.issue("server", "DNS:localhost")
    tls = {tls_cert_file: certificate, tls_key_file: key, tls_ca_cert_file: @authority.ca_file}
    # Where an address is marked by "-", Redis goes on without it on a machine that has none of that kind.
    @open = RedisServer.start(bind: "127.0.0.1 -::1", tls_port: @open_tls = RedisServer.free_port, tls_auth_clients: "no", **tls)
    @open.call("ACL", "SETUSER", "reporter", "on", ">s3cret@w:o/rd%", "~*", "&*", "+@all")
    @open.call("ACL", "SETUSER", "retired", "off", ">s3cret-known", "~*", "&*", "+@all")
    @locked = RedisServer.start(tls_port: @locked_tls = RedisServer.free_port, tls_auth_clients: "yes", **tls)
    # The client that asks here stays logged in.
    @locked.call("CONFIG", "SET", "requirepass", "s3cret-word")
    @watched = Sentinels.new(replicas: 1, sentinels: 2)
    @watched.sentinels.each { |sentinel| sentinel.call("ACL", "SETUSER", "asker", "on", ">s3cret-of-sentinels", "~*", "&*", "+@all") }
    @servers = {suite: REDIS, open: @open, locked: @locked, master: @watched.master, replica: @watched.replicas.first}
  end

  after(:context) do
    [@open, @locked, @watched].each(&:stop)
    FileUtils.rm_rf(@dir)
    width = TABLE.keys.map(&:size).max
    RSpec.configuration.reporter.message("\n  what both reached, by setting")
    TABLE.each { |setting, outcome| RSpec.configuration.reporter.message("  #{setting.ljust(width)} | #{outcome || "not run"}") }
  end

  # @param guests [Array(Array<Guest>, Array<Guest>)] Sidekiq's, and ours
  def expect_same_guest(setting, at, guests, **expected)
    theirs, ours = guests
    expect(ours).to eq(theirs)
    expect(ours.size).to eq(1)
    expect(ours.first.to_h).to include(server: at, db: "0", user: "default", name: "", **expected)
    TABLE[setting] = ours.first.to_s
  end

  def expect_same_failure(setting, errors, frozen, settings)
    theirs = ours = nil
    pool = Sidekiq::RedisConnection.create(instance_exec(&settings))
    try_both = -> { theirs, ours = by_sidekiq(pool), by_monitor(pool) }
    frozen ? @servers.fetch(frozen).freeze_for_a_while(&try_both) : try_both.call

    # Of what is behind the error that one which redis-client has.
    classes = [theirs, ours].map { |error| [error.class, (error.cause.class if theirs.cause)].compact }
    expect(classes).to eq([errors] * 2)
    TABLE[setting] = errors.join(" because of ")
  end

  # @return [Array(Array<Guest>, Array<Guest>)] Sidekiq's, and ours; ours twice unless both are to come
  def guests(pool, both: true)
    calls = both ? %i[by_sidekiq by_monitor] : %i[by_monitor]
    come = calls.map do |call|
      known = present.keys
      expect(public_send(call, pool)).to be_nil
      present.except(*known).values
    end
    [come.first, come.last]
  end

  # Both connections are of a process that has nothing but this environment, and stay open until it is told to end.
  def guests_from_a_process(environment)
    known = present.keys
    told = ruby(<<~CODE, env: environment)
      require "patient_http_monitor"
      require "support/tasks"
      include Tasks
      Sidekiq.default_configuration.logger.level = Logger::ERROR
      monitor.register(task)
      Sidekiq.redis do |redis|
        puts redis.call("CLIENT", "ID"), redis.info["run_id"], redis.call("CLIENT", "LIST")
      end
    CODE
    raise told.to_s unless told.errors.empty?

    id, run_id, *list = told.output.lines(chomp: true)
    server = @servers.keys.find { |name| @servers[name].call("INFO", "server")[/run_id:(\h+)/, 1] == run_id }
    known << [server, @servers.fetch(server).call("CLIENT", "ID").to_s]
    list.map { |line| line.split.to_h { |field| field.split("=", 2) } }
      .reject { |client| known.include?([server, client["id"]]) }
      .partition { |client| client["id"] == id }
      .map { |clients| clients.map { |client| guest(server, client) } }
  end

  # @return [Hash{Array => Guest}] everyone connected to any of the servers now but for those who ask here, sentinels and replicas
  def present
    @servers.flat_map { |name, server| clients_of(server).map { |client| [name, client] } }
      .reject { |_, client| client["name"].start_with?("sentinel-") || client["flags"].match?(/[MS]/) }
      .to_h { |name, client| [[name, client["id"]], guest(name, client)] }
  end

  def guest(name, client)
    address = client["laddr"].start_with?("/") ? client["laddr"] : client["laddr"][/\d+\z/]
    Guest.new(name, address, *client.values_at("db", "user", "name", "resp"))
  end

  def tls_url(port)
    "rediss://localhost:#{port}"
  end

  def client_certificate
    certificate, key = @authority.issue("client", "DNS:client")
    {cert: certificate, key: key}
  end

  def ipv6?
    TCPServer.new("::1", 0).close
    true
  rescue SystemCallError
    skip "this machine has no IPv6"
  end

  # @return [Exception, nil]
  def by_sidekiq(pool)
    Sidekiq::Client.via(pool) { raised { Sidekiq.redis { |redis| redis.call("SET", "sidekiq-was-here", 1) } } }
  end

  def by_monitor(pool)
    Sidekiq::Client.via(pool) { raised { monitor.register(task) } }
  end

  reaches("url", :open) { {url: @open.url} }
  reaches("url, with string keys", :open) { {"url" => @open.url} }
  reaches("host and port", :open) { {host: "127.0.0.1", port: @open.port} }
  reaches("host by name", :open) { {host: "localhost", port: @open.port} }
  reaches("host: IPv6 address", :open) { ipv6? && {host: "::1", port: @open.port} }
  reaches("url with an IPv6 address", :open, db: "2") { ipv6? && {url: "redis://[::1]:#{@open.port}/2"} }
  reaches("db by the url", :open, db: "3") { {url: @open.url(3)} }
  reaches("db: as an option", :open, db: "4") { {url: "redis://127.0.0.1:#{@open.port}", db: 4} }
  reaches("db: as an option, another one in the url", :open, db: "5") { {url: @open.url(3), db: 5} }
  reaches("username: and password:", :open, user: "reporter") { {url: @open.url, username: "reporter", password: "s3cret@w:o/rd%"} }
  reaches("user and percent-encoded password in the url", :open, user: "reporter", db: "6") do
    {url: "redis://reporter:s3cret%40w%3Ao%2Frd%25@127.0.0.1:#{@open.port}/6"}
  end
  reaches("password: alone", :locked) { {url: @locked.url, password: "s3cret-word"} }
  reaches("password alone in the url", :locked, db: "1") { {url: "redis://:s3cret-word@127.0.0.1:#{@locked.port}/1"} }
  reaches("path:", :open, db: "1") { {path: @open.unix_path, db: 1} }
  reaches("unix:// url", :open, db: "2") { {url: "unix://#{@open.unix_path}?db=2"} }
  reaches("rediss:// url, ca_file", :open, db: "1") { {url: "#{tls_url(@open_tls)}/1", ssl_params: {ca_file: @authority.ca_file}} }
  reaches("ssl: true, host and port, ca_file", :open) do
    {host: "localhost", port: @open_tls, ssl: true, ssl_params: {ca_file: @authority.ca_file}}
  end
  reaches("rediss:// url, user in it, VERIFY_NONE", :open, user: "reporter") do
    {url: "rediss://reporter:s3cret%40w%3Ao%2Frd%25@127.0.0.1:#{@open_tls}", ssl_params: {verify_mode: OpenSSL::SSL::VERIFY_NONE}}
  end
  reaches("rediss:// url, client certificate, password:", :locked) do
    {url: tls_url(@locked_tls), password: "s3cret-word", ssl_params: {ca_file: @authority.ca_file}.merge(client_certificate)}
  end
  reaches("network_timeout:", :open) { {url: @open.url, network_timeout: 2} }
  reaches("connect_timeout:, read_timeout: and write_timeout:", :open) do
    {url: @open.url, connect_timeout: 1, read_timeout: 2, write_timeout: 3}
  end
  reaches("id:", :open, name: "billing-worker") { {url: @open.url, id: "billing-worker"} }
  reaches("protocol: as it is without", :open, resp: "3") { {url: @open.url} }
  reaches("protocol: 3", :open, resp: "3") { {url: @open.url, protocol: 3} }
  reaches("reconnect_attempts: 0", :open) { {url: @open.url, reconnect_attempts: 0} }
  reaches("reconnect_attempts: a list", :open) { {url: @open.url, reconnect_attempts: [0, 0.05]} }
  reaches("driver:, size:, pool_name: and pool_timeout:", :open) do
    {url: @open.url, driver: "ruby", size: 2, pool_name: "ours", pool_timeout: 2}
  end
  reaches("sentinels:", :master) { {url: "redis://the-master", sentinels: @watched.addresses} }
  reaches("sentinels: as urls, db by the url", :master, db: "7") do
    {url: "redis://the-master/7", sentinels: @watched.sentinels.map { |sentinel| "redis://127.0.0.1:#{sentinel.port}" }}
  end
  reaches("sentinels:, name: and role: :master", :master) do
    {name: "the-master", role: :master, sentinels: @watched.addresses}
  end
  reaches("sentinels:, master_name: and role: as a String, db:, id:", :master, db: "8", name: "billing-worker") do
    {master_name: "the-master", role: "master", sentinels: @watched.addresses, db: 8, id: "billing-worker"}
  end
  reaches("sentinels: with a user and a password of their own", :master) do
    {url: "redis://the-master", sentinels: @watched.addresses, sentinel_username: "asker", sentinel_password: "s3cret-of-sentinels"}
  end
  reaches("sentinels:, each with its own password", :master) do
    {url: "redis://the-master", sentinels: @watched.addresses.map { |one| one.merge(username: "asker", password: "s3cret-of-sentinels") }}
  end

  TABLE[callable = "password: a callable, another word at each connect"] = nil
  it "is the same server, db and user for both: #{callable}" do
    password = nil
    pool = Sidekiq::RedisConnection.create(url: @open.url(9), username: "rotating", password: ->(_) { password })
    %w[s3cret-1 s3cret-2 s3cret-3].each do |word|
      @open.call("ACL", "SETUSER", "rotating", "resetpass", "on", ">#{password = word}", "~*", "&*", "+@all")
      @open.call("CLIENT", "KILL", "USER", "rotating")
      expect_same_guest(callable, :open, guests(pool, both: CALLABLES), user: "rotating", db: "9")
    end
    TABLE[callable] += " (Sidekiq's own: TypeError)" unless CALLABLES
  end

  {
    "REDIS_URL" => ->(url) { {"REDIS_URL" => url} },
    "REDIS_PROVIDER, beside REDIS_URL" => ->(url) { {"REDIS_PROVIDER" => "OURS", "OURS" => url, "REDIS_URL" => REDIS.url} }
  }.each do |setting, environment|
    TABLE[setting] = nil
    it "is the same server, db and user for both: #{setting}" do
      url = "redis://reporter:s3cret%40w%3Ao%2Frd%25@127.0.0.1:#{@open.port}/10"
      expect_same_guest(setting, :open, guests_from_a_process(environment.call(url)), user: "reporter", db: "10")
    end
  end

  fails("nobody listens", RedisClient::CannotConnectError, Errno::ECONNREFUSED) do
    {url: "redis://127.0.0.1:#{RedisServer.free_port}"}
  end
  fails("nobody listens, reconnect_attempts: a list", RedisClient::CannotConnectError, Errno::ECONNREFUSED) do
    {url: "redis://127.0.0.1:#{RedisServer.free_port}", reconnect_attempts: [0, 0.05]}
  end
  fails("nobody listens at the IPv6 address", RedisClient::CannotConnectError, Errno::ECONNREFUSED) do
    ipv6? && {url: "redis://[::1]:#{RedisServer.free_port}"}
  end
  fails("no such unix socket", RedisClient::CannotConnectError, Errno::ENOENT) { {url: "unix://#{@dir}/nobody.sock"} }
  fails("db that does not exist", RedisClient::CommandError) { {url: @open.url(99)} }
  fails("wrong password", RedisClient::AuthenticationError) { {url: @open.url, username: "reporter", password: "s3cret-wrong"} }
  fails("wrong password in the url, alone", RedisClient::AuthenticationError) { {url: "redis://:s3cret-wrong@127.0.0.1:#{@locked.port}"} }
  fails("user who is switched off", RedisClient::AuthenticationError) { {url: "redis://retired:s3cret-known@127.0.0.1:#{@open.port}"} }
  fails("no password where one is needed", RedisClient::CommandError) { {url: @locked.url} }
  fails("rediss:// url, certificate of another authority", RedisClient::CannotConnectError, OpenSSL::SSL::SSLError) do
    {url: tls_url(@open_tls), ssl_params: {ca_file: @stranger.ca_file}}
  end
  fails("rediss:// url, certificate for another host", RedisClient::CannotConnectError, OpenSSL::SSL::SSLError) do
    {url: "rediss://127.0.0.1:#{@open_tls}", ssl_params: {ca_file: @authority.ca_file}}
  end
  fails("rediss:// url, no client certificate", RedisClient::CannotConnectError, RedisClient::ConnectionError) do
    {url: tls_url(@locked_tls), password: "s3cret-word", ssl_params: {ca_file: @authority.ca_file}}
  end
  fails("rediss:// url, a port without TLS", RedisClient::CannotConnectError) do
    {url: tls_url(@open.port), ssl_params: {ca_file: @authority.ca_file}, timeout: 0.5}
  end
  fails("network_timeout: runs out", RedisClient::CannotConnectError, RedisClient::ReadTimeoutError, frozen: :open) do
    {url: @open.url, network_timeout: 0.2}
  end
  fails("read_timeout: runs out", RedisClient::CannotConnectError, RedisClient::ReadTimeoutError, frozen: :open) do
    {url: @open.url, timeout: 20, read_timeout: 0.2}
  end
  fails("sentinels: that do not know the name", RedisClient::CannotConnectError, RedisClient::ConnectionError) do
    {url: "redis://another-master", sentinels: @watched.addresses}
  end
  fails("sentinels: with a wrong password", RedisClient::AuthenticationError) do
    {url: "redis://the-master", sentinels: @watched.addresses, sentinel_username: "asker", sentinel_password: "s3cret-wrong"}
  end
  fails("sentinels: and role: :replica", RedisClient::ReadOnlyError) do
    {url: "redis://the-master", sentinels: @watched.addresses, role: :replica}
  end
end
