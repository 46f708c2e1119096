# frozen_string_literal: true

require "spec_helper"
require "digest"
require "support/own_server"
require "support/registry"

RSpec.describe PatientHttp::Sidekiq::TaskMonitor, "names of the later versions" do
  include Registry

  it "has its constants" do
    expect(described_class).to have_attributes(
      inflight_count: 0
    )
    expect(described_class::INFLIGHT_DETAILS_KEY).to eq("sidekiq:patient_http:inflight_details").and(be_frozen)
    expect(described_class::INFLIGHT_DETAILS_INDEX_KEY).to eq("sidekiq:patient_http:inflight_details_index").and(be_frozen)
    expect([described_class::MAX_DISPLAY_URL_LENGTH, described_class::ORPHAN_BATCH_SIZE]).to eq([500, 100])
  end

  it "has SHA1s by which Redis knows its scripts" do
    %w[REMOVE_IF_ORPHANED RELEASE_LOCK].each do |name|
      script, sha = described_class.const_get("#{name}_SCRIPT"), described_class.const_get("#{name}_SHA")
      expect(sha).to eq(Digest::SHA1.hexdigest(script)).and(be_frozen)
      expect(REDIS.call("SCRIPT", "LOAD", script)).to eq(sha)
    end
  end

  it "has a script that releases the lock of its holder, and no other's" do
    monitor = described_class.new(config)
    monitor.acquire_gc_lock
    release = ->(id) { REDIS.call("EVAL", described_class::RELEASE_LOCK_SCRIPT, 1, Registry::GC_LOCK, id) }
    expect([release.call("h:1:ff"), release.call(process_id(monitor)), release.call(process_id(monitor))]).to eq([0, 1, 0])
    expect(keys).not_to include(Registry::GC_LOCK)
  end

  it "clears all keys of theirs" do
    described_class.new(config, processors: -> { {a: {inflight: 1, max_capacity: 1}} }).ping_process
    %w[inflight_details inflight_details_index].each { |name| REDIS.call("SET", "sidekiq:patient_http:#{name}", 1) }
    described_class.clear_all!
    expect(keys).to eq([])
  end

  describe "for the Redis to use" do
    include_context "with a server of its own"

    let(:monitor) { described_class.new(config) }
    let(:theirs) { Sidekiq::RedisConnection.create(url: server.url) }

    # Outside the pool that the context names for Sidekiq.
    def registered_there?
      Thread.new { monitor.register(task("a")) }.join
      server.call("EXISTS", Registry::INDEX) == 1
    end

    def define(name, &body)
      PatientHttp::Sidekiq.define_singleton_method(name, &body)
      yield_it = registered_there?
      PatientHttp::Sidekiq.singleton_class.send(:remove_method, name)
      yield_it
    end

    # What is found out once is found out anew in each example.
    before do
      pools = PatientHttpMonitor.const_get(:Pools)
      pools.remove_instance_variable(:@found) if pools.instance_variable_defined?(:@found)
    end

    it "takes PatientHttp::Sidekiq.redis_pool" do
      pool = theirs
      expect(define(:redis_pool) { pool }).to be(true)
      expect(registered_there?).to be(true)
    end

    it "takes Sidekiq's where that names none" do
      expect(define(:redis_pool) { nil }).to be(false)
      expect(REDIS.call("EXISTS", Registry::INDEX)).to eq(1)
    end

    it "takes the one behind PatientHttp::Sidekiq.redis, where that is all there is" do
      pool = theirs
      expect(define(:redis) { |&block| pool.with(&block) }).to be(true)
    end

    it "follows what PatientHttp::Sidekiq.redis lends when that changes, also from Sidekiq's own clients" do
      lent = Thread.new { Sidekiq.redis_pool }.value
      PatientHttp::Sidekiq.define_singleton_method(:redis) { |&block| lent.with(&block) }
      expect(registered_there?).to be(false)
      lent = theirs
      expect(eventually { registered_there? }).to be(true)
      lent = Sidekiq::RedisConnection.create(url: server.url(4))
      expect(eventually { registered_there? && server.client.call("SELECT", 4) && server.call("EXISTS", Registry::INDEX) == 1 }).to be(true)
    ensure
      server.client.call("SELECT", 0)
      PatientHttp::Sidekiq.singleton_class.send(:remove_method, :redis)
    end

    it "takes Sidekiq's where PatientHttp::Sidekiq.redis lends what redis-client did not make" do
      expect(define(:redis) { |&block| block.call(Object.new) }).to be(false)
    end

    it "follows Sidekiq's where PatientHttp::Sidekiq.redis lends Sidekiq's own clients" do
      PatientHttp::Sidekiq.define_singleton_method(:redis) { |&block| Sidekiq.redis(&block) }
      monitor.register(task("here"))
      Sidekiq::Client.via(Sidekiq::RedisConnection.create(url: server.url(3))) { monitor.register(task("there")) }
      expect([0, 3].map { |db| server.client.call("SELECT", db) && server.call("ZCARD", Registry::INDEX) }).to eq([1, 1])
    ensure
      server.client.call("SELECT", 0)
      PatientHttp::Sidekiq.singleton_class.send(:remove_method, :redis)
    end
  end
end
