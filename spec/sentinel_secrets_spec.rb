# frozen_string_literal: true

require "spec_helper"
require "support/observing"
require "support/scripted_server"

# redis-client asks the sentinels, and its errors hold the command that failed: the password of Sentinel is in it.
RSpec.describe "a password of Sentinel" do
  include Observing

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:word) { "s3cret-word-of-sentinel" }

  # What a call raises whose one sentinel listens at this port.
  def error_at(port)
    settings = {url: "redis://the-master/0", sentinels: [{host: "127.0.0.1", port: port}], sentinel_password: word, timeout: 2,
                reconnect_attempts: 0}
    Sidekiq::Client.via(Sidekiq::RedisConnection.create(settings)) { raised { monitor.registered?(task) } }
  end

  # Neither the error nor one behind it shows it.
  def expect_hidden(error)
    chain = [error].tap { |all| all << all.last.cause while all.last.cause }
    commands = chain.map { |one| (one.command if one.respond_to?(:command)).inspect }
    expect([text_of(error), *commands].join("\n")).not_to match(/s3cret/)
  end

  # A sentinel that says this to whoever greets it.
  def error_where_is_said(text)
    ScriptedServer.open("HELLO", ->(command) { "-ERR #{format(text, password: command.last)}\r\n" }) { |sentinel| error_at(sentinel.port) }
  end

  it "shows in nothing where a sentinel quotes the greeting that it does not know" do
    error = error_where_is_said("unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `%<password>s`, ")
    expect(error).to be_a(RedisClient::Error)
    expect_hidden(error)
  end

  it "shows in nothing where a sentinel quotes another command that it does not know" do
    error = error_where_is_said("unknown command 'AUTH', with args beginning with: '%<password>s' ")
    expect(error).to be_a(RedisClient::Error)
    # Later versions of redis-client take any unknown command here for HELLO.
    expect(error.message).to match(/unknown command 'AUTH'|requires Redis 6/)
    expect_hidden(error)
  end

  it "shows in nothing where a sentinel repeats whatever it is told" do
    error = error_where_is_said("you said %<password>s")
    expect(error).to be_a(RedisClient::CommandError)
    expect(error.message).to start_with("ERR ")
    expect_hidden(error)
  end

  it "shows in nothing where a real server does not know HELLO" do
    file = Dir::Tmpname.create("patient_http_monitor") { |path| File.write(path, "rename-command HELLO \"\"\n") }
    server = RedisServer.new(include: file)
    # This one greets nobody.
    server.define_singleton_method(:client) { @client ||= RedisClient.config(host: "127.0.0.1", port: port, protocol: 2).new_client }
    server.start
    server.call("CONFIG", "SET", "requirepass", word)
    error = error_at(server.port)
    # Valkey 9 asks for the password before it looks at the command.
    expect(error).to be_a(RedisClient::UnsupportedServer).or(have_attributes(message: start_with("NOAUTH")))
    expect_hidden(error)
  ensure
    server&.stop
    File.delete(file) if file
  end
end
