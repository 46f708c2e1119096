# frozen_string_literal: true

module PatientHttpMonitor
  # Puts the native class under its name, `PatientHttp::Sidekiq::TaskMonitor`, whether the Ruby gem patient_http-sidekiq was
  # required before, comes later, or is not there.
  #
  # @api private
  module Install
    GEM_NAME = "patient_http-sidekiq"
    # The file of that gem which defines the class in plain Ruby.
    FEATURE = "patient_http/sidekiq/task_monitor"
    # Versions before it have a monitor thread that dies at the first Redis error.
    FIRST_RELIABLE = Gem::Version.new("1.0.2")
    private_constant :GEM_NAME, :FEATURE, :FIRST_RELIABLE

    class << self
      # @param native [Class] the native class, without a name until now
      # @return [void]
      def call(native)
        namespace = namespace_of_class
        make_room(namespace)
        namespace.const_set(:TaskMonitor, native)
        mark_as_loaded
        warn_of_old_version
      end

      private

      def namespace_of_class
        root = define_module(Object, :PatientHttp)
        define_module(root, :Sidekiq)
      end

      def define_module(parent, name)
        parent.const_defined?(name, false) ? parent.const_get(name, false) : parent.const_set(name, Module.new)
      end

      def make_room(namespace)
        return unless namespace.const_defined?(:TaskMonitor, false)

        # Defining the constant under a pending autoload would load the Ruby class first; removing it does not.
        pending = namespace.autoload?(:TaskMonitor, false)
        namespace.send(:remove_const, :TaskMonitor)
        return if pending

        warn "patient_http_monitor: PatientHttp::Sidekiq::TaskMonitor was in use already and is replaced; monitors made before " \
          "keep the Ruby class. Require patient_http_monitor earlier."
      end

      # A later explicit require of the Ruby file would reopen this class and overwrite its methods.
      def mark_as_loaded
        paths = [$LOAD_PATH.resolve_feature_path(FEATURE)&.last]
        paths += Gem::Specification.stubs_for(GEM_NAME).map { |spec| File.join(spec.full_gem_path, "lib", "#{FEATURE}.rb") }
        paths.compact.select { |path| File.file?(path) }.map { |path| File.realpath(path) }.uniq.each do |path|
          $LOADED_FEATURES << path unless $LOADED_FEATURES.include?(path)
        end
      end

      def warn_of_old_version
        version = Gem.loaded_specs[GEM_NAME]&.version
        return unless version && version < FIRST_RELIABLE

        warn "patient_http_monitor: #{GEM_NAME} #{version} has a monitor thread that dies at the first Redis error, after which " \
          "no heartbeat is sent. Use #{FIRST_RELIABLE} or later."
      end
    end
  end
  private_constant :Install
end
