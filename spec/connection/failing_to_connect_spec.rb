# frozen_string_literal: true

require "spec_helper"
require "support/own_server"

RSpec.describe "a Redis that cannot be connected to" do
  include_context "with a server of its own"

  # @return [Array(Exception, Exception)] ours and that of Sidekiq's own connection, with the same settings
  def both_errors(**settings)
    Sidekiq::Client.via(Sidekiq::RedisConnection.create(settings)) do
      ours = raised { monitor.register(task) }
      theirs = raised { Sidekiq.redis { |redis| redis.call("PING") } }
      [ours, theirs]
    end
  end

  it "raises CannotConnectError at once where nobody listens, with host and port, and without the password" do
    port = RedisServer.free_port
    ours = theirs = nil
    elapsed = seconds { ours, theirs = both_errors(url: "redis://someone:s3cret-word@127.0.0.1:#{port}/1", timeout: 30) }

    expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
    expect(ours.message).to include("127.0.0.1:#{port}")
    expect(text_of(ours)).not_to include("s3cret-word")
    expect(elapsed).to be < 2
  end

  it "raises CannotConnectError for a host name that does not exist" do
    ours, theirs = both_errors(url: "redis://no-such-host.invalid:6379", reconnect_attempts: false)
    expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
    expect(ours.message).to include("no-such-host.invalid:6379")
  end

  it "raises AuthenticationError for a wrong password, which it does not show" do
    server.call("ACL", "SETUSER", "reporter", "reset", "on", ">right", "~*", "+@all")
    ours, theirs = both_errors(url: "redis://reporter:s3cret-wrong@127.0.0.1:#{server.port}")

    expect([ours.class, theirs.class]).to eq([RedisClient::AuthenticationError] * 2)
    expect(ours.message).to include("WRONGPASS", "127.0.0.1:#{server.port}")
    expect(text_of(ours)).not_to include("s3cret-wrong")
    expect(ours.command.join).not_to include("s3cret-wrong")
  end

  it "raises the error of redis-client for a db that does not exist" do
    ours, theirs = both_errors(url: server.url(99))
    expect(theirs).to be_a(RedisClient::CommandError)
    expect([ours.class, ours.message]).to eq([theirs.class, theirs.message])
  end

  it "raises CannotConnectError, as Sidekiq's connection does, when whoever listens hangs up" do
    listener = TCPServer.new("127.0.0.1", 0)
    hanging_up = Thread.new { loop { listener.accept.close } }
    ours, theirs = both_errors(host: "127.0.0.1", port: listener.local_address.ip_port)

    expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
  ensure
    hanging_up&.kill&.join
    listener&.close
  end

  it "raises CannotConnectError, as Sidekiq's connection does, when whoever listens does not answer" do
    ours = theirs = nil
    server.freeze_for_a_while { ours, theirs = both_errors(url: server.url, timeout: 0.2) }

    expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
  end

  it "raises an error of the connection when whoever listens does not speak Redis" do
    listener = TCPServer.new("127.0.0.1", 0)
    babbling = Thread.new { loop { listener.accept.write("HTTP/1.1 400 Bad Request\r\n\r\n") } }
    ours, theirs = both_errors(host: "127.0.0.1", port: listener.local_address.ip_port, timeout: 0.5)

    expect(theirs).to be_a(RedisClient::Error)
    expect(ours).to be_a(RedisClient::Error)
  ensure
    babbling&.kill&.join
    listener&.close
  end

  # The server answers once and closes. Sidekiq 8's connection has more commands under way then, and raises the error of the last.
  it "raises CommandError with the server's words, as the connection of Sidekiq 7 does, when it has as many clients as it may" do
    server.call("CONFIG", "SET", "maxclients", 1)
    ours, theirs = both_errors(url: server.url, reconnect_attempts: 0)

    expect(theirs).to be_a((Sidekiq::VERSION.to_i < 8) ? RedisClient::CommandError : RedisClient::Error)
    expect(ours).to be_a(RedisClient::CommandError)
    expect(ours.message).to include("max number of clients")
  ensure
    server.call("CONFIG", "SET", "maxclients", 1_000)
  end

  it "raises CannotConnectError, as Sidekiq's connection does, when no sentinel can be reached" do
    sentinels = Array.new(2) { {host: "127.0.0.1", port: RedisServer.free_port} }
    ours, theirs = both_errors(url: "redis://the-master/0", sentinels: sentinels, timeout: 1, reconnect_attempts: 0)

    expect([ours.class, theirs.class]).to eq([RedisClient::CannotConnectError] * 2)
  end

  it "does not show the password when the server does not know how to log in, and quotes what it was sent" do
    file = File.join(server.dir, "without_auth.conf")
    File.write(file, "rename-command AUTH \"\"\n")
    unable = RedisServer.start(include: file)
    # Sidekiq itself speaks protocol 3, which logs in by HELLO.
    settings = RedisClient.config(url: "redis://someone:s3cret-word@127.0.0.1:#{unable.port}/0", protocol: 2)
    error = Sidekiq::Client.via(ConnectionPool.new(size: 3) { settings.new_client }) { raised { monitor.register(task) } }

    expect(error).to be_a(RedisClient::CommandError)
    expect(error.message).to include("unknown command")
    expect(text_of(error)).not_to include("s3cret-word")
    expect(error.command.join).not_to include("s3cret-word")
  ensure
    unable&.stop
  end

  context "when the garbage collector does not happen to run" do
    # In s: were a place lost by each failure, a later call would wait for one.
    let(:patience) { {timeout: 30, pool_timeout: 30} }
    let(:settings) { {url: server.url, **patience} }

    before { GC.disable }
    after { GC.enable }

    it "says so each time, however often it is asked" do
      monitor = monitor()
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: "redis://127.0.0.1:#{RedisServer.free_port}", **patience)) do
        120.times do
          error = nil
          elapsed = seconds { error = raised { monitor.register(task) } }
          expect(error).to be_a(RedisClient::CannotConnectError)
          expect(elapsed).to be < 2
        end
      end
    end

    it "is no trouble any more as soon as it is back" do
      monitor = monitor()
      server.kill
      120.times { expect { monitor.register(task) }.to raise_error(RedisClient::CannotConnectError) }
      server.start

      expect(seconds { monitor.register(task) }).to be < 2
      expect(monitor.registered_task_ids.size).to eq(1)
    end
  end
end
