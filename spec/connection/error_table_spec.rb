# frozen_string_literal: true

require "spec_helper"
require "support/observing"
require "support/scripted_server"

RSpec.describe "what a server may say, and what is raised then" do
  include Observing

  outcome_of = Struct.new(:error, :message, :own_config, :asked)
  define_method(:new_outcome) { |*values| outcome_of.new(*values) }

  # Calls ours and Sidekiq's own connection, each against a server of its own that says the same.
  #
  # @return [Array<Outcome>] of ours and of theirs
  def ask_both(command, answer, their_call:, **settings, &our_call)
    [our_call, their_call].map do |call|
      ScriptedServer.open(command, answer) { |server| through(server, **settings) { |pool| outcome(pool, server, &call) } }
    end
  end

  def through(server, **settings)
    pool = Sidekiq::RedisConnection.create(url: server.url, timeout: 0.4, reconnect_attempts: 0, **settings)
    Sidekiq::Client.via(pool) { yield pool }
  end

  # The port is left out of the message: it is another one for each server.
  def outcome(pool, server, &call)
    error = raised(&call) or raise "nothing was raised"
    config = pool.with { |client| client.config }
    own = error.respond_to?(:config) && error.config.equal?(config)
    new_outcome(error, error.message.sub(server.port.to_s, "PORT"), own, server.asked.size)
  end

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:read) { -> { monitor.heartbeat_timestamp_for(task("a-task-id")) } }
  let(:their_read) { -> { Sidekiq.redis { |redis| redis.call("ZSCORE", "a-key", "an-id") } } }
  let(:write) { -> { monitor.register(task("a-task-id", args: ["an-argument"])) } }
  let(:their_write) do
    lambda do
      Sidekiq.redis do |redis|
        redis.multi { |multi| [%w[ZADD a 1 b], %w[HSET a b c], %w[EXPIRE a 9], %w[EXPIRE b 9]].each { |it| multi.call(*it) } }
      end
    end
  end

  # The error as the server sends it => its class, and how often the server is asked.
  {
    "WRONGTYPE Operation against a key" => ["WrongTypeError", 1],
    "OOM command not allowed" => ["OutOfMemoryError", 1],
    "NOPERM this user has no permissions" => ["PermissionError", 1],
    "WRONGPASS invalid username-password pair" => ["AuthenticationError", 1],
    "READONLY You can't write against a read only replica." => ["ReadOnlyError", 2],
    "MASTERDOWN Link with MASTER is down" => ["MasterDownError", 1],
    "NOREPLICAS Not enough good replicas to write." => ["CommandError", 2],
    "UNBLOCKED force unblock from blocking operation" => ["CommandError", 2],
    "EXECABORT Transaction discarded because of: READONLY You can't" => ["CommandError", 2],
    "EXECABORT Transaction discarded because of previous errors." => ["CommandError", 1],
    "LOADING Redis is loading the dataset in memory" => ["CommandError", 1],
    "BUSY Redis is busy running a script." => ["CommandError", 1],
    "MISCONF Redis is configured to save RDB snapshots" => ["CommandError", 1],
    "NOAUTH Authentication required." => ["CommandError", 1],
    "CLUSTERDOWN Hash slot not served" => ["CommandError", 1],
    "MOVED 3999 127.0.0.1:1" => ["CommandError", 1],
    "ASK 3999 127.0.0.1:1" => ["CommandError", 1],
    "TRYAGAIN Multiple keys request" => ["CommandError", 1],
    "CROSSSLOT Keys in request don't hash to the same slot" => ["CommandError", 1],
    "ERR Error running script (call to f_1): @user_script:1: -WRONGTYPE Operation against" => ["WrongTypeError", 1],
    "ERR unknown command 'ZSCORE'" => ["CommandError", 1],
    "KAPUTT it is, said a proxy" => ["CommandError", 1],
    "KAPUTT" => ["CommandError", 1],
    "err  with  spaces " => ["CommandError", 1],
    "ERR in UTF-8: caf\u00e9" => ["CommandError", 1],
    "" => ["CommandError", 1]
  }.each do |said, (class_name, asked)|
    it "is redis-client's #{class_name} after #{(asked == 1) ? "one request" : "one repeat"}: #{said.inspect}" do
      ours, theirs = ask_both("ZSCORE", "-#{said}\r\n", their_call: their_read, &read)
      expect([ours.error.class.name, theirs.error.class.name]).to eq(["RedisClient::#{class_name}"] * 2)
      expect(ours.message).to eq(theirs.message).and(end_with(" (redis://127.0.0.1:PORT)"))
      expect([ours.own_config, theirs.own_config]).to eq([true, true])
      expect(ours.asked).to eq(asked)
      expect(ours.error.command).to eq(["ZSCORE"])
    end
  end

  it "is the error of redis-client without the arguments that Redis quotes" do
    said = "-ERR unknown command 'ZSCORE', with args beginning with: 'a' 'b'\r\n"
    ours, theirs = ask_both("ZSCORE", said, their_call: their_read, &read)
    expect(ours.error).to be_an_instance_of(theirs.error.class)
    expect(ours.message).to eq("ERR unknown command 'ZSCORE' (redis://127.0.0.1:PORT)")
  end

  # The first one is a lost connection to redis-client, the second one is not.
  {"MASTERDOWN Link with MASTER is down" => 3, "LOADING Redis is loading" => 1}.each do |said, asked|
    it "is repeated as reconnect_attempts say where redis-client does so: #{said.inspect}" do
      both = ask_both("ZSCORE", "-#{said}\r\n", their_call: their_read, reconnect_attempts: [0, 0], &read)
      expect(both.map(&:asked)).to eq([asked, asked])
    end
  end

  # As a proxy may speak, or a Redis that quotes the beginning of an argument and stops within a character.
  [
    ["alone", "ZSCORE", "-ERR caf\xE9\r\n", "ERR caf\u{FFFD} (redis", "ZSCORE", :read],
    ["of a class of its own", "ZSCORE", "-OOM caf\xE9\r\n", "OOM caf\u{FFFD} (redis", "ZSCORE", :read],
    ["among the replies to a transaction", "EXEC", "*4\r\n:1\r\n$2\r\nx\xE9\r\n-WRONGTYPE caf\xE9\r\n:1\r\n",
      "WRONGTYPE caf\u{FFFD} (redis", "MULTI", :write],
    ["before a transaction", "MULTI", "-NOPERM caf\xE9\r\n", "NOPERM caf\u{FFFD} (redis", "MULTI", :write]
  ].each do |name, command, answer, message, named, call|
    it "is the error of redis-client, with replacement characters, when it is not UTF-8: #{name}" do
      theirs = {read: their_read, write: their_write}.fetch(call)
      ours, theirs = ask_both(command, answer.b, their_call: theirs, &public_send(call))
      expect(ours.error).to be_an_instance_of(theirs.error.class)
      expect(ours.message).to start_with(message).and(be_valid_encoding)
      expect([ours.own_config, ours.error.command]).to eq([true, [named]])
    end
  end

  it "is followed by the next call's own answer when it is not UTF-8, whatever came behind it" do
    ScriptedServer.open("ZSCORE", "-ERR caf\xE9\r\n$1\r\n7\r\n".b, "$1\r\n5\r\n") do |server|
      through(server) do
        expect(raised(&read)).to be_an_instance_of(RedisClient::CommandError)
        expect([read.call, read.call]).to eq([5, 5])
      end
    end
  end

  it "is redis-client's error when it is not UTF-8 and the answer to the greeting" do
    ours, theirs = ask_both("HELLO", "-WRONGPASS caf\xE9\r\n".b, their_call: their_read, &read)
    expect([ours.error, theirs.error].map(&:class)).to eq([RedisClient::AuthenticationError] * 2)
    expect(ours.message).to include("WRONGPASS caf\u{FFFD}")
  end

  # The answer to EXEC => class, the beginning of the message, and the command that was refused.
  {
    "*4\r\n:1\r\n-WRONGTYPE Operation\r\n:1\r\n:1\r\n" => %w[WrongTypeError WRONGTYPE HSET],
    "-EXECABORT Transaction discarded because of previous errors.\r\n" => %w[CommandError EXECABORT EXEC],
    "-EXECABORT Transaction discarded because of: OOM command not allowed\r\n" => %w[CommandError EXECABORT EXEC],
    "-NOREPLICAS Not enough good replicas to write.\r\n" => %w[CommandError NOREPLICAS EXEC]
  }.each do |answer, (class_name, message, refused)|
    it "is redis-client's #{class_name} at the end of a transaction too: #{answer.inspect}" do
      ours, theirs = ask_both("EXEC", answer, their_call: their_write, &write)
      expect([ours.error.class.name, theirs.error.class.name]).to eq(["RedisClient::#{class_name}"] * 2)
      expect(ours.message).to eq(theirs.message).and(start_with(message))
      expect([ours.own_config, ours.error.command]).to eq([true, [refused]])
      expect(text_of(ours.error)).not_to include("an-argument")
    end
  end

  # What ends the connection, as redis-client sees it too => class, and what is in the message.
  {
    "hangs up" => [:close, "ConnectionError", /closed the connection/],
    "stops within a reply" => ["$100\r\nabc", "ReadTimeoutError", /Waited 0\.4 seconds/],
    "speaks HTTP" => ["HTTP/1.1 400 Bad Request\r\n\r\n", "ProtocolError", /not the Redis protocol/],
    "sends bytes without sense" => ["\x00\xFF\xFE\r\n".b, "ProtocolError", /not the Redis protocol/]
  }.each do |name, (answer, class_name, message)|
    it "is redis-client's #{class_name} when it #{name}" do
      ours, theirs = ask_both("ZSCORE", answer, their_call: their_read, &read)
      expect([ours.error.class.name, theirs.error.class.name]).to eq(["RedisClient::#{class_name}"] * 2)
      expect(ours.message).to match(message).and(end_with(" (redis://127.0.0.1:PORT)"))
      expect([ours.own_config, ours.asked]).to eq([true, 1])
    end
  end

  # What redis-client hands to its caller as it is, or fails at with errors of Ruby's, up to NoMemoryError.
  {
    "a reply of another type: an array" => "*1\r\n$8\r\na-secret\r\n",
    "a reply of another type: a map" => "%1\r\n$8\r\na-secret\r\n:1\r\n",
    "a reply of another type: a text" => "$8\r\na-secret\r\n",
    "a reply of another type: a status" => "+OK\r\n",
    "a reply of another type: a truth" => "#t\r\n",
    "a number that is none" => ":abc\r\n",
    "a length that is none" => "$abc\r\n",
    "arrays within arrays without end" => "#{"*1\r\n" * 200}:1\r\n",
    "a status that is not UTF-8" => "+caf\xE9\r\n".b
  }.each do |name, answer|
    it "is ProtocolError, without what came, and then the next call's own answer: #{name}" do
      ScriptedServer.open("ZSCORE", answer, "$1\r\n5\r\n") do |server|
        through(server) do |pool|
          ours = outcome(pool, server, &read)
          expect(ours.error).to be_an_instance_of(RedisClient::ProtocolError)
          expect(ours.own_config).to be(true)
          expect(text_of(ours.error)).not_to include("a-secret")
          expect(read.call).to eq(5)
        end
      end
    end
  end

  # Redis-client asks for the memory, and raises NoMemoryError; a native parser that did so would end the process.
  ["*1000000000000\r\n", "*9223372036854775807\r\n", "%9223372036854775807\r\n", "$1000000000000\r\n", "!-5\r\n"].each do |answer|
    it "is an error of redis-client, and no matter of memory, when it announces more than there can be: #{answer.inspect}" do
      ScriptedServer.open("ZSCORE", answer, "$1\r\n5\r\n") do |server|
        through(server) do
          expect(raised(&read)).to be_a(RedisClient::Error)
          expect(read.call).to eq(5)
        end
      end
    end
  end

  ["_\r\n", "*-1\r\n", "*1\r\n:1\r\n", "+OK\r\n"].each do |answer|
    it "is ProtocolError when a transaction did not answer each of its commands: #{answer.inspect}" do
      ScriptedServer.open("EXEC", answer) do |server|
        through(server) do
          expect { write.call }.to raise_error(RedisClient::ProtocolError, /EXEC/)
        end
      end
    end
  end

  it "is the answer all the same when messages of its own come before it" do
    ScriptedServer.open("ZSCORE", ">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n$1\r\n5\r\n") do |server|
      through(server) { expect(read.call).to eq(5) }
    end
  end

  # The answer to the greeting => class.
  {
    "-LOADING Redis is loading the dataset in memory\r\n" => "CommandError",
    "-NOAUTH HELLO must be called with the client already authenticated\r\n" => "CommandError",
    "-WRONGPASS invalid username-password pair\r\n" => "AuthenticationError",
    "-NOPERM this user has no permissions\r\n" => "PermissionError",
    "-ERR max number of clients reached\r\n" => "CommandError",
    "-ERR unknown command 'HELLO', with args beginning with: '3'\r\n" => "UnsupportedServer",
    "-NOPROTO unsupported protocol version\r\n" => "CommandError",
    "-KAPUTT it is, said a proxy\r\n" => "CommandError",
    :close => "CannotConnectError",
    :silence => "CannotConnectError",
    "HTTP/1.1 400 Bad Request\r\n\r\n" => "ProtocolError"
  }.each do |answer, class_name|
    it "is redis-client's #{class_name} as the answer to the greeting: #{answer.inspect}" do
      ours, theirs = ask_both("HELLO", answer, their_call: their_read, password: "s3cret-word", &read)
      expect([ours.error.class.name, theirs.error.class.name]).to eq(["RedisClient::#{class_name}"] * 2)
      expect(ours.error.cause.class).to eq(theirs.error.cause.class) if class_name == "CannotConnectError"
      expect([ours.own_config, ours.message]).to match([true, end_with(" (redis://127.0.0.1:PORT)")])
      expect(text_of(ours.error)).not_to include("s3cret-word")
      expect(ours.error.command).to eq(["HELLO"]) if ours.error.is_a?(RedisClient::HasCommand)
    end
  end

  # Later versions of redis-client take these greetings for none, and go on.
  {"MASTERDOWN Link with MASTER is down" => "MasterDownError", "READONLY You can't" => "ReadOnlyError"}.each do |said, cause|
    it "is CannotConnectError because of #{cause} as the answer to the greeting: #{said.inspect}" do
      ScriptedServer.open("HELLO", "-#{said}\r\n") do |server|
        error = through(server) { raised(&read) }
        expect([error.class, error.cause.class].map(&:name)).to eq(["RedisClient::CannotConnectError", "RedisClient::#{cause}"])
        expect(error.message).to eq("#{said} (redis://127.0.0.1:#{server.port})")
      end
    end
  end
end
