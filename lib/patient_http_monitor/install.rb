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
    # The first version whose callers ask for more than 1.0's: the load of processors, for instance.
    FIRST_WITH_PROCESSORS = Gem::Version.new("1.4")
    # The variable that leaves the Ruby class alone, and its value.
    SWITCH = "PATIENT_HTTP_MONITOR"
    OFF = "off"
    private_constant :GEM_NAME, :FEATURE, :FIRST_RELIABLE, :FIRST_WITH_PROCESSORS, :SWITCH, :OFF

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

      # @return [Boolean] whether the Ruby class is to be left alone
      def off?
        ENV[SWITCH].to_s.strip.casecmp?(OFF)
      end

      # @param native [Class]
      # @return [Boolean] whether it has its name; asking loads nothing
      def installed?(native)
        return false unless defined?(::PatientHttp::Sidekiq)

        namespace = ::PatientHttp::Sidekiq
        namespace.const_defined?(:TaskMonitor, false) && !namespace.autoload?(:TaskMonitor, false) &&
          namespace.const_get(:TaskMonitor, false).equal?(native) && whole?(native)
      end

      # @return [Boolean] whether the loaded patient_http-sidekiq knows of processors
      def processors?
        version = loaded_version
        version ? version >= FIRST_WITH_PROCESSORS : false
      end

      private

      # Whether its methods are its own: the Ruby file, loaded from a path that was unknown until then, would have reopened it. What
      # an application prepends is its own business.
      def whole?(native)
        method = native.instance_method(:unregister)
        method = method.super_method until method.nil? || method.owner.equal?(native)
        method ? method.source_location.nil? : false
      end

      def loaded_version
        specification = Gem.loaded_specs[GEM_NAME]
        return specification.version if specification

        # Where it was loaded without RubyGems.
        namespace = ::PatientHttp::Sidekiq
        Gem::Version.new(namespace.const_get(:VERSION, false)) if namespace.const_defined?(:VERSION, false)
      rescue ArgumentError
        nil
      end

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
        # Without a folder it stands for the file's name in whatever folder comes onto the load path later.
        $LOADED_FEATURES << "#{FEATURE}.rb"
        paths = [$LOAD_PATH.resolve_feature_path(FEATURE)&.last]
        paths += Gem::Specification.stubs_for(GEM_NAME).map { |spec| File.join(spec.full_gem_path, "lib", "#{FEATURE}.rb") }
        paths.compact.select { |path| File.file?(path) }.map { |path| File.realpath(path) }.uniq.each do |path|
          $LOADED_FEATURES << path unless $LOADED_FEATURES.include?(path)
        end
      end

      def warn_of_old_version
        version = loaded_version
        return unless version && version < FIRST_RELIABLE

        warn "patient_http_monitor: #{GEM_NAME} #{version} has a monitor thread that dies at the first Redis error, after which " \
          "no heartbeat is sent. Use #{FIRST_RELIABLE} or later."
      end
    end
  end
  private_constant :Install
end
