# frozen_string_literal: true

require "spec_helper"
require_relative "support/registry"

RSpec.describe PatientHttpMonitor::Settings do
  subject(:settings) { described_class.new }

  describe "#recovery_limit" do
    it "is off in a test suite, unless set" do
      expect(settings.recovery_limit).to be_nil
    end

    it "is 3 outside a test suite, unless set" do
      outside_test_environment { expect(settings.recovery_limit).to eq(3) }
    end

    it "is what was set, in a test suite and outside" do
      settings.recovery_limit = 5
      expect([settings.recovery_limit, outside_test_environment { settings.recovery_limit }]).to eq([5, 5])
    end

    it "can be set off outside a test suite" do
      settings.recovery_limit = nil
      outside_test_environment { expect(settings.recovery_limit).to be_nil }
    end

    [0, -1, 1.5, "3", :three, true].each do |limit|
      it "cannot be #{limit.inspect}" do
        expect { settings.recovery_limit = limit }.to raise_error(ArgumentError, /recovery_limit.*#{Regexp.escape(limit.inspect)}/)
        outside_test_environment { expect(settings.recovery_limit).to eq(3) }
      end
    end
  end

  describe "#recovery_window" do
    it "is 72 hours, unless set" do
      expect(settings.recovery_window).to eq(259_200)
    end

    [3_600, 3_600.0, Rational(3_600), Registry::Duration.new(3_600.0)].each do |window|
      it "can be #{window.inspect}" do
        settings.recovery_window = window
        expect(settings.recovery_window).to eq(3_600)
      end
    end

    [0, -1, nil, "3600", Float::NAN, Float::INFINITY, Object.new].each do |window|
      it "cannot be #{window.instance_of?(Object) ? "an Object" : window.inspect}" do
        expect { settings.recovery_window = window }.to raise_error(ArgumentError, /recovery_window/)
        expect(settings.recovery_window).to eq(259_200)
      end
    end
  end
end

RSpec.describe PatientHttpMonitor do
  it "has one settings object" do
    expect(described_class.settings).to be_a(PatientHttpMonitor::Settings).and equal(described_class.settings)
  end

  describe ".testing?" do
    Registry::ENVIRONMENT_VARIABLES.each do |name|
      it "is true when #{name} is test" do
        outside_test_environment do
          ENV[name] = "test"
          expect(described_class.testing?).to be(true)
        end
      end
    end

    it "is false otherwise" do
      outside_test_environment { expect(described_class.testing?).to be(false) }
    end

    it "is what PatientHttp.testing? says, where there is such a method" do
      answers = [:yes, nil]
      PatientHttp.define_singleton_method(:testing?) { answers.shift }
      expect([outside_test_environment { described_class.testing? }, described_class.testing?]).to eq([true, false])
    ensure
      PatientHttp.singleton_class.send(:remove_method, :testing?)
    end
  end
end
