# frozen_string_literal: true

# Before anything else, since a signal may come at any moment.
require_relative "runner/signals"
signals = Demo::Signals.new

require "rubygems"
require "bundler/setup"
require_relative "runner/runner"
exit Demo::Runner.new(signals).run
