# frozen_string_literal: true

require "support/observing"
require "support/redis_server"

# A master, its replicas, and sentinels that watch them: real ones, of the suite's own, on free ports, gone when they are stopped or
# when this process ends.
class Sentinels
  include Observing

  # In ms: how soon sentinels take a silent server for dead, and after how long they try a failover again.
  DOWN_AFTER = 1_000
  FAILOVER_TIMEOUT = 3_000
  # In ms, to bring down what is 1 to 30 s: how often sentinels ask servers how they are and tell each other what they know, and
  # for how long they do nothing after the machine kept them from their work. A server before Redis 7 cannot be told.
  PACE = {"info-period" => 500, "publish-period" => 500, "ping-period" => 200, "ask-period" => 200,
          "tilt-period" => 1_000}.freeze
  # What a machine under load may need for anything here, in s.
  PATIENCE = 40

  # One sentinel. It keeps what it learns in its configuration file.
  class Sentinel < RedisServer
    # @param directives [Array<String>] lines of sentinel.conf
    def initialize(directives)
      super()
      @directives = directives
    end

    def start
      File.write(file, ["port #{port}", "bind 127.0.0.1", "dir #{dir}", "logfile #{dir}/sentinel.log", *@directives, ""].join("\n"))
      @pid = Process.spawn(self.class.executable, file, "--sentinel", out: File::NULL, err: File::NULL, pgroup: true)
      at_exit { stop if Process.pid == @owner }
      wait_until_it_answers
    end

    private

    def file
      File.join(dir, "sentinel.conf")
    end
  end

  class << self
    # @param name [String] of the master
    # @param server [RedisServer]
    # @param quorum [Integer] how many sentinels must agree that it is dead
    # @param down_after [Integer] in ms
    # @return [Sentinel] one that answers, and watches that server
    def watch(name, server, quorum: 1, down_after: DOWN_AFTER)
      sentinel = Sentinel.new(["sentinel monitor #{name} 127.0.0.1 #{server.port} #{quorum}",
        "sentinel down-after-milliseconds #{name} #{down_after}", "sentinel failover-timeout #{name} #{FAILOVER_TIMEOUT}",
        "sentinel parallel-syncs #{name} 2"])
      sentinel.start
      sentinel.call("SENTINEL", "DEBUG", *PACE.flatten)
      sentinel
    rescue RedisClient::CommandError
      sentinel
    end
  end

  attr_reader :name, :servers, :sentinels

  # @param replicas [Integer]
  # @param sentinels [Integer]
  def initialize(name: "the-master", replicas: 2, sentinels: 3)
    @name = name
    # A replica that waits 5 s for more of its kind before it gets the data would make every failover that much longer.
    @servers = Array.new(replicas + 1) { RedisServer.start(repl_diskless_sync_delay: 0) }
    @servers.drop(1).each { |replica| replica.call("REPLICAOF", "127.0.0.1", @servers.first.port) }
    @sentinels = Array.new(sentinels) { self.class.watch(name, @servers.first, quorum: (sentinels / 2) + 1) }
    settle
  end

  # @param settings [Hash] of a client
  # @return [ConnectionPool] Sidekiq's, through the sentinels
  def pool(**settings)
    Sidekiq::RedisConnection.create(url: "redis://#{name}/0", sentinels: addresses, timeout: 1, **settings)
  end

  # @return [Array<Hash>] of the sentinels, as Sidekiq's settings name them
  def addresses
    sentinels.map { |sentinel| {host: "127.0.0.1", port: sentinel.port} }
  end

  # @return [RedisServer, nil] the one that every sentinel names
  def named
    ports = sentinels.map { |sentinel| Integer(sentinel.call("SENTINEL", "get-master-addr-by-name", name).last) }
    servers.find { |server| server.port == ports.first } if ports.uniq.size == 1
  end

  # @return [RedisServer, nil] the same, once it is a master indeed
  def master
    server = named
    server if server&.pid && server.call("ROLE").first == "master"
  end

  # @return [Array<RedisServer>] those that follow the master
  def replicas(master = self.master)
    servers.select { |server| server.pid && server.call("ROLE").values_at(0, 2, 3) == ["slave", master&.port, "connected"] }
  end

  # Makes one of the replicas the master though the master is well.
  def switch_over
    sentinels.first.call("SENTINEL", "FAILOVER", name)
  end

  # Brings back whoever is gone, and waits until each server has its place and each sentinel knows all of them.
  #
  # @return [RedisServer] the master
  def settle
    servers.each { |server| server.start unless server.pid }
    eventually(within: PATIENCE) { settled? } or raise "no settled topology: #{sentinels.map { |one| state(one) }}"
    master
  end

  def stop
    (sentinels + servers).each(&:stop)
  end

  private

  def settled?
    return false unless (master = self.master)

    followers = servers.size - 1
    replicas(master).size == followers && sentinels.all? do |sentinel|
      known = state(sentinel).values_at("flags", "num-slaves", "num-other-sentinels")
      links = sentinel.call("SENTINEL", "REPLICAS", name).map { |replica| replica.values_at("flags", "master-link-status") }
      known == ["master", followers.to_s, (sentinels.size - 1).to_s] && links == [%w[slave ok]] * followers
    end
  rescue RedisClient::ConnectionError
    false
  end

  def state(sentinel)
    sentinel.call("SENTINEL", "MASTER", name)
  end
end
