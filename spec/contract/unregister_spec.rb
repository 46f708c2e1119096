# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"

RSpec.describe "TaskMonitor#unregister" do
  let(:one) { monitor }

  it "returns nil, whether the task was registered or not" do
    one.register(request = task)
    expect([one.unregister(request), one.unregister(request)]).to eq([nil, nil])
  end

  it "removes index entry and job", :gc_stress do
    one.register(request = task)
    one.unregister(request)
    expect(keys).to be_empty
  end

  it "does it in one atomic step" do
    one.register(request = task)
    expect(one_step?(redis_commands { one.unregister(request) }, "ZREM", "HDEL")).to be(true)
  end

  it "leaves the other tasks alone" do
    one.register(request = task)
    one.register(other = task)
    one.unregister(request)
    expect(entries).to eq([one.full_task_id(other.id)])
    expect(payload(one.full_task_id(other.id))).to eq(JSON.generate(other.task_handler.sidekiq_job))
  end

  it "leaves a task of the same id alone that another monitor registered" do
    one.register(request = task)
    another = monitor
    another.unregister(request)
    expect(one.registered?(request)).to be(true)
    expect(payload(one.full_task_id(request.id))).not_to be_nil
  end

  it "needs no more of a task than its id" do
    one.register(request = task)
    one.unregister(Struct.new(:id).new(request.id))
    expect(one.registered?(request)).to be(false)
  end

  it "removes what only one of the two keys still has" do
    one.register(request = task)
    REDIS.call("ZREM", Registry::INDEX, one.full_task_id(request.id))
    one.unregister(request)
    expect(keys).to be_empty
  end

  it "raises NoMethodError for a task without id" do
    expect { one.unregister(Object.new) }.to raise_error(NoMethodError, /id/)
  end
end
