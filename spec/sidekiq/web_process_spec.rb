# frozen_string_literal: true

require "spec_helper"
require "support/sidekiq_application"
require "support/registry"

# A process that shows Sidekiq's pages, with one about the registry: it calls the class alone, and makes no monitor.
RSpec.describe "In Sidekiq's web process, a page about the registry" do
  include SidekiqApplication

  let(:web_process) { <<~RUBY }
    require "rack/mock"
    require "sidekiq/web"

    class RegistryPage
      CALLS = {
        "count" => -> { inflight_count }, "processes" => -> { inflight_counts_by_process },
        "processors" => -> { inflight_counts_by_processor }, "details" => -> { inflight_details },
        "capacity" => -> { total_max_connections }, "ids" => -> { registered_process_ids.size }
      }

      def self.registered(app)
        app.get("/registry") do
          JSON.generate(CALLS.transform_values { |call| PatientHttp::Sidekiq::TaskMonitor.instance_exec(&call) })
        end
      end
    end
    settings = {name: "registry", tab: "Registry", index: "registry"}
    if Sidekiq::Web.respond_to?(:configure)
      Sidekiq::Web.configure { |config| config.register(RegistryPage, **settings) }
    else
      Sidekiq::Web.register(RegistryPage, **settings)
    end

    # Sidekiq 7 wants a session.
    WEB = Sidekiq::Web.new
    def get(path = "/registry")
      status, _, body = WEB.call(Rack::MockRequest.env_for(path, "rack.session" => {}))
      [status, body.respond_to?(:each) ? body.to_enum(:each).to_a.join : body.call]
    end

    def monitors
      ObjectSpace.each_object(PatientHttp::Sidekiq::TaskMonitor).count
    end
  RUBY
  let(:nothing) { {"count" => 0, "processes" => {}, "processors" => {}, "details" => [], "capacity" => 0, "ids" => 0} }

  def leave_load
    live = PatientHttp::Sidekiq::TaskMonitor.new(config, processors: -> { {llm: {inflight: 1, max_capacity: 8}} })
    live.ping_process
    2.times { live.register(task) }
    REDIS.call("ZADD", "sidekiq:patient_http:inflight_details_index", server_ms, live.full_task_id("a"))
    REDIS.call("HSET", "sidekiq:patient_http:inflight_details", live.full_task_id("a"), '{"url":"https://example.com/","method":"GET"}')
  end

  it "tells what other processes registered, and no monitor is made" do
    leave_load
    status, body, monitors = application("#{web_process}puts get, monitors")
    expect([status, monitors]).to eq(%w[200 0])
    name = "#{Socket.gethostname.tr(":/", "--")}:#{Process.pid}"
    expect(JSON.parse(body)).to include("count" => 2, "processes" => {name => {"inflight" => 2, "max_capacity" => 8}},
      "processors" => {"llm" => {"inflight" => 1, "max_capacity" => 8}}, "capacity" => 8, "ids" => 1,
      "details" => [a_hash_including("request_id" => "a", "url" => "https://example.com/", "http_method" => "GET")])
  end

  it "is there with an empty Redis, writes nothing, and so are Sidekiq's own" do
    lines = application("#{web_process}puts get, get('/').first, get('/queues').first, monitors")
    expect(lines).to eq(["200", JSON.generate(nothing), "200", "200", "0"])
    expect(keys.grep(/patient_http/)).to eq([])
  end

  it "is rendered by many threads at once, and again by the forked workers of a preloaded web server" do
    leave_load
    lines = application(<<~RUBY)
      #{web_process}
      puts Array.new(8) { Thread.new { Array.new(20) { get.first } } }.flat_map(&:value).tally
      2.times do
        fork do
          puts Array.new(4) { Thread.new { Array.new(5) { get.first } } }.flat_map(&:value).tally, monitors
          $stdout.flush
          exit!
        end
        Process.wait
      end
    RUBY
    expect(lines.map { |line| line.delete(" ") }).to eq(["{200=>160}", "{200=>20}", "0", "{200=>20}", "0"])
  end

  it "is there again by the next request after its connections were lost" do
    expect(application(<<~RUBY)).to eq(%w[200 200])
      #{web_process}
      puts get.first
      Sidekiq.redis { |redis| redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }
      puts get.first
    RUBY
  end

  it "never sweeps: an orphan is shown, and stays" do
    id, = leave_orphans(task)
    _, body = application("#{web_process}puts get")
    expect(JSON.parse(body)).to include("count" => 1, "processes" => {})
    expect([entries, queued]).to eq([[id], []])
  end
end
