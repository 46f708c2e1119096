# frozen_string_literal: true

# Lets each run of the garbage collector move what it can, and run often. To be given to rspec with -r.
abort "this Ruby does not move objects" unless GC.respond_to?(:auto_compact=)

require "spec_helper"

GC.auto_compact = true

RSpec.configure do |config|
  config.fail_if_no_examples = true
  config.before { GC.start }
  config.after(:suite) do
    raise "nothing was moved" unless GC.stat(:compact_count).positive?

    config.reporter.message("GC.auto_compact: #{GC.stat(:compact_count)} compactions")
  end
end
