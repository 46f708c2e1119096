# frozen_string_literal: true

require "spec_helper"
require "logger"
require "stringio"
require "timeout"
require "support/registry"
require "support/sidekiq_hooks"

RSpec.describe PatientHttp::Sidekiq::TaskMonitor, "details of the requests in flight" do
  include Registry

  let(:details) { "sidekiq:patient_http:inflight_details" }
  let(:index) { "sidekiq:patient_http:inflight_details_index" }
  let(:log) { StringIO.new }
  let(:logger) { Logger.new(log) }
  let(:request_class) { Struct.new(:url, :http_method) }
  let(:task_class) { Struct.new(:id, :task_handler, :request) }
  let(:config_class) { Struct.new(:max_connections, :heartbeat_interval, :orphan_threshold, :inflight_details?, :inflight_url_sanitizer, :logger) }
  let(:config) { config_class.new(10, 60, 300, true, nil, logger) }
  let(:monitor) { described_class.new(config) }

  def request(id, url = "https://user:s3cret-word@api.example.com/v1/chat?key=s3cret-word#top", http_method: :post)
    task_class.new(id, task("").task_handler, request_class.new(url, http_method))
  end

  def stored(id)
    json = REDIS.call("HGET", details, monitor.full_task_id(id))
    json && JSON.parse(json)
  end

  def sizes
    [REDIS.call("ZCARD", index), REDIS.call("HLEN", details)]
  end

  it "are written with the entry: URL without what is secret, method, processor; scored by the moment of the registration", gc_stress: 1 do
    monitor.register(request("a"), processor_name: :llm)
    expect(stored("a")).to eq("url" => "https://api.example.com/v1/chat", "method" => "POST", "processor" => "llm")
    expect(Float(REDIS.call("ZSCORE", index, monitor.full_task_id("a")))).to be_within(2_000).of(server_ms)
    expect([ttl(details), ttl(index)]).to eq([604_800, 604_800])
    monitor.register(request("b"))
    expect(stored("b")).to include("processor" => nil)
  end

  it "are not written where the config does not want them, or does not know of them" do
    config[:inflight_details?] = false
    monitor.register(request("a"), processor_name: "llm")
    described_class.new(Tasks::Config.new(10, 60, 300)).register(request("b"), processor_name: "llm")
    expect([sizes, described_class.inflight_count]).to eq([[0, 0], 2])
  end

  it "go with the entry: when it is unregistered, recovered, or without a job" do
    %w[done orphan ghost].each { |id| monitor.register(request(id)) }
    monitor.unregister(request("done"))
    expect(sizes).to eq([2, 2])
    age(monitor.full_task_id("orphan"), monitor.full_task_id("ghost"))
    REDIS.call("HDEL", Registry::JOBS, monitor.full_task_id("ghost"))
    expect(described_class.new(config).cleanup_orphaned_requests(300, nil)).to eq(1)
    expect(sizes).to eq([0, 0])
  end

  it "go too when the config has changed its mind meanwhile" do
    monitor.register(request("a"))
    config[:inflight_details?] = false
    monitor.unregister(request("a"))
    expect(sizes).to eq([0, 0])
  end

  it "are forgotten by a sweep when another version has recovered the entry and left them" do
    monitor.ping_process
    %w[a b].each { |id| monitor.register(request(id)) }
    REDIS.call("ZREM", Registry::INDEX, monitor.full_task_id("a"))
    REDIS.call("HDEL", Registry::JOBS, monitor.full_task_id("a"))
    described_class.new(config).cleanup_orphaned_requests(300, nil)
    expect([stored("a"), sizes]).to eq([nil, [1, 1]])
  end

  it "have their TTL renewed by heartbeats, also those of another version" do
    id = write_entry("h:1:ff/other", payload: "{}", score: server_ms)
    REDIS.call("HSET", details, id, "{}")
    REDIS.call("ZADD", index, 1, id)
    described_class.new(Tasks::Config.new(10, 60, 300)).update_heartbeats(["mine"])
    expect([ttl(details), ttl(index)]).to eq([604_800, 604_800])
  end

  it "do not stop a registration when they cannot be built; the config's logger is told, without the URL" do
    config.inflight_url_sanitizer = ->(url) { raise ArgumentError, "cannot take #{url} apart" }
    [task("without-a-request"), request("refused")].each { |odd| expect(monitor.register(odd)).to be_nil }
    expect([described_class.inflight_count, sizes]).to eq([2, [0, 0]])
    expect(log.string.lines).to match([
      /WARN.*\[PatientHttp::Sidekiq\] The request "without-a-request" is registered without details: NoMethodError$/,
      /WARN.*"refused" is registered without details: ArgumentError$/
    ])
  end

  it "tell Sidekiq's logger when the config has none, or one that fails" do
    failing = Object.new
    def failing.warn(_line) = raise("no")
    expect(sidekiq_log(Logger::WARN) do
      [nil, failing].each { |one| config.logger = one and monitor.register(task("odd")) }
      config.logger = nil
      monitor.register(task("odd"))
    end.scan("is registered without details").size).to eq(2)
  end

  it "take a URL of at most 500 characters, and one that the config's own sanitizer made" do
    monitor.register(request("long", "https://example.com/#{"a" * 1_000}"))
    expect(stored("long")["url"]).to eq("https://example.com/#{"a" * 480}")
    config.inflight_url_sanitizer = ->(url) { url.sub("v1", "...") }
    monitor.register(request("own", "https://example.com/v1/x"))
    expect(stored("own")["url"]).to eq("https://example.com/.../x")
  end

  it "stop neither a registration nor its end when their keys are of another type" do
    [details, index].each { |key| REDIS.call("SET", key, "of another type") }
    expect([monitor.register(request("a")), monitor.registered?(request("a"))]).to eq([nil, true])
    expect([monitor.unregister(request("a")), monitor.registered?(request("a"))]).to eq([nil, false])
  end

  it "do not stop a registration when the config fails to tell whether they are wanted" do
    config.define_singleton_method(:inflight_details?) { raise KeyError, "no such setting" }
    expect(monitor.register(request("a"))).to be_nil
    expect([monitor.registered?(request("a")), sizes]).to eq([true, [0, 0]])
    expect(log.string).to match(/"a" is registered without details: KeyError$/)
  end

  it "let a timeout through that comes while they are built, and nothing is registered" do
    [Timeout::Error, Class.new(Timeout::Error)].each do |error|
      config.inflight_url_sanitizer = ->(_) { sleep }
      expect { Timeout.timeout(0.05, error) { monitor.register(request("a")) } }.to raise_error(error)
    end
    expect([described_class.inflight_count, log.string]).to eq([0, ""])
  end

  it "are written in one transaction with the entry" do
    names = redis_commands { monitor.register(request("b")) }.map { |_, name| name.downcase }
    expect(names.drop_while { |name| name != "multi" }).to start_with(%w[multi zadd hset expire expire zadd hset expire expire exec])
  end

  describe ".inflight_details" do
    def write(id, json, at: server_ms)
      REDIS.call("ZADD", index, at, id)
      REDIS.call("HSET", details, id, json) if json
    end

    it "tells them oldest first, with host and pid, and their age in s to one decimal", gc_stress: 1 do
      now = server_ms
      write("web-1:42:00ff/slow/one", JSON.generate("url" => "https://a.example/", "method" => "GET", "processor" => "p"), at: now - 61_260)
      monitor.register(request("new", "https://b.example/x"))
      old, new = described_class.inflight_details
      expect(old).to eq(request_id: "slow/one", process_id: "web-1:42", url: "https://a.example/", http_method: "GET", processor: "p",
        age: old[:age])
      expect(old[:age]).to be_between(61.2, 63).and(eq(old[:age].round(1)))
      expect(new).to include(request_id: "new", process_id: "#{Socket.gethostname.tr(":/", "--")}:#{Process.pid}",
        url: "https://b.example/x", http_method: "POST", processor: nil, age: be_between(0, 2))
    end

    it "tells 50 unless another limit is named, and no fewer for records that cannot be read" do
      120.times { |number| write("h:1:ff/#{number}", number.even? ? "{}" : ["text", "[]", "1", "\xFF", "null", nil][number % 12 / 2], at: number) }
      expect(described_class.inflight_details.map { |one| one[:request_id] }).to eq((0...100).step(2).map(&:to_s))
      expect(described_class.inflight_details(limit: 3).map { |one| one[:request_id] }).to eq(%w[0 2 4])
      expect(described_class.inflight_details(limit: 1_000).size).to eq(60)
      expect(described_class.inflight_details(limit: 2**70).size).to eq(60)
      expect(described_class.inflight_details(limit: 0)).to eq([])
    end

    it "leaves out ids that no version writes, and is empty where nothing is in flight" do
      expect(described_class.inflight_details).to eq([])
      write("no slash", "{}")
      write("\xFF\xFE".b, "{}")
      write("h:1:ff/\xFF".b, JSON.generate("url" => "u"))
      expect(described_class.inflight_details.map { |one| one[:request_id].b }).to eq(["\xFF".b])
    end

    it "refuses a limit that is none" do
      [-1, 1.5, "10", nil].each do |limit|
        expect { described_class.inflight_details(limit: limit) }.to raise_error(ArgumentError, /limit: must be a whole number/)
      end
    end

    it "follows a stubbed Time.now in the age, as everything does under test" do
      monitor.register(request("a"))
      allow(Time).to receive(:now).and_return(Time.now + 90)
      expect(described_class.inflight_details.first[:age]).to be_within(1).of(90)
    end
  end

  describe ".sanitize_url" do
    {
      "https://user:pass@example.com:8443/a/b?q=1#f" => "https://example.com:8443/a/b",
      "https://user@example.com" => "https://example.com",
      "http://example.com/@name/x?y" => "http://example.com/@name/x",
      "https://example.com/ü?key=1" => "https://example.com/ü",
      "https://exa mple.com/a b?key=1#x" => "https://exa mple.com/a b",
      "https://user:pa?ss@example.com/x" => "(unreadable URL)",
      "https://user:pa/ss@example.com/x" => "(unreadable URL)",
      "https://user:pa#ss@example.com/x" => "(unreadable URL)",
      "user:pass@example.com/x" => "(unreadable URL)",
      "mailto:someone@example.com" => "(unreadable URL)",
      "//user:pass@example.com/x" => "//example.com/x",
      "user@example.com/x" => "(unreadable URL)",
      "/a/path?q=1" => "/a/path",
      "https://[::1]:9/a?b" => "https://[::1]:9/a",
      "https://example.com:443/x" => "https://example.com/x",
      "https://user:12/s3cret@example.com" => "(unreadable URL)",
      "https://user:12?s3cret@example.com" => "(unreadable URL)",
      "https://user:12#s3cret@example.com/x" => "(unreadable URL)",
      "https://example.com:8443/x?mail=a@example.com" => "https://example.com:8443/x",
      "HTTPS://Example.com" => "https://Example.com",
      "data:text/plain,x?y" => "data:text/plain,x",
      "" => "", nil => "", :sym => "sym", 12 => "12",
      "\xFF?a" => "\u{FFFD}",
      "  https://example.com/x  " => "https://example.com/x"
    }.each do |url, shown|
      it "shows #{shown.inspect} of #{url.inspect}", gc_stress: url == "" do
        expect(described_class.sanitize_url(url)).to eq(shown)
      end
    end

    it "never raises, whatever it is given, and shows nothing of a password" do
      [RuntimeError, NotImplementedError].each do |error|
        odd = Object.new
        odd.define_singleton_method(:to_s) { raise error }
        expect(described_class.sanitize_url(odd)).to eq("(unreadable URL)")
      end
      random = Random.new(RSpec.configuration.seed)
      characters = ["/", "?", "#", "@", ":", "[", "]", "%", " ", "\\", "a", "ü", "&", "=", "\n", ";", "//"]
      5_000.times do
        noise = -> { Array.new(random.rand(4)) { characters.sample(random: random) }.join }
        url = "https://user:#{noise.call}s3cret#{noise.call}@#{noise.call}example.com/#{noise.call}?key=s3cret##{noise.call}"
        expect(described_class.sanitize_url(url)).not_to include("s3cret"), "of #{url.inspect}"
      end
    end
  end
end
