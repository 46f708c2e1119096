# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "Errors of Redis" do
  let(:one) { monitor }
  let(:request) { task("task-1", args: ["secret"]) }

  # A key of another type than the registry's, as a stranger may have left it.
  def spoil(key)
    type = (key == Registry::GC_LOCK) ? "a list" : "a string"
    REDIS.call("DEL", key)
    (type == "a list") ? REDIS.call("RPUSH", key, "x") : REDIS.call("SET", key, "x")
  end

  {
    "register" => [Registry::INDEX, ->(one, request) { one.register(request) }],
    "register (the jobs)" => [Registry::JOBS, ->(one, request) { one.register(request) }],
    "unregister" => [Registry::INDEX, ->(one, request) { one.unregister(request) }],
    "unregister (the jobs)" => [Registry::JOBS, ->(one, request) { one.unregister(request) }],
    "update_heartbeats" => [Registry::INDEX, ->(one, request) { one.update_heartbeats([request.id]) }],
    "registered?" => [Registry::INDEX, ->(one, request) { one.registered?(request) }],
    "heartbeat_timestamp_for" => [Registry::INDEX, ->(one, request) { one.heartbeat_timestamp_for(request) }],
    "registered_task_ids" => [Registry::INDEX, ->(one, _) { one.registered_task_ids }],
    "ping_process" => [Registry::PROCESSES, ->(one, _) { one.ping_process }],
    "remove_process" => [Registry::PROCESSES, ->(one, _) { one.remove_process }],
    "cleanup_orphaned_requests" => [Registry::INDEX, ->(one, _) { one.cleanup_orphaned_requests(300, nil) }],
    "inflight_count" => [Registry::INDEX, ->(one, _) { one.class.inflight_count }],
    "inflight_counts_by_process" => [Registry::PROCESSES, ->(one, _) { one.class.inflight_counts_by_process }],
    "total_max_connections" => [Registry::PROCESSES, ->(one, _) { one.class.total_max_connections }],
    "registered_process_ids" => [Registry::PROCESSES, ->(one, _) { one.class.registered_process_ids }]
  }.each do |name, (key, call)|
    it "come out of #{name} as redis-client's own, without anything of the job" do
      spoil(key)
      expect { call.call(one, request) }.to raise_error(RedisClient::CommandError) { |error|
        expect(error.message).to include("WRONGTYPE")
        expect(error.full_message + error.inspect).not_to include("secret")
      }
    end
  end

  it "do not keep a monitor from working once they are gone", gc_stress: 1 do
    spoil(Registry::INDEX)
    expect { one.register(request) }.to raise_error(RedisClient::CommandError)
    REDIS.call("DEL", Registry::INDEX)
    one.register(request)
    expect(one.registered?(request)).to be(true)
  end
end
