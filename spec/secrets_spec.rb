# frozen_string_literal: true

require "spec_helper"
require "pp"
require "stringio"
require "support/certificates"
require "support/own_server"
require "support/scripted_server"

RSpec.describe "a password" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  # The one that the server wants, and another. Characters that a URL writes otherwise are not among them.
  let(:right) { "s3cret-word-that-is-right" }
  let(:wrong) { "s3cret-word-that-is-wrong" }
  let(:secret) { /s3cret-word/ }

  before { admit(right) }
  after { server.call("ACL", "DELUSER", "reporter") }

  def admit(password)
    server.call("ACL", "SETUSER", "reporter", "reset", "on", ">#{password}", "~*", "&*", "+@all")
  end

  def create(**settings)
    Sidekiq::RedisConnection.create({timeout: 1, reconnect_attempts: 0, **settings})
  end

  # All the ways in which a password is given.
  def ways(password, port = server.port)
    {
      "url" => {url: "redis://reporter:#{password}@127.0.0.1:#{port}/1"},
      "option" => {url: "redis://127.0.0.1:#{port}/1", username: "reporter", password: password},
      "callable" => {url: "redis://127.0.0.1:#{port}/1", username: "reporter", password: ->(_user) { password }}
    }
  end

  # Whatever a person, a logger or an error tracker may print of an exception, those behind it included.
  def printed(error)
    chain = [error].tap { |all| all << all.last.cause while all.last.cause }
    chain.flat_map do |one|
      [text_of(one), one.backtrace, one.backtrace_locations, one.to_s, one.full_message(highlight: true), PP.pp(one, +""),
        (one.command if one.respond_to?(:command)).inspect]
    end.join("\n")
  end

  # Whatever is printed of the objects that are there once the monitor is in use.
  def printed_objects(sidekiq_pool)
    connector = PatientHttpMonitor.const_get(:Connector)
    connections = ObjectSpace.each_object(PatientHttpMonitor.const_get(:Connection)).to_a
    pools = [sidekiq_pool, PatientHttpMonitor.const_get(:Pools).for(sidekiq_pool)]
    objects = [monitor, monitor.class, monitor.config, PatientHttpMonitor, PatientHttpMonitor.settings, *pools, *connections,
      *ObjectSpace.each_object(connector)]
    expect(objects.grep(connector)).not_to be_empty
    expect(connections).not_to be_empty
    objects.flat_map { |object| [object.inspect, object.to_s, PP.pp(object, +"")] }.join("\n")
  end

  # Everything that is called here fails, in the same way.
  def errors_of_all_calls
    calls = [
      -> { monitor.register(task) }, -> { monitor.registered?(task) }, -> { monitor.ping_process }, -> { monitor.acquire_gc_lock },
      -> { monitor.cleanup_orphaned_requests(0, nil) }, -> { PatientHttp::Sidekiq::TaskMonitor.inflight_count }
    ]
    calls.map { |call| raised(&call) }
  end

  def expect_hidden(errors, classes)
    expect(errors.map(&:class).uniq).to eq([classes])
    errors.each { |error| expect(printed(error)).not_to match(secret) }
  end

  it "shows in nothing when it is wrong, however it was given" do
    ways(wrong).each_value do |settings|
      Sidekiq::Client.via(create(**settings)) { expect_hidden(errors_of_all_calls, RedisClient::AuthenticationError) }
    end
  end

  it "shows in nothing when nobody listens, or does not answer" do
    ways(right, RedisServer.free_port).each_value do |settings|
      Sidekiq::Client.via(create(**settings)) { expect_hidden(errors_of_all_calls, RedisClient::CannotConnectError) }
    end
    ways(right).each_value do |settings|
      Sidekiq::Client.via(create(**settings, timeout: 0.1)) do
        monitor.registered?(task)
        server.freeze_for_a_while do
          expect_hidden([raised { monitor.register(task) }], RedisClient::ReadTimeoutError)
          expect_hidden([raised { monitor.register(task) }], RedisClient::CannotConnectError)
        end
      end
    end
  end

  it "shows in nothing when it is right, neither in the errors of calls nor in the objects" do
    ways(right).each_value do |settings|
      via = create(**settings)
      Sidekiq::Client.via(via) do
        monitor.ping_process
        server.call("ACL", "SETUSER", "reporter", "-@all")
        expect_hidden(errors_of_all_calls, RedisClient::PermissionError)
        admit(right)
        monitor.ping_process
        expect(printed_objects(via)).not_to match(secret)
      end
    end
  end

  it "shows in nothing where the server repeats whatever it is told, at the greeting or later" do
    heard = []
    echo = lambda do |command|
      heard.concat(command)
      "-ERR you said #{heard.join(" ")}\r\n"
    end
    %w[HELLO ZSCORE].each do |name|
      heard.replace([wrong])
      ScriptedServer.open(name, echo) do |repeating|
        ways(wrong, repeating.port).each_value do |settings|
          Sidekiq::Client.via(create(**settings, db: 0)) do
            error = raised { monitor.registered?(task) }
            expect(error).to be_an_instance_of(RedisClient::CommandError)
            expect(error.message).to start_with("ERR ")
            expect(printed(error)).not_to match(secret)
          end
        end
      end
    end
    expect(heard).to include(wrong)
  end

  it "shows in nothing where a connection is older than the password, and the server repeats the one that it was opened with" do
    words = ["#{right}-1", "#{right}-2"]
    # The first call waits for its answer until the second has opened a connection of its own.
    answer = lambda do |_command|
      eventually { words.empty? }
      "-ERR you logged in with #{right}-1\r\n"
    end
    ScriptedServer.open("ZSCORE", answer) do |repeating|
      via = create(url: "redis://127.0.0.1:#{repeating.port}/0", username: "reporter", password: ->(_user) { words.shift }, timeout: 20)
      calls = Array.new(2) { Thread.new { Sidekiq::Client.via(via) { raised { monitor.registered?(task) } } } }
      expect_hidden(calls.map(&:value), RedisClient::CommandError)
      expect(words).to be_empty
    end
  end

  describe "behind TLS" do
    before(:context) do
      @dir = Dir.mktmpdir("patient_http_monitor")
      @authority, @stranger = Certificates.new(@dir, "authority"), Certificates.new(@dir, "stranger")
      certificate, key = @authority.issue("server", "DNS:localhost")
      @tls_port = RedisServer.free_port
      @tls = RedisServer.start(tls_port: @tls_port, tls_cert_file: certificate, tls_key_file: key,
        tls_ca_cert_file: @authority.ca_file, tls_auth_clients: "no")
    end

    after(:context) do
      @tls.stop
      FileUtils.rm_rf(@dir)
    end

    it "shows in nothing, whether the certificate, the password or nothing is wrong" do
      @tls.call("ACL", "SETUSER", "reporter", "reset", "on", ">#{right}", "~*", "+@all")
      settings = ->(password, authority) do
        {url: "rediss://reporter:#{password}@localhost:#{@tls_port}", ssl_params: {ca_file: authority.ca_file}, timeout: 5}
      end
      Sidekiq::Client.via(create(**settings.call(right, @stranger))) do
        expect_hidden(errors_of_all_calls, RedisClient::CannotConnectError)
      end
      Sidekiq::Client.via(create(**settings.call(wrong, @authority))) do
        expect_hidden(errors_of_all_calls, RedisClient::AuthenticationError)
      end
      via = create(**settings.call(right, @authority))
      Sidekiq::Client.via(via) do
        monitor.register(task)
        expect(printed_objects(via)).not_to match(secret)
      end
    end
  end

  describe "of Sentinel" do
    before(:context) do
      @sentinel_dir = Dir.mktmpdir("patient_http_monitor")
      @sentinel_port = RedisServer.free_port
      file = File.join(@sentinel_dir, "sentinel.conf")
      File.write(file, <<~CONF)
        port #{@sentinel_port}
        bind 127.0.0.1
        dir #{@sentinel_dir}
        requirepass s3cret-word-of-sentinel
        sentinel monitor the-master 127.0.0.1 #{@server.port} 1
      CONF
      @sentinel = Process.spawn(RedisServer.executable, file, "--sentinel", out: File::NULL, err: File::NULL, pgroup: true)
    end

    after(:context) do
      Process.kill(:KILL, @sentinel)
      Process.wait(@sentinel)
      FileUtils.rm_rf(@sentinel_dir)
    end

    def sentinel_settings(password, master_password)
      {url: "redis://reporter:#{master_password}@the-master/0", sentinels: [{host: "127.0.0.1", port: @sentinel_port}],
       sentinel_password: password, timeout: 3}
    end

    it "shows in nothing, nor does the master's, whichever is wrong" do
      via = create(**sentinel_settings("s3cret-word-of-sentinel", right))
      Sidekiq::Client.via(via) do
        expect(eventually(within: 20) { raised { monitor.ping_process }.nil? }).to be(true)
        expect(printed_objects(via)).not_to match(secret)
      end
      [sentinel_settings(wrong, right), sentinel_settings("s3cret-word-of-sentinel", wrong)].each do |settings|
        Sidekiq::Client.via(create(**settings)) do
          errors = Array.new(2) { raised { monitor.register(task) } }
          expect(errors.map(&:message)).to all(start_with("WRONGPASS"))
          expect_hidden(errors, RedisClient::AuthenticationError)
        end
      end
    end
  end

  describe "in Sidekiq's log at its most talkative" do
    let(:log) { StringIO.new }

    # Of lines of one kind there is one a minute.
    def forget_lines
      PatientHttpMonitor.const_get(:Recovery).const_get(:LIMIT).instance_variable_get(:@last).clear
    end

    around do |example|
      before = Sidekiq.default_configuration.logger
      Sidekiq.default_configuration.logger = Logger.new(log, level: Logger::DEBUG)
      example.run
    ensure
      Sidekiq.default_configuration.logger = before
    end

    # The caller's logger is called between two steps of the sweep.
    def breaking_logger(log, &break_it)
      Logger.new(log, level: Logger::DEBUG).tap do |logger|
        logger.formatter = lambda do |severity, _, _, message|
          break_it.call
          "#{severity} #{message}\n"
        end
      end
    end

    it "shows nowhere, also when Redis is lost in the middle of a sweep" do
      ways(right).each_value do |settings|
        forget_lines
        admit(right)
        Sidekiq::Client.via(create(**settings)) do
          3.times { |number| PatientHttp::Sidekiq::TaskMonitor.new(config).register(task(number.to_s)) }
          sleep 0.005
          breaking = breaking_logger(log) do
            admit("s3cret-word-another")
            server.call("CLIENT", "KILL", "USER", "reporter")
          end
          raised { monitor.cleanup_orphaned_requests(0, breaking) }
          expect_hidden(errors_of_all_calls, RedisClient::AuthenticationError)
        end
        server.call("FLUSHALL")
      end
      expect(log.string).to include("Re-enqueued orphaned request", "WRONGPASS")
      expect(log.string.scan("Sweep ended early").size).to eq(3)
      expect(log.string).not_to match(secret)
    end
  end
end
