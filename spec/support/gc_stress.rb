# frozen_string_literal: true

require "spec_helper"

# Lets the garbage collector run at every allocation while a native method is at work, and nowhere else: it is the extension
# that may have forgotten to keep an object. To be given to rspec with -r; with `--tag gc_stress`, which takes the examples chosen
# for it, the run fails unless every native method was called.
module GcStress
  CALLS = Hash.new(0)
  @depth = 0
  @level = true

  class << self
    # As GC.stress= takes it: true; or 1, of the young objects only, which takes a hundredth of the time.
    attr_writer :level

    # @param owner [Module] whose own methods are wrapped
    # @param others [Array<Symbol>] private ones that are wrapped too
    # @param except [Array<Symbol>]
    def wrap(owner, others: [], except: [])
      names = owner.public_instance_methods(false) + others - except
      labels = names.to_h { |name| [name, "#{owner.inspect} #{name}"] }
      labels.each_value { |label| CALLS[label] = 0 }
      owner.prepend(Module.new do
        labels.each do |name, label|
          define_method(name) do |*arguments, **options, &block|
            GcStress.during(label) { super(*arguments, **options, &block) }
          end
        end
      end)
    end

    # Callers may overlap: the last one to leave ends it.
    def during(label)
      CALLS[label] += 1
      @depth += 1
      GC.stress = @level
      yield
    ensure
      @depth -= 1
      GC.stress = false if @depth.zero?
    end

    # @return [Array<String>]
    def never_called
      CALLS.select { |_, calls| calls.zero? }.keys
    end
  end

  monitor = PatientHttp::Sidekiq::TaskMonitor
  sweep, pool = %i[Sweep Pool].map { |name| PatientHttpMonitor.const_get(name) }
  # Sidekiq's part in a recovery allocates hundreds of times as much as ours: of these the steps are wrapped.
  wrap(monitor, others: %i[initialize], except: %i[cleanup_orphaned_requests])
  wrap(monitor.singleton_class)
  wrap(sweep)
  wrap(sweep.singleton_class)
  wrap(pool, except: %i[counts])
  wrap(pool.singleton_class)
end

RSpec.configure do |config|
  config.fail_if_no_examples = true
  # Sidekiq makes its pool with its first use; that is not what is looked at, and takes half a minute under stress.
  config.before(:suite) { Sidekiq.redis { |redis| redis.call("PING") } }
  config.before { |example| GcStress.level = ENV["SOAK"] ? true : example.metadata.fetch(:gc_stress, true) }
  config.after(:suite) do
    missing = config.inclusion_filter.rules.key?(:gc_stress) ? GcStress.never_called : []
    raise "no example called under GC.stress: #{missing.join(", ")}" if missing.any?

    methods = GcStress::CALLS.count { |_, calls| calls.positive? }
    config.reporter.message("GC.stress: #{GcStress::CALLS.values.sum} calls of #{methods} methods")
  end
end
