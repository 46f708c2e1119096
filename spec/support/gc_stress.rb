# frozen_string_literal: true

require "patient_http_monitor"

# Lets the garbage collector run at every allocation while one of the monitor's methods is at work, and nowhere else: it is the
# extension that may have forgotten to keep an object.
module GcStress
  class << self
    # @param owner [Module] whose own public methods are wrapped
    # @param stress [Boolean, Integer] see GC.stress=
    # @return [Module] to be prepended to it
    def around(owner, stress)
      names = owner.public_instance_methods(false) - %i[initialize]
      Module.new do
        names.each do |name|
          define_method(name) do |*arguments, &block|
            before, GC.stress = GC.stress, stress
            super(*arguments, &block)
          ensure
            GC.stress = before
          end
        end
      end
    end
  end
end

monitor = PatientHttp::Sidekiq::TaskMonitor
recovering = %i[cleanup_orphaned_requests]
monitor.prepend(GcStress.around(monitor, true).tap { |wrapped| recovering.each { |name| wrapped.remove_method(name) } })
monitor.singleton_class.prepend(GcStress.around(monitor.singleton_class, true))
# Sidekiq's part in a recovery allocates hundreds of times as much as ours: of these the steps are wrapped.
sweep = PatientHttpMonitor.const_get(:Sweep)
sweep.prepend(GcStress.around(sweep, true))
sweep.singleton_class.prepend(GcStress.around(sweep.singleton_class, true))
