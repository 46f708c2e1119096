# frozen_string_literal: true

require "spec_helper"
require "support/sidekiq_application"
require "support/registry"

RSpec.describe "With Sidekiq's options for a whole process, a recovered job" do
  include SidekiqApplication

  describe "under strict_args!" do
    # What JSON brings back is native JSON, whatever was registered.
    let(:args) { '[1, 2.5, nil, true, "text", [[]], {"a" => {"b" => [1]}}, {sym: :bol}, Time.at(0).utc]' }

    [":raise", ":warn", "false"].each do |mode|
      it "of #{mode} is pushed with whatever args it was registered, without a word" do
        lines = application(<<~RUBY)
          Sidekiq.strict_args!(#{mode})
          orphans(#{args})
          $stderr = $stdout
          puts sweep, LOGGER.errors
        RUBY
        expect(lines).to eq(%w[1])
        expect(queued.first["args"])
          .to eq([1, 2.5, nil, true, "text", [[]], {"a" => {"b" => [1]}}, {"sym" => "bol"}, "1970-01-01 00:00:00 UTC"])
        expect(entries).to be_empty
      end
    end

    it "of :raise stays registered, and out of the dead set, while a middleware adds what is no JSON to its args" do
      lines = application(<<~RUBY)
        Sidekiq.strict_args!(:raise)
        PatientHttpMonitor.settings.recovery_limit = 1
        class Adding
          def call(_class, job, _queue, _pool)
            job["args"] += [:symbol]
            yield
          end
        end
        Sidekiq.configure_client { |config| config.client_middleware.add(Adding) }
        orphans(["a"])
        5.times { sweep and sleep 0.005 }
        puts LOGGER.errors.size, LOGGER.errors.grep(/ArgumentError - Job arguments to ReportJob must be native JSON types/).size
        Sidekiq.strict_args!(false)
        puts sweep
      RUBY
      expect(lines).to eq(%w[5 5 1])
      expect(queued.first["args"]).to eq(%w[a symbol])
      expect(keys).not_to include("dead")
    end
  end

  describe "under transactional_push!" do
    # What Sidekiq asks of the gem that defers what is to happen after a commit: this one defers until it is told.
    let(:transactions) { <<~RUBY }
      module AfterCommitEverywhere
        DEFERRED = []
        def self.after_commit(&block) = DEFERRED << block
      end
      $LOADED_FEATURES << "after_commit_everywhere.rb"
      # Sidekiq 8 asks Active Record itself, from 7.2 on.
      module ActiveRecord
        def self.version = Gem::Version.new("7.1")
      end
    RUBY

    it "is pushed at once, also in the middle of a transaction, and not twice when that commits" do
      lines = application(transactions + <<~RUBY)
        Sidekiq.transactional_push!
        deferred = AfterCommitEverywhere::DEFERRED
        ReportJob.perform_async("of the application")
        puts deferred.size
        orphans(["recovered"])
        puts sweep, deferred.size
        deferred.each(&:call)
      RUBY
      expect(lines).to eq(%w[1 1 1])
      expect(queued.map { |job| job["args"] }).to eq([["recovered"], ["of the application"]])
      expect(queued.flat_map(&:keys)).not_to include("client_class")
      expect(entries).to be_empty
    end

    it "that was registered inside a transaction is in the registry at once" do
      application(transactions + <<~RUBY)
        Sidekiq.transactional_push!
        orphans(["a"])
      RUBY
      expect(entries.size).to eq(1)
    end
  end

  describe "with default_job_options" do
    it "takes of them what it was registered without" do
      application(<<~RUBY)
        Sidekiq.default_job_options = {"queue" => "other", "retry" => 2, "tags" => ["t"]}
        job = task(args: []).task_handler.sidekiq_job.except("queue")
        monitor.register(Task.new("a", TaskHandler.new(job)))
        sleep 0.005
        sweep
      RUBY
      expect(queued("other")).to match([a_hash_including("retry" => 2, "tags" => ["t"])])
    end
  end
end
