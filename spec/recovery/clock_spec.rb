# frozen_string_literal: true

require "spec_helper"
require_relative "../support/registry"
require_relative "../support/sidekiq_hooks"

RSpec.describe "Outside a test suite, a host whose clock is wrong" do
  around { |example| outside_test_environment { example.run } }

  let(:one) { monitor }

  [-600, 600].each do |seconds|
    describe "by #{seconds} s" do
      before do
        now = Time.now + seconds
        allow(Time).to receive(:now).and_return(now)
      end

      it "registers, and refreshes, with the server's time" do
        one.register(request = task)
        registered = one.heartbeat_timestamp_for(request)
        age(one.full_task_id(request.id))
        one.update_heartbeats([request.id])
        expect([registered, one.heartbeat_timestamp_for(request)]).to all(be_within(5_000).of(server_ms))
      end

      it "takes no fresh task, and does not wait for a stale one" do
        fresh, stale = leave_orphans(task, task)
        age(fresh, seconds: 290)
        age(stale, seconds: 310)
        expect(one.cleanup_orphaned_requests(300, nil)).to eq(1)
        expect(entries).to eq([fresh])
      end

      it "leases with the server's time" do
        id, = leave_orphans(task)
        on_push(->(_) { raise IOError }) { one.cleanup_orphaned_requests(300, nil) }
        expect(score(id)).to be_within(5_000).of(server_ms)
      end

      it "collects when it is due" do
        one.record_gc_run
        recorded = Integer(REDIS.call("GET", Registry::GC_LAST_RUN))
        expect([recorded, one.gc_needed?]).to match([be_within(5_000).of(server_ms), false])
        REDIS.call("SET", Registry::GC_LAST_RUN, server_ms - 60_001)
        expect(one.gc_needed?).to be(true)
      end
    end
  end
end
