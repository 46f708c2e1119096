# frozen_string_literal: true

require "spec_helper"
require "io/wait"
require "support/fiber_scheduler"
require "support/own_server"

# A callable asks a vault, and whatever else this process does happens meanwhile. The socket is there already then.
RSpec.describe "While a password callable waits" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:word) { "s3cret-word" }

  before { server.call("ACL", "SETUSER", "reporter", "reset", "on", ">#{word}", "~*", "&*", "+@all") }
  after { server.call("ACL", "DELUSER", "reporter") }

  def asking(vault)
    Sidekiq::RedisConnection.create(url: server.url, username: "reporter", password: vault, timeout: 5, reconnect_attempts: 0)
  end

  # How often the server was greeted so far, over whatever connection.
  def greetings
    Integer(server.call("INFO", "commandstats")[/^cmdstat_hello:calls=(\d+)/, 1])
  end

  # In a reactor that is forked at this moment there are two copies of the fiber that calls. The child's gets its password after the
  # parent's call was answered, and the socket is the parent's.
  it "a forked child sends nothing over its parent's connection, and is told why its call fails" do
    asked = answered = false
    vault = lambda do |_user|
      asked = true
      sleep 0.01 until answered
      word
    end
    via = asking(vault)
    parent = Process.pid
    registered = Thread::Queue.new
    go_on, parents_end = IO.pipe
    childs_end, says = IO.pipe
    forked = nil
    reactor = Thread.new do
      Fiber.set_scheduler(FiberScheduler.new)
      Fiber.schedule do
        error = raised { Sidekiq::Client.via(via) { monitor.register(task("first")) } }
        (Process.pid == parent) ? registered << error : says.write("#{error.class}: #{error&.message}")
      end
      Fiber.schedule do
        sleep 0.01 until asked
        forked = fork do
          # The child is busy with something else for as long as its parent needs; then its reactor goes on.
          IO.select([go_on], nil, nil, 20)
          answered = true
          Fiber.scheduler.run
        ensure
          Process.exit!(true)
        end
        answered = true
      end
      Fiber.scheduler.run
    end
    reactor.join
    expect(registered.pop).to be_nil
    expect(Sidekiq::Client.via(via) { monitor.registered?(task("first")) }).to be(true)
    before = greetings

    parents_end.write(".")
    Process.wait(forked)
    expect(greetings).to eq(before)
    says.close
    expect(childs_end.read).to match(/\ARedisClient::\w+: .*forked in the middle of the call/)
    Sidekiq::Client.via(via) do
      monitor.register(task("second"))
      expect(monitor.registered_task_ids).to contain_exactly(monitor.full_task_id("first"), monitor.full_task_id("second"))
    end
    expect(pool_counts(via)).to eq([1, 1])
  ensure
    [go_on, parents_end, childs_end, says].compact.each(&:close)
  end

  # Their numbers are given again at once: what is written to an old one goes to whoever has it now.
  it "closed sockets are not written to by their old numbers" do
    pairs = nil
    vault = lambda do |_user|
      mine = nil
      eventually { mine = socket_of_the_call }
      number = mine.fileno
      mine.close
      pairs = [UNIXSocket.pair]
      pairs << UNIXSocket.pair until pairs.flatten.map(&:fileno).max >= number
      expect(pairs.flatten.map(&:fileno)).to include(number)
      word
    end
    Sidekiq::Client.via(asking(vault)) do
      expect { monitor.registered?(task) }.to raise_error(RedisClient::ConnectionError)
    end
    expect(pairs.flatten.count { |socket| socket.wait_readable(0) }).to eq(0)
  ensure
    pairs&.flatten&.each(&:close)
  end

  def socket_of_the_call
    ports = clients_of(server).map { |client| Integer(client["addr"][/\d+\z/]) }
    ObjectSpace.each_object(Socket).reject(&:closed?).find { |socket| ports.include?(socket.local_address.ip_port) }
  end
end
