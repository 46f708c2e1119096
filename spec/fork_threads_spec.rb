# frozen_string_literal: true

require "spec_helper"
require "support/children"
require "support/own_server"

# As Puma's workers do it: preloaded by a process that used the registry, and at work in several threads from the start.
RSpec.describe "A child of a process with several idle connections" do
  include Children
  include_context "with a server of its own"

  let(:settings) { {url: server.url, reconnect_attempts: 0} }

  before do
    all_at_once(20) { count }
    expect(pool_counts(pool).last).to be >= 10
  end

  def count
    PatientHttp::Sidekiq::TaskMonitor.inflight_count
  end

  # What many threads came to that called at once.
  def counted_by_threads
    threads(8) { raised { 5.times { count } }&.inspect }.map(&:value).uniq
  end

  it "uses none of them, in any of the threads that call at once, and leaves its parent's alone" do
    expect(Array.new(3) { in_child { counted_by_threads } }).to all(eq([nil]))
    expect(counted_by_threads).to eq([nil])
  end

  it "uses none of them after a call was interrupted while it closed them" do
    answers = in_child do
      [0, 0.000_1, 0.000_3, 0.001].flat_map do |moment|
        interrupted, = threads(1) { count }
        sleep moment
        interrupted.kill.join
        raised { count }&.inspect
      end
    end
    expect(answers.uniq).to eq([nil])
  end
end
