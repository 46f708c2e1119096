# frozen_string_literal: true

require "spec_helper"
require "support/interrupting"

RSpec.describe "A call under Thread.handle_interrupt" do
  include_context "with a server of its own"

  let(:settings) { {url: server.url, timeout: 30} }
  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }
  let(:answers) { Thread::Queue.new }

  before { monitor.register(task("known")) }

  # A thread whose call waits under a mask and puts its answer among the answers.
  def masked_thread(timing, &call)
    threads(1) { Thread.handle_interrupt(KeyError => timing) { answers << call.call } }.first
      .tap { |thread| eventually { thread.stop? } }
  end

  def thaw_and_expect_key_error(thread)
    Process.kill(:CONT, server.pid)
    expect { thread.value }.to raise_error(KeyError, "later")
  end

  it "with :never has its answer first, and the interrupt comes after the block" do
    server.freeze_for_a_while do
      thread = masked_thread(:never) { monitor.registered?(task("known")) }
      thread.raise(KeyError, "later")
      expect(thread.join(0.2)).to be_nil
      thaw_and_expect_key_error(thread)
    end
    expect([answers.size, answers.pop]).to eq([1, true])
  end

  it "with :never is never said to be interrupted once it has written" do
    server.freeze_for_a_while do
      thread = masked_thread(:never) { monitor.register(task("written")) }
      thread.raise(KeyError, "later")
      thaw_and_expect_key_error(thread)
    end
    expect([answers.size, answers.pop]).to eq([1, nil])
    expect(monitor.registered?(task("written"))).to be(true)
  end

  it "with :never for everything outlives even Thread#kill, which comes after the block" do
    server.freeze_for_a_while do
      thread = threads(1) do
        Thread.handle_interrupt(Object => :never) { answers << monitor.registered?(task("known")) }
        answers << :went_on
      end.first
      eventually { thread.stop? }
      expect(thread.kill.join(0.2)).to be_nil
      Process.kill(:CONT, server.pid)
      expect(thread.join(10)).to be(thread)
    end
    expect([answers.size, answers.pop]).to eq([1, true])
  end

  it "with :on_blocking is interrupted where it waits" do
    server.freeze_for_a_while do
      thread = masked_thread(:on_blocking) { monitor.registered?(task("known")) }
      elapsed = seconds do
        thread.raise(KeyError, "at once")
        expect { thread.value }.to raise_error(KeyError, "at once")
      end
      expect(elapsed).to be < Interrupting::PROMPT
    end
    expect(answers).to be_empty
    expect(monitor.registered?(task("known"))).to be(true)
    expect(monitor.registered?(task("unknown"))).to be(false)
  end

  it "under which only others are kept away is interrupted at once" do
    server.freeze_for_a_while do
      thread = masked_thread(:never) { monitor.registered?(task("known")) }
      expect(seconds { thread.kill.join }).to be < Interrupting::PROMPT
    end
    expect(monitor.registered?(task("unknown"))).to be(false)
  end
end

RSpec.describe "A call that is interrupted more than once" do
  include_context "with a server of its own"

  let(:monitor) { PatientHttp::Sidekiq::TaskMonitor.new(config) }

  before { monitor.register(task("known")) }

  # The second comes while what the first left is cleared away. Were the kill lost there, the thread could never be killed again.
  it "ends its thread if one of them is Thread#kill, whichever comes first" do
    seed = RSpec.configuration.seed
    random = Random.new(seed)
    all = Array.new(150) do
      batch = threads(8) do
        monitor.registered?(task("known")) while true
      rescue KeyError, RedisClient::Error
        retry
      end
      sleep random.rand(0.01)
      batch.each do |thread|
        thread.raise(KeyError, "first")
        Thread.pass if random.rand(2).zero?
        thread.kill
      end
    end
    deadline = monotonic + 20
    ended = all.flatten.map { |thread| thread.join([deadline - monotonic, 0].max) }
    expect(ended).to all(be_a(Thread)), "seed #{seed}: #{ended.count(&:nil?)} of #{ended.size} threads go on"
    expect(monitor.registered?(task("unknown"))).to be(false)
  end
end
